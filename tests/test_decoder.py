"""The decoder as users have it, on toy models whose tokens are bytes."""

import copy
import itertools
import pickle
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from treesnake import FinishReason, LevelWidths, Prompt, SamplingParams, SpeculativeDecoder
from treesnake.constraints import AllowedTokens, LogitBias
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.ngram import NgramDrafterModel
from treesnake.drafters.none import NoDrafterModel
from treesnake.errors import ContextLengthError, InvalidInputError, LoadError
from treesnake.pairs import Pair
from treesnake.search.by_name import SEARCHES, SELF_TUNING, search_by_name
from treesnake.search.static import StaticSearch
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import RecurrentModel, TableModel, TinyNetwork

END = 256
VOCAB_SIZE = 257
GREEDY = SamplingParams()
SAMPLED = SamplingParams(temperature=1.0, top_k=40, seed=5)
LETTERS = torch.full((VOCAB_SIZE,), -50.0)
LETTERS[list(b"abcdef ")] = 0.0


class LetterModel(RecurrentModel):
    """Says a few letters and hardly anything else."""

    def step(self, state: torch.Tensor, token: int) -> tuple[torch.Tensor, torch.Tensor]:
        state, logits = super().step(state, token)
        return state, logits + LETTERS


class ByteTokenizer:
    """Bytes for tokens; the one after them is special."""

    chat_template: str | None = "turns"

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        text = bytearray()
        for token in token_ids:
            text += bytes([token]) if token < END else b"" if skip_special_tokens else b"<end>"
        return text.decode(errors="replace")

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        tokenize: bool,
    ) -> str:
        assert not tokenize
        turns = [f"{turn['role']}: {turn['content']}\n" for turn in conversation]
        return "".join([*turns, *(["assistant: "] if add_generation_prompt else [])])


class PlainTokenizer(ByteTokenizer):
    chat_template = None


TARGET = LetterModel(VOCAB_SIZE, seed=1)


def decoder(**changes: Any) -> SpeculativeDecoder:
    models = {
        "target": NetworkTargetModel(TinyNetwork(TARGET)),
        "drafter": NetworkDrafterModel(TinyNetwork(TARGET)),
    }
    options: dict[str, Any] = {"tokenizer": ByteTokenizer(), "end_token_ids": [END]}
    pair = Pair(**{name: changes.pop(name, model) for name, model in models.items()})
    return SpeculativeDecoder(pair, **(options | changes))


@pytest.mark.parametrize("params", [GREEDY, SAMPLED])
def test_streamed_pieces_join_to_the_text_and_that_is_the_tokens(params: SamplingParams) -> None:
    stream = decoder().stream("abc", params, max_new_tokens=40)
    pieces = list(stream)
    generation = stream.generation
    assert "".join(pieces) == generation.text == bytes(generation.token_ids).decode()
    assert len(generation.token_ids) == generation.num_emitted == 40
    assert generation.finish_reason == FinishReason.LENGTH


def test_the_name_of_a_special_token_ends_a_text_as_any_string_does() -> None:
    class Ending(LetterModel):
        """Says "b", the special token, "b" and so on."""

        def step(self, state: torch.Tensor, token: int) -> tuple[torch.Tensor, torch.Tensor]:
            state, logits = super().step(state, token)
            logits[END if token == ord("b") else ord("b")] += 100
            return state, logits

    made = decoder(target=NetworkTargetModel(TinyNetwork(Ending(VOCAB_SIZE))), end_token_ids=[])
    for stop in (["<end>"], ["b<end>"], ["<end>b"]):
        generation = made.generate("a", max_new_tokens=9, stop=stop)
        assert generation.finish_reason == FinishReason.STOP_STRING
        assert generation.text == ("" if stop == ["b<end>"] else "b")


def test_greedy_text_is_the_same_whatever_drafts() -> None:
    drafters = (
        NoDrafterModel(),
        NgramDrafterModel(),
        NetworkDrafterModel(TinyNetwork(TARGET)),
        NetworkDrafterModel(TinyNetwork(TableModel(VOCAB_SIZE))),
    )
    shapes = (LevelWidths((1, 1, 1)), LevelWidths((2, 2)))
    texts = {
        decoder(drafter=drafter, search=StaticSearch(shape))
        .generate("aba", max_new_tokens=30)
        .token_ids
        for drafter, shape in itertools.product(drafters, shapes)
    }
    assert len(texts) == 1


def test_a_seed_gives_the_same_sample_again_and_another_seed_another() -> None:
    first, again, other = (
        decoder().generate("a", SamplingParams(1.0, seed=seed), max_new_tokens=20).token_ids
        for seed in (3, 3, 4)
    )
    assert first == again != other


def test_a_stop_string_ends_the_text_inside_of_an_accepted_path() -> None:
    drafting = decoder(search=StaticSearch(LevelWidths((1, 1, 1))))
    whole = drafting.generate("abc", max_new_tokens=40)
    assert whole.text is not None
    assert whole.mean_tokens_per_step > 2, "the drafter is the target"
    # After the first character of a path, so that the rest of the path has to be dropped.
    start = len(whole.steps[0].emitted) + len(whole.steps[1].emitted) + 1
    stop = whole.text[start : start + 2]
    generation = drafting.generate("abc", max_new_tokens=40, stop=[stop])
    assert generation.text == whole.text[: whole.text.index(stop)]
    assert generation.finish_reason == FinishReason.STOP_STRING
    assert whole.token_ids[: generation.num_emitted] == generation.token_ids


def test_an_end_token_ends_the_text_and_is_not_shown() -> None:
    end = AllowedTokens(lambda prefix: torch.arange(VOCAB_SIZE) == (END if len(prefix) > 4 else 97))
    generation = decoder().generate("abc", constraints=[end])
    assert (generation.text, generation.token_ids) == ("aa", (97, 97, END))
    assert generation.finish_reason == FinishReason.END_TOKEN


def test_no_end_token_comes_before_the_fewest_tokens() -> None:
    wants_to_end = LogitBias({END: 100})
    lengths = [
        decoder()
        .generate("abc", constraints=[wants_to_end], min_new_tokens=fewest, max_new_tokens=6)
        .num_emitted
        for fewest in (0, 1, 4, 6)
    ]
    assert lengths == [1, 2, 5, 6]


def test_a_text_ends_with_the_context() -> None:
    short = decoder(target=NetworkTargetModel(TinyNetwork(TARGET, context_length=10)))
    generation = short.generate("abcd", max_new_tokens=50)
    assert generation.num_emitted == 6
    assert generation.finish_reason == FinishReason.CONTEXT


def test_a_conversation_that_goes_on_in_a_session_is_the_same_as_from_scratch() -> None:
    chat = decoder()
    session = chat.new_session()
    messages: list[dict[str, Any]] = []
    for question in ("abc", "fed", "a"):
        messages.append({"role": "user", "content": question})
        going_on, from_scratch = (
            chat.generate(messages, max_new_tokens=9, session=each) for each in (session, None)
        )
        assert going_on.token_ids == from_scratch.token_ids
        messages.append({"role": "assistant", "content": going_on.text})


def test_two_threads_generate_at_once() -> None:
    shared = decoder()
    prompts = [f"{letter}bc" for letter in "abcdef"]
    expected = [shared.generate(prompt, SAMPLED, max_new_tokens=20).text for prompt in prompts]
    with ThreadPoolExecutor(2) as pool:
        texts = pool.map(
            lambda prompt: shared.generate(prompt, SAMPLED, max_new_tokens=20).text, prompts
        )
    assert list(texts) == expected


EMOJI = "a😀bé"
SAYS_EMOJI = AllowedTokens(
    lambda prefix: (
        torch.arange(VOCAB_SIZE) == EMOJI.encode()[(len(prefix) - 1) % len(EMOJI.encode())]
    )
)


@given(st.integers(1, 24))
def test_characters_of_several_tokens_are_shown_whole(max_new_tokens: int) -> None:
    stream = decoder(drafter=NoDrafterModel()).stream(
        "x", max_new_tokens=max_new_tokens, constraints=[SAYS_EMOJI]
    )
    *pieces, _ = stream
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert stream.generation.text == bytes(stream.generation.token_ids).decode(errors="replace")


def test_cancelling_keeps_what_was_made() -> None:
    whole = decoder().generate("abc", max_new_tokens=30)
    stream = decoder().stream("abc", max_new_tokens=30)
    pieces = [next(stream)]
    stream.cancel()
    pieces += stream
    assert stream.generation.finish_reason == FinishReason.CANCELLED
    assert stream.generation.token_ids == whole.steps[0].emitted
    assert "".join(pieces) == stream.generation.text


def test_a_stream_can_be_left_and_taken_up_again() -> None:
    whole = decoder().generate("abc", max_new_tokens=30)
    stream = decoder().stream("abc", max_new_tokens=30)
    for piece in stream:
        assert stream.generation.finish_reason == FinishReason.CANCELLED
        assert stream.generation.text is not None
        assert stream.generation.text.startswith(piece)
        break
    assert stream.run().token_ids == whole.token_ids


def test_a_stream_that_ended_stays_as_it_is() -> None:
    stream = decoder(end_token_ids=range(VOCAB_SIZE)).stream("abc")
    generation = stream.run()
    assert generation.finish_reason == FinishReason.END_TOKEN
    assert list(stream) == []
    assert stream.run().finish_reason == FinishReason.END_TOKEN
    assert stream.generation.text == generation.text


def test_without_a_tokenizer_tokens_go_in_and_come_out() -> None:
    stream = decoder(tokenizer=None).stream([1, 2, 3], max_new_tokens=5)
    assert set(stream) == {""}
    assert stream.generation.text is None
    assert stream.generation.num_emitted == 5


@pytest.mark.parametrize(
    "prompt", [[97, 98], (97, 98), range(97, 99), Prompt((97, 98)), "ab"], ids=str
)
def test_a_prompt_may_be_given_in_several_ways(prompt: Any) -> None:
    assert decoder().encode(prompt) == Prompt((97, 98))


BAD_REQUESTS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "the prompt is empty: give at least one token"),
    ({"prompt": []}, "the prompt is empty: give at least one token"),
    ({"prompt": [3, -1]}, "token ids cannot be negative, got -1"),
    ({"prompt": [300]}, "token id 300 is not in the vocabulary of 257 tokens"),
    ({"prompt": [{"role": "user"}]}, "message 1 has no content"),
    ({"prompt": "half \ud83d"}, "the prompt is no text in UTF-8: found half of a surrogate"),
    ({"prompt": "caf\udce9"}, "the prompt is no text in UTF-8: found the byte 0xe9"),
    ({"prompt": [{"role": "user", "content": "\ud83d"}]}, "content of message 1 is no text in"),
    ({"stop": ["\ud83d"]}, "a stop string is no text in UTF-8"),
    ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
    ({"max_new_tokens": -3}, "max_new_tokens must be at least 1, got -3"),
    (
        {"max_new_tokens": 3, "min_new_tokens": 4},
        "min_new_tokens must be at most max_new_tokens, 3",
    ),
    ({"stop": "end"}, r"stop is a list of strings: write stop=\['end'\]"),
    ({"stop": [""]}, "a stop string cannot be empty"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_REQUESTS)
def test_bad_requests_are_refused_before_the_first_piece(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        decoder().stream(**({"prompt": "abc"} | changes))


def test_prompts_of_other_types_are_refused_where_types_are_not_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    message = {"role": "user", "content": "a"}
    texts: list[tuple[Any, str]] = [
        (["a", "b"], "is a list of texts: give one text at a time"),
        ([("user", "Hi")], "is a list of tuples: a message is {'role': 'user'"),
        (message, "is one message: a conversation is a list, so write"),
        ([message, "b"], "message 2 must be an object with a role and a content"),
        ([[message]], "number 1 of 1 is a list of 1"),
        (b"ab", "is of type bytes"),
        (None, "must be text, a list of token ids or a list of messages, not null"),
    ]
    for prompt, expected in texts:
        with pytest.raises(InvalidInputError, match=expected):
            decoder().stream(prompt)


def test_a_tokenizer_that_fails_is_told() -> None:
    class NoUnknown(ByteTokenizer):
        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            raise RuntimeError("no token for 'a'")

    with pytest.raises(InvalidInputError, match="tokenizer cannot encode the prompt: no token"):
        decoder(tokenizer=NoUnknown()).stream("a")


def test_a_prompt_that_fills_the_context_is_refused() -> None:
    short = decoder(target=NetworkTargetModel(TinyNetwork(TARGET, context_length=4)))
    with pytest.raises(ContextLengthError, match="the prompt has 5 tokens and the context holds 4"):
        short.stream("abcde")


@pytest.mark.parametrize("prompt", ["text", [{"role": "user", "content": "text"}]], ids=str)
def test_text_needs_a_tokenizer(prompt: Any) -> None:
    with pytest.raises(InvalidInputError, match="needs a tokenizer: give token ids or a tokenizer"):
        decoder(tokenizer=None).stream(prompt)


def test_stop_strings_need_a_tokenizer() -> None:
    with pytest.raises(InvalidInputError, match="a stop string needs a tokenizer"):
        decoder(tokenizer=None).stream([1], stop=["a"])


def test_a_conversation_needs_a_chat_template() -> None:
    plain = decoder(tokenizer=PlainTokenizer())
    assert not plain.has_chat_template
    with pytest.raises(InvalidInputError, match="the target has no chat template"):
        plain.stream([{"role": "user", "content": "hello"}])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1.0}, "temperature must be a finite number of at least 0, got -1.0"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"min_p": 2.0}, r"min_p must be in \[0, 1\], got 2.0"),
    ],
)
def test_distributions_that_do_not_exist_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        SamplingParams(**values)


class CountingSearch(StaticSearch):
    """Has a session for each text, and counts them."""

    num_sessions = 0

    def new_session(self) -> StaticSearch:
        type(self).num_sessions += 1
        return StaticSearch(self.shape)


def test_each_text_has_a_session_of_the_decoders_search() -> None:
    one = decoder(search=CountingSearch(LevelWidths((2,))))
    CountingSearch.num_sessions = 0
    session = one.new_session()
    assert session.search is not one.new_session().search
    one.generate("ab", session=session, max_new_tokens=3)
    one.generate("cd", max_new_tokens=3)
    assert CountingSearch.num_sessions == 3


@pytest.mark.parametrize("name", [SELF_TUNING, *SEARCHES])
def test_a_seed_gives_the_same_sample_again_whatever_was_learned_before(name: str) -> None:
    one = decoder(
        drafter=NetworkDrafterModel(TinyNetwork(TableModel(VOCAB_SIZE))),
        search=search_by_name(name),
    )
    first = one.generate("abc", SAMPLED, max_new_tokens=20)
    one.generate("abcabcabc", max_new_tokens=40)
    again = one.generate("abc", SAMPLED, max_new_tokens=20)
    assert again.token_ids == first.token_ids


def test_a_wrong_search_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(InvalidInputError, match="none of the searches self-tuning"):
        SpeculativeDecoder.from_pretrained("there/is-none", search="magic")


def test_models_come_as_a_pair() -> None:
    """While tests run, types are checked before our own checks are."""
    network: Any = TinyNetwork(TARGET)
    target: Any = NetworkTargetModel(network)
    with pytest.raises((InvalidInputError, TypeCheckError)):
        SpeculativeDecoder(target)
    with pytest.raises((InvalidInputError, TypeCheckError)):
        Pair(network, network)


def test_a_search_is_named_or_given() -> None:
    assert decoder(search="chain(3)").search == StaticSearch(LevelWidths((1, 1, 1)))
    with pytest.raises(InvalidInputError, match="none of the searches self-tuning"):
        decoder(search="")
    with pytest.raises((InvalidInputError, TypeCheckError)):
        decoder(search=LevelWidths((1, 1)))


def test_a_stream_cannot_go_on_once_its_session_serves_another_text() -> None:
    one = decoder()
    session = one.new_session()
    first = one.stream("abc", max_new_tokens=30, session=session)
    next(first)
    expected = one.generate("fed", max_new_tokens=30).token_ids
    assert one.generate("fed", max_new_tokens=30, session=session).token_ids == expected
    with pytest.raises(InvalidInputError, match="a session of its own"):
        first.run()
    assert first.generation.finish_reason == FinishReason.CANCELLED
    assert len(first.run().steps) == 1


def test_threads_in_one_session_get_the_right_text_or_are_refused() -> None:
    one = decoder()
    session = one.new_session()
    prompts = ["abc", "fed", "cafe"] * 4
    expected = {prompt: one.generate(prompt, max_new_tokens=12).token_ids for prompt in prompts}

    def generated(prompt: str) -> tuple[str, tuple[int, ...] | None]:
        try:
            return prompt, one.generate(prompt, max_new_tokens=12, session=session).token_ids
        except InvalidInputError:
            return prompt, None

    with ThreadPoolExecutor(4) as pool:
        for prompt, token_ids in pool.map(generated, prompts):
            assert token_ids in (None, expected[prompt])


def test_threads_may_share_a_stream() -> None:
    one = decoder()
    expected = one.generate("abc", max_new_tokens=40).token_ids
    stream = one.stream("abc", max_new_tokens=40)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(stream.run)
    assert stream.generation.token_ids == expected
    assert stream.generation.text == bytes(expected).decode()


def test_a_session_of_another_decoder_is_refused() -> None:
    one, other = decoder(), decoder()
    with pytest.raises(InvalidInputError, match="made by another decoder"):
        one.generate("abc", session=other.new_session())


def test_a_stream_that_was_left_is_in_nobodys_way() -> None:
    one = decoder()
    session = one.new_session()
    next(one.stream("abc", max_new_tokens=30, session=session))
    expected = one.generate("abcd", max_new_tokens=9).token_ids
    assert one.generate("abcd", max_new_tokens=9, session=session).token_ids == expected


WRONG_ARGUMENTS: list[dict[str, Any]] = [
    {"max_new_tokens": 2.5},
    {"max_new_tokens": None},
    {"max_new_tokens": True},
    {"max_new_tokens": 0},
    {"max_new_tokens": -1},
    {"stop": [b"x"]},
    {"stop": ""},
    {"stop": [""]},
    {"stop": 5},
    {"constraints": AllowedTokens(lambda prefix: torch.ones(VOCAB_SIZE, dtype=torch.bool))},
    {"constraints": [5]},
    {"params": {"temperature": 1.0}},
    {"session": "mine"},
]


@pytest.mark.parametrize(
    "arguments",
    WRONG_ARGUMENTS,
    ids=[f"{number} {' '.join(each)}" for number, each in enumerate(WRONG_ARGUMENTS)],
)
def test_an_argument_that_cannot_be_is_named(arguments: dict[str, Any]) -> None:
    """While tests run, types are checked before our own checks are."""
    with pytest.raises((InvalidInputError, TypeCheckError), match=next(iter(arguments))):
        decoder().generate("abc", **arguments)


@pytest.mark.parametrize("arguments", [{"stop": None}, {"max_new_tokens": 10**30}], ids=str)
def test_an_argument_that_says_nothing_or_much_is_taken(arguments: dict[str, Any]) -> None:
    stream = decoder().stream("abc", **arguments)
    next(stream)
    assert stream.generation.num_emitted


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_what_holds_threads_and_weights_is_not_copied(copied: Callable[[Any], Any]) -> None:
    one = decoder()
    for part in (one, one.new_session(), one.stream("abc")):
        with pytest.raises(InvalidInputError, match="can be neither copied nor pickled"):
            copied(part)


def test_an_interrupted_stream_is_cancelled_and_its_session_goes_on() -> None:
    one = decoder()
    session = one.new_session()
    stream = one.stream("abc", max_new_tokens=30, session=session)
    next(stream)

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session.target, "score", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(stream)
    assert len(stream.run().steps) == 1
    assert stream.generation.finish_reason == FinishReason.CANCELLED
    expected = one.generate("abc", max_new_tokens=30).token_ids
    assert one.generate("abc", max_new_tokens=30, session=session).token_ids == expected


def test_a_path_is_a_folder_whatever_models_are_called(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"no file or folder .*smollm2"):
        SpeculativeDecoder.from_pretrained(tmp_path / "smollm2")
    with pytest.raises(LoadError, match="no file or folder nowhere"):
        SpeculativeDecoder.from_pretrained(drafter=Path("nowhere"))

"""Drafting in text: what is drafted, and that it stays exact whatever the two tokenizers are."""

import random
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from treesnake import SamplingParams, SpeculativeDecoder
from treesnake.chance import TorchRng
from treesnake.drafters.composite import CompositeDrafterModel
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.ngram import NgramDrafterModel
from treesnake.drafters.none import NoDrafterModel
from treesnake.drafters.text import TextDrafter, TextDrafterModel, Translation
from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.models.tree_network import TreeNetwork
from treesnake.pairs import Pair
from treesnake.prompt import Prompt
from treesnake.search.by_name import search_by_name
from treesnake.shape import OFF, BestFirst, FixedTree, LevelWidths, Priced, Shape, chain
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import AttentionModel, RecurrentModel, TableModel, TinyNetwork, check_drafter
from treesnake.testing.tokenizers import KINDS

PAIRS = [
    ("byte-level", "byte-level as in Llama 3"),
    ("byte-level, digit by digit", "sentence pieces"),
    ("sentence pieces", "unigram"),
    ("unigram, first word alone", "word pieces"),
    ("word pieces", "byte-level with a space in front"),
    ("byte-level as in Llama 3", "byte-level"),
]
SEARCHES = ["chain(3)", "3x2", "self-tuning"]


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    return KINDS[kind]()


def translation(drafter: str, target: str) -> Translation:
    ours, theirs = tokenizer(drafter), tokenizer(target)
    return Translation(ours, theirs, {ours.eos_token_id}, {theirs.eos_token_id})


def mamba(size: int) -> TreeNetwork:
    torch.manual_seed(1)
    return Mamba(MambaConfig(vocab_size=size, hidden_size=8, num_layers=1, state_dim=4)).eval()


def mamba2(size: int) -> TreeNetwork:
    torch.manual_seed(1)
    sizes = {"vocab_size": size, "hidden_size": 8, "num_layers": 1, "state_dim": 8}
    return Mamba2(Mamba2Config(**sizes, num_heads=2, head_dim=8)).eval()


NETWORKS = {
    "table": lambda size: TinyNetwork(TableModel(size, seed=3)),
    "recurrent": lambda size: TinyNetwork(RecurrentModel(size, seed=3)),
    "attention": lambda size: TinyNetwork(AttentionModel(size, seed=3), context_length=64),
    "mamba": mamba,
    "mamba2": mamba2,
}


def drafter(pair: tuple[str, str], network: str = "recurrent") -> TextDrafterModel:
    own = NetworkDrafterModel(NETWORKS[network](len(tokenizer(pair[0]))))
    return TextDrafterModel(own, translation(*pair))


def target(kind: str, seed: int = 0) -> NetworkTargetModel:
    return NetworkTargetModel(TinyNetwork(RecurrentModel(len(tokenizer(kind)), seed=seed)))


@pytest.mark.parametrize("pair", PAIRS)
def test_it_is_a_drafter(pair: tuple[str, str]) -> None:
    check_drafter(drafter(pair), len(tokenizer(pair[1])), num_steps=1)


@pytest.mark.parametrize("network", ["attention", "mamba2"])
def test_it_is_one_with_any_network(network: str) -> None:
    check_drafter(drafter(PAIRS[0], network), len(tokenizer(PAIRS[0][1])), num_steps=1)


@pytest.mark.parametrize("pair", PAIRS)
def test_the_state_holds_whole_pieces_alone(pair: tuple[str, str]) -> None:
    chance = random.Random(5)
    theirs = tokenizer(pair[1])
    text = theirs.encode("The snake reads 1234 news, doesn't it?", add_special_tokens=False)
    session = drafter(pair).new_session().inner
    assert isinstance(session, TextDrafter)
    session.prefill(Prompt.of(text))
    for _ in range(20):
        draft = session.draft(text[-1], LevelWidths((2, 2)), SamplingParams(), TorchRng(0))
        grown = draft.tree.path_tokens(chance.randrange(len(draft.tree)))
        session.commit(grown)
        text += [*grown[1:], chance.randrange(len(theirs))]
        reader = translation(*pair).reader
        expected = tokenizer(pair[0]).backend_tokenizer.encode(
            reader.text(text[:-1]), add_special_tokens=False
        )
        assert [*session.held, *session.open_tokens] == expected.ids


@pytest.mark.parametrize(("search", "pair"), [*zip(SEARCHES * 2, PAIRS, strict=True)])
def test_greedy_output_is_the_targets_own(pair: tuple[str, str], search: str) -> None:
    model = target(pair[1])
    prompt = tokenizer(pair[1]).encode("The tree prints", add_special_tokens=False)
    plain = SpeculativeDecoder(Pair(model, drafter(pair)), search="off")
    for drafts in (drafter(pair), CompositeDrafterModel(drafter(pair), NgramDrafterModel())):
        decoder = SpeculativeDecoder(Pair(model, drafts), search=search_by_name(search))
        made = decoder.generate(prompt, max_new_tokens=24).token_ids
        assert made == plain.generate(prompt, max_new_tokens=24).token_ids


def test_sessions_continue_and_turns_are_edited() -> None:
    pair = PAIRS[0]
    theirs = tokenizer(pair[1])
    model = target(pair[1])
    decoder = SpeculativeDecoder(Pair(model, drafter(pair)), search="3x2")
    plain = SpeculativeDecoder(Pair(model, drafter(pair)), search="off")
    session = decoder.new_session()
    first = theirs.encode("The snake reads", add_special_tokens=False)
    made = decoder.generate(first, max_new_tokens=9, session=session).token_ids
    more = theirs.encode(" and the tree", add_special_tokens=False)
    edited = theirs.encode("The snake prints", add_special_tokens=False)
    for prompt in ([*first, *made, *more], [*first, *made[:4], *more], edited, first):
        stream = decoder.stream(prompt, max_new_tokens=5, session=session)
        next(iter(stream), None)  # interrupted after a step
        stream.cancel()
        again = decoder.generate(prompt, max_new_tokens=12, session=session).token_ids
        assert again == plain.generate(prompt, max_new_tokens=12).token_ids


def test_a_long_text_is_seen_through_a_window() -> None:
    pair = PAIRS[0]
    theirs = tokenizer(pair[1])
    model = target(pair[1])
    decoder = SpeculativeDecoder(Pair(model, drafter(pair, "attention")), search="chain(3)")
    plain = SpeculativeDecoder(Pair(model, drafter(pair)), search="off")
    prompt = theirs.encode("The snake reads the news. " * 9, add_special_tokens=False)
    made = decoder.generate(prompt, max_new_tokens=40).token_ids
    assert made == plain.generate(prompt, max_new_tokens=40).token_ids


@pytest.mark.parametrize("network", ["recurrent", "mamba2"])
def test_of_a_long_prompt_a_recurrent_network_reads_the_end(network: str) -> None:
    pair = PAIRS[0]
    ours, theirs = (KINDS[kind]() for kind in pair)
    ours.chat_template, theirs.chat_template = OURS, THEIRS
    both = Translation(ours, theirs, {ours.eos_token_id}, {theirs.eos_token_id})
    whole = TextDrafterModel(NetworkDrafterModel(NETWORKS[network](len(ours))), both)
    windowed = replace(whole, own=replace(whole.own, window=8))
    model = target(pair[1])
    decoder, plain = (
        SpeculativeDecoder(Pair(model, each), tokenizer=theirs, search="chain(3)")
        for each in (windowed, NoDrafterModel())
    )
    session, sees_all = (each.new_session().inner for each in (windowed, whole))
    assert isinstance(session, TextDrafter)
    assert isinstance(sees_all, TextDrafter)
    messages = [{"role": "user", "content": "The snake reads the news. " * 9}]
    for prompt in ("The snake reads the news. " * 9, messages, [*messages, *messages]):
        encoded = decoder.encode(prompt)
        for each in (session, sees_all):
            each.prefill(encoded)
        assert 4 <= len(session.held) <= 8
        assert session.held == sees_all.held[-len(session.held) :]
        own = plain.generate(prompt, max_new_tokens=20).token_ids
        assert decoder.generate(prompt, max_new_tokens=20).token_ids == own


def draft_with(
    pair: tuple[str, str], next_of: dict[str, tuple[str, ...]], text: str, shape: Shape
) -> list[str]:
    """Drafts behind a text, where after some pieces the drafter expects others, the first most."""
    ours, theirs = tokenizer(pair[0]), tokenizer(pair[1])
    table = TableModel(len(ours))
    table._table.zero_()
    for before, after in next_of.items():
        row, *best = (ours.encode(each, add_special_tokens=False)[-1] for each in (before, *after))
        for rank, token in enumerate(best):
            table._table[row, token] = 9.0 - rank
    model = TextDrafterModel(NetworkDrafterModel(TinyNetwork(table)), translation(*pair))
    session = model.new_session()
    tokens = theirs.encode(text, add_special_tokens=False)
    session.prefill(Prompt.of(tokens))
    draft = session.draft(tokens[-1], shape, SamplingParams(), TorchRng(0))
    return [theirs.decode([token]) for token in draft.tree.tokens[1:]]


def test_the_drafters_end_proposes_the_targets() -> None:
    pair = ("byte-level", "byte-level as in Llama 3")
    ended = draft_with(pair, {" news": ("<|end|>",)}, "reads the news", chain(3))
    assert ended[-1:] == ["<|end|>"]


@pytest.mark.parametrize("shape", [chain(2), BestFirst(1, 2, 4), Priced(1, (0.1, 0.1), (0.5,) * 8)])
def test_what_it_is_sure_of_is_drafted_in_the_targets_tokens(shape: Shape) -> None:
    pair = ("byte-level", "byte-level as in Llama 3")
    next_of = {" the": ("s",), "s": (",",)}
    assert draft_with(pair, next_of, "it reads the", shape)[:2] == ["s", ","]


@pytest.mark.parametrize("shape", [FixedTree((0, 0, 1)), Priced(2, (0.1, 0.5), (0.1, 0.1, 0.1))])
def test_of_two_siblings_the_more_probable_one_comes_first(shape: Shape) -> None:
    pair = ("byte-level", "byte-level as in Llama 3")
    next_of = {" the": ("s", ","), "s": (",",)}
    assert draft_with(pair, next_of, "it reads the", shape) == ["s", ",", ","]


class Forbidden:
    """Stands where nothing may be called."""

    def __getattr__(self, name: str) -> None:
        raise AssertionError(f"{name} is not for steps without drafts")


@pytest.mark.parametrize("is_chat", [True, False])
def test_what_is_emitted_while_drafting_is_off_is_read_with_the_next_draft(is_chat: bool) -> None:
    pair = PAIRS[0]
    ours, theirs = (KINDS[kind]() for kind in pair)
    ours.chat_template = OURS
    model = TextDrafterModel(NetworkDrafterModel(mamba2(len(ours))), Translation(ours, theirs))
    text = theirs.encode("The snake reads the international news", add_special_tokens=False)
    messages = [{"role": "user", "content": "the snake"}] if is_chat else []
    prompt = Prompt(tuple(text[:3]), messages=tuple(messages))
    sessions = [model.new_session().inner, model.new_session().inner]
    for session, shape in zip(sessions, (OFF, chain(1)), strict=True):
        assert isinstance(session, TextDrafter)
        session.prefill(prompt)
        reader, session._reader = session._reader, Forbidden() if shape is OFF else session._reader
        for token in text[2:-1]:
            session.draft(token, shape, SamplingParams(), TorchRng(0))
            session.commit([token])
        session._reader = reader
    drafts = [each.draft(text[-1], chain(3), SamplingParams(), TorchRng(0)) for each in sessions]
    assert drafts[0].tree == drafts[1].tree
    held = [[*session.held, *session.open_tokens] for session in sessions]
    assert held[0] == held[1]


@settings(max_examples=30)
@given(
    st.integers(0, 10**4), st.sampled_from(PAIRS), st.sampled_from([chain(3), BestFirst(3, 3, 9)])
)
def test_probabilities_fall_along_paths_and_stay_below_one(
    seed: int, pair: tuple[str, str], shape: Shape
) -> None:
    chance = random.Random(seed)
    text = [chance.randrange(len(tokenizer(pair[1]))) for _ in range(6)]
    session = drafter(pair).new_session()
    session.prefill(Prompt.of(text))
    draft = session.draft(text[-1], shape, SamplingParams(), TorchRng(0))
    assert draft.is_chosen
    if draft.node_probs is not None:
        pairs = zip(draft.tree.parents[1:], draft.node_probs[1:], strict=True)
        assert all(0 <= prob <= draft.node_probs[parent] <= 1 for parent, prob in pairs)


OURS = "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}<|end|>{% endfor %}"
OURS += "{% if add_generation_prompt %}<|turn|>assistant:{% endif %}"
THEIRS = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
THEIRS += "{% if add_generation_prompt %}[assistant]\n{% endif %}"


@pytest.mark.parametrize("pair", PAIRS[:3])
def test_a_conversation_is_read_in_the_drafters_own_template(pair: tuple[str, str]) -> None:
    ours, theirs = (KINDS[kind]() for kind in pair)
    ours.chat_template, theirs.chat_template = OURS, THEIRS
    both = Translation(ours, theirs, {ours.eos_token_id}, {theirs.eos_token_id})
    text_drafter = TextDrafterModel(NetworkDrafterModel(mamba2(len(ours))), both)
    model = target(pair[1])
    decoder = SpeculativeDecoder(Pair(model, text_drafter), tokenizer=theirs, search="chain(3)")
    plain = SpeculativeDecoder(Pair(model, NoDrafterModel()), tokenizer=theirs)
    session = text_drafter.new_session().inner
    assert isinstance(session, TextDrafter)
    messages = [{"role": "user", "content": "the snake reads"}]
    answer = "the international news, doesn't it"
    for question in ("and now?", "They'll go."):
        prompt = decoder.encode(messages)
        session.prefill(prompt)
        text = ours.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        expected = ours.encode(text, add_special_tokens=False)
        assert [*session.held, *session.open_tokens] == expected
        session.draft(prompt.token_ids[-1], chain(2), SamplingParams(), TorchRng(0))
        session.commit([prompt.token_ids[-1]])
        assert [*session.held, *session.open_tokens] == expected
        session.commit(theirs.encode(answer, add_special_tokens=False))
        held = [*session.held, *session.open_tokens]
        assert len(held) > len(expected)
        assert held[: len(expected) - 4] == expected[:-4]
        own = plain.generate(messages, max_new_tokens=12).token_ids
        assert decoder.generate(messages, max_new_tokens=12).token_ids == own
        messages += [
            {"role": "assistant", "content": answer},
            {"role": "user", "content": question},
        ]
    session.prefill(Prompt((*prompt.token_ids, 5)))  # the same tokens, and no conversation
    assert both.reader.text(prompt.token_ids).startswith("[user]")
    assert ours.decode([*session.held, *session.open_tokens]).lstrip().startswith("[user]")


def test_a_template_that_refuses_a_conversation_leaves_the_targets_text() -> None:
    pair = PAIRS[0]
    ours, theirs = (KINDS[kind]() for kind in pair)
    ours.chat_template = "{{ raise_exception('no') }}"
    theirs.chat_template = THEIRS
    both = Translation(ours, theirs)
    assert both.rendered([{"role": "user", "content": "a"}], is_answered=True) is None
    assert both.rendered([], is_answered=True) is None

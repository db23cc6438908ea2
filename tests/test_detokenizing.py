"""Text out with real kinds of tokenizers: the reference is the decoding of all tokens at once."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from treesnake.detokenizing import decoding_of
from treesnake.outcome import FinishReason
from treesnake.stopping import Cut, StopStrings
from treesnake.text import TextAssembler, settled_if_appended, settled_if_tidied, shared_beginning

END = "<|im_end|>"
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
WORDS = ["it", "'", "s", "n", "'t", "n't", "'s", "a", ".", "?", ",", "do", "not", "##s", "é", "🐍"]


def fast(tokenizer: Tokenizer, *, tidies: bool = False) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken(END, special=True), AddedToken("<s>", special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", clean_up_tokenization_spaces=tidies
    )


def numbered(tokens: Sequence[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}


def byte_level() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(numbered([*letters, "Ġa", "Ġs", "Ã©"]), []))
    tokenizer.decoder = decoders.ByteLevel()
    return fast(tokenizer)


def sentence_pieces(*, strips: bool = True) -> PreTrainedTokenizerFast:
    """The tokenizer of Llama 2, and of Gemma where no first space is dropped."""
    own = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = [*own, SPACE, "a", "b", f"{SPACE}a", f"{SPACE}b", f"{SPACE}{SPACE}", ".", "é"]
    tokenizer = Tokenizer(models.BPE(numbered(pieces), [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if strips else []),
        ]
    )
    return fast(tokenizer)


def metaspace() -> PreTrainedTokenizerFast:
    pieces = [SPACE, "a", f"{SPACE}a", f"{SPACE}b", f"{SPACE}{SPACE}", "b", ".", f"{SPACE}."]
    tokenizer = Tokenizer(models.BPE(numbered(pieces), []))
    tokenizer.decoder = decoders.Metaspace()
    return fast(tokenizer)


def unigram(*, tidies: bool) -> PreTrainedTokenizerFast:
    pieces = [
        SPACE,
        "it",
        "'",
        f"{SPACE}'",
        f"{SPACE}s",
        "s",
        "n't",
        f"{SPACE}n't",
        f"{SPACE}.",
        ".",
    ]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], 0))
    tokenizer.decoder = decoders.Metaspace()
    return fast(tokenizer, tidies=tidies)


def word_pieces(*, tidies: bool) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(numbered(WORDS), unk_token="a"))
    tokenizer.decoder = decoders.WordPiece(cleanup=tidies)
    return fast(tokenizer, tidies=tidies)


def words(*, tidies: bool) -> PreTrainedTokenizerFast:
    return fast(Tokenizer(models.WordLevel(numbered(WORDS), unk_token="a")), tidies=tidies)


def rewriting() -> PreTrainedTokenizerFast:
    """Its decoder replaces strings across tokens, which nobody foresees."""
    tokenizer = Tokenizer(models.WordLevel(numbered(["a", "b", "ab", " "]), unk_token="a"))
    tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("aab", "x")])
    return fast(tokenizer)


def suffixed() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(numbered(["a</w>", "b", "a", "b</w>", ".</w>"]), []))
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return fast(tokenizer)


KINDS: dict[str, PreTrainedTokenizerFast] = {
    "byte-level": byte_level(),
    "sentence pieces": sentence_pieces(),
    "sentence pieces, first space kept": sentence_pieces(strips=False),
    "metaspace": metaspace(),
    "unigram": unigram(tidies=False),
    "unigram that tidies up": unigram(tidies=True),
    "word pieces": word_pieces(tidies=False),
    "word pieces that tidy up": word_pieces(tidies=True),
    "words": words(tidies=False),
    "words that tidy up": words(tidies=True),
    "a decoder that rewrites": rewriting(),
    "suffixes": suffixed(),
}

CHUNKS = st.lists(st.lists(st.integers(0, 10_000), max_size=5), max_size=40)
PROMPTS = st.lists(st.integers(0, 10_000), max_size=40)


def text_of(tokenizer: PreTrainedTokenizerFast, token_ids: Sequence[int]) -> str:
    return tokenizer.decode(list(token_ids), skip_special_tokens=True)


def added(
    tokenizer: PreTrainedTokenizerFast, prompt: Sequence[int], token_ids: Sequence[int]
) -> str:
    """Returns the documented text: all of both, without what the prompt alone begins with."""
    whole = text_of(tokenizer, [*prompt, *token_ids])
    return whole[len(shared_beginning(text_of(tokenizer, prompt), whole)) :]


def known(tokenizer: PreTrainedTokenizerFast, token_ids: Sequence[int]) -> list[int]:
    return [token % len(tokenizer) for token in token_ids]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(prompt=PROMPTS, chunks=CHUNKS)
@example(prompt=[], chunks=[])
@example(prompt=[1], chunks=[[0], [1], [2], [7], [8]])
@example(prompt=[0, 1], chunks=[[2]])
@example(prompt=[0xE2], chunks=[[0x82], [0xAC], [0xFF]])
@example(prompt=[0xE2, 0x82, 0xAC] * 9, chunks=[[0xE2, 0x82], [0xAC]] * 9 + [[0xFF]])
@example(prompt=[256], chunks=[[256], [259], [260]])
def test_pieces_join_to_what_is_added_to_the_prompt(
    kind: str, prompt: list[int], chunks: list[list[int]]
) -> None:
    tokenizer = KINDS[kind]
    prompt, chunks = known(tokenizer, prompt), [known(tokenizer, chunk) for chunk in chunks]
    assembler = TextAssembler(decoding_of(tokenizer), prompt=prompt)
    read: list[int] = []
    shown = ""
    for chunk in chunks:
        shown += assembler.push(chunk)
        read += chunk
        assert shown + assembler.held == added(tokenizer, prompt, read)
    assert shown + assembler.finish() == added(tokenizer, prompt, read)


STOPS = st.lists(st.sampled_from(["it's", "it '", " a", "a", "é", "."]), max_size=2)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30)
@given(prompt=PROMPTS, chunks=CHUNKS, stop=STOPS)
@example(prompt=[0], chunks=[[1], [2], [3]], stop=["it's"])
@example(prompt=[7], chunks=[[0], [1, 2, 3, 4]], stop=["it's"])
def test_the_text_ends_with_the_first_token_that_completes_a_stop_string(
    kind: str, prompt: list[int], chunks: list[list[int]], stop: list[str]
) -> None:
    """The rule sees the text that is shown, however steps divide it."""
    tokenizer = KINDS[kind]
    prompt, chunks = known(tokenizer, prompt), [known(tokenizer, chunk) for chunk in chunks]
    decoding = decoding_of(tokenizer)
    rule, assembler = StopStrings(stop, decoding, prompt), TextAssembler(decoding, stop, prompt)
    read: list[int] = []
    shown = ""
    for chunk in chunks:
        cut = rule(read, chunk)
        kept = chunk[: cut.num_kept] if cut else chunk
        shown += assembler.push(kept)
        read += kept
        if cut:
            break
    shown += assembler.finish()

    tokens = [token for chunk in chunks for token in chunk]
    texts = (added(tokenizer, prompt, tokens[:number]) for number in range(1, len(tokens) + 1))
    ended = next(
        (
            (number, text)
            for number, text in enumerate(texts, 1)
            if any(one in text for one in stop)
        ),
        None,
    )
    if ended is None:
        assert (read, shown) == (tokens, added(tokenizer, prompt, tokens))
    else:
        end = min(ended[1].index(one) for one in stop if one in ended[1])
        assert (read, shown) == (tokens[: ended[0]], ended[1][:end])


@pytest.mark.parametrize("kind", ["byte-level", "sentence pieces", "metaspace", "suffixes"])
def test_the_name_of_a_special_token_is_a_stop_string(kind: str) -> None:
    tokenizer = KINDS[kind]
    end = tokenizer.convert_tokens_to_ids(END)
    letter = tokenizer.get_vocab()["a"]
    decoding = decoding_of(tokenizer)
    for stop in ([END], [END[3:]], [f"a{END}"], [f"{END}a"]):
        rule, assembler = StopStrings(stop, decoding), TextAssembler(decoding, stop)
        cut = rule([letter], [letter, end, letter, letter])
        assert cut == Cut(3 if stop == [f"{END}a"] else 2, FinishReason.STOP_STRING)
        shown = assembler.push([letter]) + assembler.push([letter, end, letter][: cut.num_kept])
        expected = "a" if stop == [f"a{END}"] else "aa"
        assert (shown + assembler.finish()).replace(" ", "") == expected


def test_the_first_space_of_a_continuation_stays() -> None:
    tokenizer = KINDS["sentence pieces"]
    prompt, more = (tokenizer.get_vocab()[name] for name in ("a", f"{SPACE}a"))
    decoding = decoding_of(tokenizer)
    assert TextAssembler(decoding, prompt=[prompt]).push([more]) == " a"
    assert StopStrings([" a"], decoding, [prompt])([], [more]) is not None
    assert StopStrings(["a"], decoding, [prompt])([], [tokenizer.get_vocab()["b"]]) is None


def test_text_that_cannot_change_is_shown_at_once() -> None:
    for kind in ("byte-level", "sentence pieces", "metaspace", "word pieces", "suffixes"):
        tokenizer = KINDS[kind]
        letter = tokenizer.get_vocab()["a"]
        assembler = TextAssembler(decoding_of(tokenizer), prompt=[letter])
        assert assembler.push([letter]).strip() == "a"


def test_decoders_that_may_rewrite_are_known() -> None:
    rules: dict[str, Callable[..., int]] = {
        kind: decoding_of(KINDS[kind]).num_settled for kind in KINDS
    }
    assert rules["words that tidy up"] is rules["word pieces that tidy up"] is settled_if_tidied
    assert rules["a decoder that rewrites"] is settled_if_tidied
    assert rules["words"] is rules["byte-level"] is rules["metaspace"] is settled_if_appended


def test_a_token_costs_the_same_in_a_long_text() -> None:
    tokenizer = KINDS["sentence pieces"]
    decoding = decoding_of(tokenizer)
    lengths: list[int] = []

    def noting(token_ids: Sequence[int]) -> str:
        lengths.append(len(token_ids))
        return decoding.decode(token_ids)

    assembler = TextAssembler(noting, ["no such"], prompt=[256] * 5000)
    for token in range(2000):
        assembler.push([256 + token % 5])
    assert max(lengths) < 200

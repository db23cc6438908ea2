"""Answers that keep to a form, on toy models with real tokenizers."""

import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pytest
import torch

from treesnake import (
    AllowedTokens,
    BestFirst,
    FinishReason,
    LevelWidths,
    LogitBias,
    Pair,
    SamplingParams,
    SpeculativeDecoder,
    StaticSearch,
)
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.errors import InvalidInputError
from treesnake.grammars import GrammarCompiler, chosen_grammar
from treesnake.loading.gguf_tokenizer import build_tokenizer
from treesnake.shape import OFF, Shape, chain
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import RecurrentModel, TinyNetwork
from treesnake.testing.tokenizers import (
    END,
    byte_level,
    byte_level_digits,
    sentence_pieces,
    word_pieces,
)

NAMES = ["Ann", 'B"b', "\u00e9\u4e2d"]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": NAMES},
        "is_old": {"type": "boolean"},
        "ages": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 99},
            "maxItems": 2,
        },
    },
    "required": ["name", "is_old"],
    "additionalProperties": False,
}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"schema": SCHEMA, "strict": True}}


def gguf_pieces() -> Any:
    """The tokenizer that a GGUF file with single characters and bytes describes."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    characters = ["\u2581", *(chr(code) for code in range(33, 127)), "\u2581{", '":', "true"]
    tokens = ["<unk>", "<s>", "</s>", *byte_tokens, *characters]
    types = [2, 3, 3] + [6] * 256 + [1] * len(characters)
    return build_tokenizer(
        {
            "general.architecture": "llama",
            "llama.context_length": 400,
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": [float(-index) for index in range(len(tokens))],
            "tokenizer.ggml.token_type": types,
        }
    )


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "byte level": byte_level,
    "digits": byte_level_digits,
    "sentence pieces": sentence_pieces,
    "of a GGUF file": gguf_pieces,
}
SHAPES = (chain(4), LevelWidths((3, 2)), BestFirst(3, 4, 9))


@cache
def tokenizer_of(name: str) -> Any:
    return TOKENIZERS[name]()


def end_of(tokenizer: Any) -> int:
    """The special token that ends a text."""
    return tokenizer.convert_tokens_to_ids("</s>" if "</s>" in tokenizer.get_vocab() else END)


def decoder(name: str, shape: Shape, *, seed: int = 1, num_more: int = 3) -> SpeculativeDecoder:
    """A decoder whose drafter is its target; the model has more logits than there are tokens."""
    tokenizer = tokenizer_of(name)
    network = TinyNetwork(RecurrentModel(len(tokenizer) + num_more, seed=seed))
    return SpeculativeDecoder(
        Pair(NetworkTargetModel(network), NetworkDrafterModel(network)),
        tokenizer=tokenizer,
        end_token_ids=[end_of(tokenizer)],
        search=StaticSearch(shape),
    )


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_an_answer_fits_its_schema_whatever_is_drafted(name: str, shape: Shape) -> None:
    end = end_of(tokenizer_of(name))
    for seed, temperature in ((1, 0.0), (2, 1.0)):
        generation = decoder(name, shape, seed=seed).generate(
            "hello",
            SamplingParams(temperature, seed=seed),
            max_new_tokens=200,
            constraints=[LogitBias({end: 9.0})],
            response_format=JSON_SCHEMA,
        )
        assert generation.text is not None
        assert generation.finish_reason is FinishReason.END_TOKEN
        answer = json.loads(generation.text)
        assert answer["name"] in NAMES
        assert isinstance(answer["is_old"], bool)
        assert all(0 <= age <= 99 for age in answer.get("ages", []))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("limit", [7, 40])
def test_greedy_answers_are_those_of_plain_decoding_under_the_grammar(
    shape: Shape, limit: int
) -> None:
    """Also where the number of tokens cuts them."""
    drafted, plain = (
        decoder("byte level", each)
        .generate("hello", max_new_tokens=limit, response_format=JSON_SCHEMA)
        .token_ids
        for each in (shape, OFF)
    )
    assert drafted == plain


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("regex", ["[a-c]{3}-[0-9]{4}", "(yes|no)", "[\u03b1-\u03c9\u4e2d]{2}"])
def test_the_whole_answer_matches_a_regular_expression(name: str, regex: str) -> None:
    generation = decoder(name, LevelWidths((3, 2))).generate("hello", regex=regex)
    assert generation.text is not None
    assert re.fullmatch(regex, generation.text)
    assert generation.finish_reason is FinishReason.END_TOKEN


def test_an_answer_keeps_to_a_grammar() -> None:
    grammar = 'start: "a" start "b" | "c"'
    for seed in range(6):
        generation = decoder("byte level", chain(3), seed=seed).generate(
            "hello", SamplingParams(1.0, seed=seed), grammar=grammar, max_new_tokens=200
        )
        assert generation.text is not None
        num_open = generation.text.count("a")
        if generation.finish_reason is FinishReason.END_TOKEN:
            assert generation.text == "a" * num_open + "c" + "b" * num_open


@pytest.mark.parametrize("name", TOKENIZERS)
def test_any_json_object_is_allowed_and_spaces_come_to_an_end(name: str) -> None:
    tokenizer = tokenizer_of(name)
    likes_spaces = LogitBias(dict.fromkeys(tokenizer.encode(" \n", add_special_tokens=False), 50.0))
    text = (
        decoder(name, chain(3))
        .generate(
            "hello",
            constraints=[likes_spaces],
            response_format={"type": "json_object"},
            max_new_tokens=60,
        )
        .text
    )
    assert text is not None
    assert text.startswith("{")
    assert len(text.split('"')[0]) < 30


def test_plain_text_is_a_response_format_too() -> None:
    free, asked = (
        decoder("byte level", chain(3)).generate("hello", max_new_tokens=5, response_format=form)
        for form in (None, {"type": "text"})
    )
    assert free.token_ids == asked.token_ids


def test_what_may_follow_a_text_depends_on_the_text_alone() -> None:
    """Whatever was asked before: texts that go on, that part early, and shorter ones."""
    tokenizer = tokenizer_of("byte level")
    compiler = GrammarCompiler(tokenizer, [end_of(tokenizer)])
    form = chosen_grammar({"type": "json_object"})
    assert form is not None
    constraint = compiler.constraint(form, 1)
    logits = torch.zeros(len(tokenizer) + 5)
    for text in ("", '{"a": [1', '{"a": ', '{"a": {"b', "{", '{"a": {"b": "c"}}', "", '{\n "'):
        prefix = [0, *(token for each in text for token in tokenizer.encode(each))]
        fresh = compiler.constraint(form, 1)
        assert torch.equal(constraint(prefix, logits), fresh(prefix, logits))


def test_an_answer_that_is_whole_ends_though_more_tokens_were_asked_for() -> None:
    generation = decoder("byte level", chain(3)).generate("hello", regex="a", min_new_tokens=5)
    assert generation.text == "a"
    assert generation.num_emitted < 5


def test_a_grammar_and_constraints_that_leave_nothing_are_refused() -> None:
    """The form lacks its first token, and nothing but an end may come."""
    one = decoder("byte level", chain(3))
    ends = [token in one.end_token_ids for token in range(len(one.tokenizer))]
    with pytest.raises(InvalidInputError, match="the constraints allow no token after"):
        one.generate("hello", regex="a", constraints=[AllowedTokens(lambda prefix: ends)])


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"regex": "("}, "the grammar cannot be used: .*unclosed group"),
    ({"grammar": "start: b"}, "the grammar cannot be used: .*unknown name"),
    ({"grammar": "start: b", "regex": "a"}, "grammar and regex exclude each other"),
    ({"response_format": {"type": "xml"}}, "a type of text, json_object, json_schema, got"),
    ({"response_format": {"type": "json_schema"}}, "response_format needs a schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
        "the grammar cannot be used: Invalid type: x",
    ),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_what_is_no_grammar_is_refused_before_the_first_token(
    options: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=f"(?s){message}"):
        decoder("byte level", chain(3)).stream("hello", **options)


def test_targets_that_no_grammar_can_be_for_are_refused() -> None:
    form = chosen_grammar(regex="a")
    assert form is not None
    with pytest.raises(InvalidInputError, match="cannot read the target's tokenizer"):
        GrammarCompiler(word_pieces(), [1]).constraint(form, 1)
    with pytest.raises(InvalidInputError, match="a grammar needs an end token"):
        GrammarCompiler(byte_level(), []).constraint(form, 1)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treesnake.grammars.find_spec", lambda name: None)
    with pytest.raises(InvalidInputError, match=r"pip install 'treesnake\[serve\]'"):
        chosen_grammar(regex="a")

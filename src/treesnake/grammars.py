"""Answers that keep to a form: JSON, a JSON schema, a regular expression, a grammar.

llguidance, of the extra `serve`, tells which tokens may come next. It is asked at every node of a
tree that can still be accepted, with the node's own path, so the answer is exact: that of the
target under the grammar. An end token may come where the answer is whole, and must come where
nothing else may. An answer that `max_new_tokens` cuts is the beginning of one that fits.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from treesnake.constraints import AllowedTokens
from treesnake.errors import InvalidInputError, reason_of

if TYPE_CHECKING:  # the package is optional
    from llguidance import LLMatcher, LLTokenizer

WHITESPACE = r"( |\n[ \t]{0,20})?"
"""What may stand between the parts of JSON: without a limit, small models write spaces for ever."""

FORMATS = ("text", "json_object", "json_schema")
"""The types of `response_format`, as in OpenAI's API."""


def chosen_grammar(
    response_format: Mapping[str, object] | None = None,
    grammar: str | None = None,
    regex: str | None = None,
) -> str | None:
    r"""Returns the one grammar that was asked for, as llguidance writes it; None if there is none.

    Args:
        response_format: as in OpenAI's API: `{"type": "json_object"}`, or `{"type": "json_schema",
            "json_schema": {"schema": schema}}`.
        grammar: in the language of Lark, as llguidance reads it; it begins at `start`.
        regex: a regular expression that the whole answer matches, in the syntax of Rust's `regex`:
            `\d` stands for the digits of every script, and there is no look-around.

    Raises:
        InvalidInputError: if two are given, one is no such thing, or llguidance is missing.
    """
    given = {"response_format": response_format, "grammar": grammar, "regex": regex}
    asked = {name: value for name, value in given.items() if value is not None}
    if len(asked) > 1:
        raise InvalidInputError(f"{' and '.join(asked)} exclude each other: give one of them")
    if response_format is not None:
        return _json_grammar(response_format)
    for name, value in asked.items():
        if not isinstance(value, str):
            raise InvalidInputError(f"{name} must be text, got {type(value).__name__}")
        matcher = _package().LLMatcher
        make = matcher.grammar_from_regex if name == "regex" else matcher.grammar_from_lark
        return make(value)
    return None


class GrammarCompiler:
    """Makes constraints of grammars, for one tokenizer.

    It reads the vocabulary once, when the first grammar comes, which takes up to a second.

    Args:
        tokenizer: a fast tokenizer of transformers.
        end_token_ids: the tokens that end an answer.
    """

    def __init__(self, tokenizer: object, end_token_ids: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._end_token_ids = sorted(end_token_ids)

    def constraint(self, grammar: str, num_prompt_tokens: int) -> AllowedTokens:
        """Returns the constraint for one answer.

        Args:
            grammar: what `chosen_grammar` returned.
            num_prompt_tokens: where the answer begins.

        Raises:
            InvalidInputError: if the grammar is none, or the target has no end token or no
                tokenizer that llguidance can read.
        """
        vocabulary = self._vocabulary
        matcher = _package().LLMatcher(vocabulary, grammar, log_level=0)
        _check(matcher)
        return AllowedTokens(_GrammarMask(matcher, vocabulary.vocab_size, num_prompt_tokens))

    @cached_property
    def _vocabulary(self) -> "LLTokenizer":
        if not self._end_token_ids:
            raise InvalidInputError(
                "a grammar needs an end token, to end the answer with, and the target names none; "
                "give end_token_ids"
            )
        from llguidance.hf import from_tokenizer  # noqa: PLC0415 - the package is optional

        tokenizer: Any = self._tokenizer
        try:
            return from_tokenizer(tokenizer, eos_token=self._end_token_ids)
        except Exception as error:
            raise InvalidInputError(
                "llguidance cannot read the target's tokenizer, so there are no grammars for it: "
                f"{reason_of(error)}; use AllowedTokens with a function of your own"
            ) from error


class _GrammarMask:
    """Which tokens may follow a text.

    One matcher follows the texts that it is asked about. From one to the next it goes back to where
    they part, which is a few tokens within a tree.
    """

    def __init__(self, matcher: "LLMatcher", num_tokens: int, num_prompt_tokens: int) -> None:
        self._matcher = matcher
        self._num_tokens = num_tokens
        self._num_prompt_tokens = num_prompt_tokens
        self._answer: list[int] = []

    def __call__(self, prefix: Sequence[int]) -> Bool[Tensor, " vocab"]:
        answer = list(prefix[self._num_prompt_tokens :])
        num_shared = _num_shared(self._answer, answer)
        self._matcher.rollback(len(self._answer) - num_shared)
        self._matcher.consume_tokens(answer[num_shared:])
        self._answer = answer
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        _check(self._matcher)
        mask = np.unpackbits(packed, count=self._num_tokens, bitorder="little")
        return torch.from_numpy(mask.view(np.bool_))


def _num_shared(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))


def _json_grammar(response_format: Mapping[str, object]) -> str | None:
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind not in FORMATS:
        raise InvalidInputError(
            f"response_format must be an object with a type of {', '.join(FORMATS)}, got "
            f"{response_format!r:.80}"
        )
    if kind == "text":
        return None
    schema: object = {"type": "object"}
    if kind == "json_schema":
        stated = response_format.get("json_schema")
        schema = stated.get("schema") if isinstance(stated, Mapping) else None
        if not isinstance(schema, Mapping):
            raise InvalidInputError(
                'response_format needs a schema: write {"type": "json_schema", "json_schema": '
                '{"schema": {"type": "object", ...}}}'
            )
    matcher = _package().LLMatcher
    try:
        return matcher.grammar_from_json_schema(schema, defaults={"whitespace_pattern": WHITESPACE})
    except ValueError as error:
        raise InvalidInputError(f"the JSON schema cannot be used: {reason_of(error)}") from error


def _check(matcher: "LLMatcher") -> None:
    if matcher.is_error():
        raise InvalidInputError(f"the grammar cannot be used: {matcher.get_error().strip():.600}")


def _package() -> Any:
    if find_spec("llguidance") is None:
        raise InvalidInputError(
            "grammars and JSON schemas need llguidance: pip install 'treesnake[serve]'"
        )
    import llguidance  # noqa: PLC0415 - the package is optional

    return llguidance

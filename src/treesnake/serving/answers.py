"""What clients are told: choices, log probabilities, usage and timings, in the forms of OpenAI."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

from treesnake.decoder import Tokenizer
from treesnake.explanation import guesser_of, why
from treesnake.logprobs import TokenLogprobs
from treesnake.outcome import FinishReason, Generation, Step
from treesnake.serving.tools import CallPiece, CallReader, whole_calls
from treesnake.text import REPLACEMENT

FINISHED: Mapping[FinishReason, str] = {
    FinishReason.END_TOKEN: "stop",
    FinishReason.STOP_STRING: "stop",
    FinishReason.STOP_RULE: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.CONTEXT: "length",
    FinishReason.CANCELLED: "length",
}
"""OpenAI's name for why a text ended; a server that ends cuts texts."""


@dataclass(frozen=True)
class TokenNames:
    """What single tokens are called."""

    tokenizer: Tokenizer

    def text(self, token_id: int) -> str:
        """Returns the text of a token, as it is where it is part of a character only."""
        return self.tokenizer.decode([token_id])

    def name(self, token_id: int) -> str:
        """Returns the text of a token; one that is part of a character has the vocabulary's name.

        So two tokens have two names.
        """
        text = self.text(token_id)
        if text and REPLACEMENT not in text:
            return text
        to_name = getattr(self.tokenizer, "convert_ids_to_tokens", None)
        return f"token_id:{token_id}" if to_name is None else str(to_name(token_id))

    def chat_entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        """Returns a token as chat answers tell it; bytes are null where they are no whole text."""
        text = self.text(token_id)
        is_whole = REPLACEMENT not in text
        return {
            "token": self.name(token_id),
            "logprob": logprob,
            "bytes": list(text.encode()) if is_whole else None,
        }


EchoedToken = TokenLogprobs | int
"""A token with its log probability; the first of a text has none, and is its id."""


class ChatForm:
    """A choice of /v1/chat/completions."""

    def __init__(self, names: TokenNames) -> None:
        self._names = names

    def opening(self) -> dict[str, Any]:
        """Returns what the first chunk has."""
        return {"delta": {"role": "assistant", "content": ""}, "logprobs": None}

    def piece(self, text: str, tokens: Sequence[EchoedToken] | None) -> dict[str, Any]:
        """Returns what a chunk adds."""
        return {"delta": {"content": text}, "logprobs": self._logprobs(tokens)}

    def closing(self) -> dict[str, Any]:
        """Returns what the chunk with the finish reason has."""
        return {"delta": {}, "logprobs": None}

    def finish_reason(self, reason: str) -> str:
        """Returns why the choice ended, by the reason why its text ended."""
        return reason

    def whole(self, text: str, tokens: Sequence[EchoedToken] | None) -> dict[str, Any]:
        """Returns the choice in one piece."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"message": message, "logprobs": self._logprobs(tokens)}

    def _logprobs(self, tokens: Sequence[EchoedToken] | None) -> dict[str, Any] | None:
        if tokens is None:
            return None
        entry = self._names.chat_entry
        content = [
            entry(each.token_id, each.logprob)
            | {"top_logprobs": [entry(token, logprob) for token, logprob in each.top]}
            for each in tokens
            if not isinstance(each, int)
        ]
        return {"content": content, "refusal": None}


class CallForm(ChatForm):
    """A choice of /v1/chat/completions with tools; reads the calls in its text."""

    def __init__(self, names: TokenNames) -> None:
        super().__init__(names)
        self._reader = CallReader()

    def piece(self, text: str, tokens: Sequence[EchoedToken] | None) -> dict[str, Any]:
        """Returns what a chunk adds: text, parts of calls, or nothing yet."""
        return {"delta": _delta(*self._reader.push(text)), "logprobs": self._logprobs(tokens)}

    def closing(self) -> dict[str, Any]:
        """Returns what the chunk with the finish reason has, with what was not certain before."""
        return {"delta": _delta(*self._reader.finish()), "logprobs": None}

    def whole(self, text: str, tokens: Sequence[EchoedToken] | None) -> dict[str, Any]:
        """Returns the choice in one piece; its content is null where there are calls alone."""
        spoken, pieces = self._reader.push(text)
        rest, last = self._reader.finish()
        calls = whole_calls([*pieces, *last])
        body = super().whole(spoken + rest, tokens)
        if calls:
            body["message"] |= {"content": spoken + rest or None, "tool_calls": calls}
        return body

    def finish_reason(self, reason: str) -> str:
        """Returns why the choice ended; an end behind calls has a name of its own."""
        return "tool_calls" if reason == "stop" and self._reader.num_calls else reason


def _delta(text: str, pieces: Sequence[CallPiece]) -> dict[str, Any]:
    said = {"content": text} if text else {}
    return said | ({"tool_calls": [piece.delta() for piece in pieces]} if pieces else {})


class TextForm:
    """A choice of /v1/completions; counts where its tokens begin."""

    def __init__(self, names: TokenNames) -> None:
        self._names = names
        self._offset = 0

    def piece(self, text: str, tokens: Sequence[EchoedToken] | None) -> dict[str, Any]:
        """Returns what a chunk adds; the first token of an echo is an id without probability."""
        return {"text": text, "logprobs": None if tokens is None else self._logprobs(tokens)}

    def closing(self) -> dict[str, Any]:
        """Returns what the chunk with the finish reason has."""
        return {"text": "", "logprobs": None}

    def whole(self, text: str, tokens: Sequence[EchoedToken] | None) -> dict[str, Any]:
        """Returns the choice in one piece."""
        return self.piece(text, tokens)

    def finish_reason(self, reason: str) -> str:
        """Returns why the choice ended, by the reason why its text ended."""
        return reason

    def _logprobs(self, tokens: Sequence[EchoedToken]) -> dict[str, Any]:
        names: list[str] = []
        logprobs: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        offsets: list[int] = []
        for each in tokens:
            token_id = each if isinstance(each, int) else each.token_id
            names.append(self._names.name(token_id))
            logprobs.append(None if isinstance(each, int) else each.logprob)
            tops.append(None if isinstance(each, int) else self._top(each))
            offsets.append(self._offset)
            self._offset += len(self._names.text(token_id))
        return {
            "tokens": names,
            "token_logprobs": logprobs,
            "top_logprobs": tops,
            "text_offset": offsets,
        }

    def _top(self, token: TokenLogprobs) -> dict[str, float]:
        pairs = [*token.top, (token.token_id, token.logprob)]
        return {self._names.name(token_id): logprob for token_id, logprob in pairs}


def usage(
    num_prompt_tokens: int, num_cached: int, generations: Sequence[Generation]
) -> dict[str, Any]:
    """Returns what was read and written, in tokens; drafts that were rejected do not count."""
    completion = sum(each.num_emitted for each in generations)
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": num_prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": num_cached},
    }


def timings(num_prompt_tokens: int, generations: Sequence[Generation]) -> dict[str, Any]:
    """Returns what took how long, under the names of llama-server."""
    predicted = sum(each.num_emitted for each in generations)
    predicted_s = sum(each.decode_s for each in generations)
    return {
        "prompt_n": num_prompt_tokens,
        "prompt_ms": 1000 * sum(each.prefill_s for each in generations),
        "predicted_n": predicted,
        "predicted_ms": 1000 * predicted_s,
        "predicted_per_second": predicted / predicted_s if predicted_s else 0.0,
        "draft_n": sum(each.num_drafted for each in generations),
        "draft_n_accepted": sum(each.num_accepted for each in generations),
    }


def step_record(step: Step, names: TokenNames) -> dict[str, Any]:
    """Returns a step for people to look at: who wrote what, and the tree.

    The probability of a node that the drafter knows none of is -1.
    """
    probs = step.node_probs or (float("nan"),) * len(step.tree)
    return {
        "shape": str(step.shape),
        "why": why(step.shape),
        "guesser": str(guesser_of(step)),
        "tokens": [names.text(token) for token in step.tree.tokens],
        "parents": list(step.tree.parents),
        "path": list(step.acceptance.path),
        "emitted": [names.text(token) for token in step.emitted],
        "probs": [-1.0 if isnan(prob) else round(prob, 6) for prob in probs],
        "draft_s": round(step.seconds.draft_s, 6),
        "score_s": round(step.seconds.score_s, 6),
        "work_s": round(step.seconds.work_s, 6),
    }

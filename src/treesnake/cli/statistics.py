"""How the numbers of a generation are shown."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from treesnake.explanation import COLORS, Explanation
from treesnake.outcome import Generation
from treesnake.terminal import console, plain


@dataclass(frozen=True)
class Comparison:
    """A generation, and plain decoding of the same prompt if that was asked for."""

    generation: Generation
    plain: Generation | None = None

    @property
    def speedup(self) -> float | None:
        """How many times as fast as plain decoding, in tokens per second."""
        if self.plain is None or not self.plain.tokens_per_s:
            return None
        return self.generation.tokens_per_s / self.plain.tokens_per_s

    @property
    def is_same_text(self) -> bool | None:
        """Whether both gave the same tokens, as they must where nothing is sampled."""
        return None if self.plain is None else self.plain.token_ids == self.generation.token_ids


def statistics(comparison: Comparison) -> dict[str, Any]:
    """Returns the numbers as plain data."""
    numbers = _numbers(comparison.generation)
    if comparison.plain is None:
        return numbers
    return numbers | {
        "plain": _numbers(comparison.plain),
        "speedup": comparison.speedup,
        "same_tokens": comparison.is_same_text,
    }


def print_statistics(comparison: Comparison) -> None:
    """Prints the numbers to standard error, so that a pipe gets the text alone."""
    notes = console(is_error=True)
    if notes.is_terminal:
        notes.print()
    notes.print(summary(comparison.generation), style="dim")
    if comparison.plain is None:
        return
    notes.print()
    notes.print(_table(comparison.generation, comparison.plain))
    notes.print()
    notes.print(_verdict(comparison))


def summary(generation: Generation) -> str:
    """Returns the line of statistics behind an answer."""
    ended = "" if generation.finish_reason == "end_token" else f" · ended by {_ended(generation)}"
    return (
        f"{generation.num_emitted} tokens · {generation.tokens_per_s:.1f} tokens/s · "
        f"{generation.mean_tokens_per_step:.2f} tokens/step"
        f"{_gain(generation)}{_streams(generation)}{ended}"
    )


def _gain(generation: Generation) -> str:
    speedup = generation.estimated_speedup
    return "" if speedup is None else f" · about {speedup:.1f}x plain (estimate)"


def print_explanation(explanation: Explanation) -> None:
    """Prints a text in the colours of who wrote each token, and the last tree."""
    notes = console(is_error=True)
    notes.print()
    for line in explained(explanation):
        notes.print(line)


def explained(explanation: Explanation) -> Iterator[Text]:
    """Returns what is printed of an explanation: text, legend and tree."""
    yield Text.assemble(
        *((plain(token.text), COLORS[token.author]) for token in explanation.tokens)
    )
    yield Text()
    yield Text.assemble(
        *(
            (f"{author} {count}   ", COLORS[author])
            for author, count in explanation.counts.items()
            if count
        )
    )
    for line in explanation.tree:
        yield Text(plain(line), no_wrap=True, overflow="ellipsis")


def _streams(generation: Generation) -> str:
    weights = generation.stream_weights
    if len(weights) < 2:
        return ""
    return " · " + " ".join(f"{name} {weight:.0%}" for name, weight in weights.items())


def _table(generation: Generation, plainly: Generation) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("")
    for heading in ("tokens/s", "tokens/step", "steps", "prefill"):
        table.add_column(heading, justify="right")
    for name, run in (("treesnake", generation), ("plain decoding", plainly)):
        table.add_row(
            name,
            f"{run.tokens_per_s:.1f}",
            f"{run.mean_tokens_per_step:.2f}",
            str(len(run.steps)),
            f"{run.prefill_s * 1e3:.0f} ms",
        )
    return table


def _verdict(comparison: Comparison) -> Text:
    same = "the same tokens" if comparison.is_same_text else "different tokens"
    speedup = f"{comparison.speedup or 0:.2f}x"
    return Text.assemble((speedup, "bold"), f" as fast as plain decoding, {same}")


def _ended(generation: Generation) -> str:
    return {
        "length": "max-new-tokens",
        "context": "the end of the context",
        "stop_string": "a stop string",
        "stop_rule": "a stop rule",
        "cancelled": "you",
    }[str(generation.finish_reason)]


def _numbers(generation: Generation) -> dict[str, Any]:
    return {
        "num_tokens": generation.num_emitted,
        "tokens_per_s": generation.tokens_per_s,
        "tokens_per_step": generation.mean_tokens_per_step,
        "accepted_per_step": generation.mean_accepted_per_step,
        "acceptance_by_position": generation.acceptance_by_position,
        "num_steps": len(generation.steps),
        "num_drafted": generation.num_drafted,
        "num_accepted": generation.num_accepted,
        "estimated_speedup": generation.estimated_speedup,
        "prefill_s": generation.prefill_s,
        "decode_s": generation.decode_s,
        "finish_reason": str(generation.finish_reason),
        "stream_weights": generation.stream_weights,
    }

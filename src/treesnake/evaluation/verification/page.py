"""A verdict and its evidence on one page, as Markdown."""

from treesnake.decoder import SpeculativeDecoder
from treesnake.evaluation.markdown import code, inline, table
from treesnake.evaluation.verification.evidence import (
    Difference,
    FrequencyTest,
    GreedyEvidence,
    SamplingEvidence,
    StateEvidence,
    Verdict,
)

MOST_SHOWN = 10
FINDS = (
    "*Finds* is the total variation from the target's distribution, over the cells, that the test "
    "finds nine times in ten, however it is spread."
)


def to_page(verdict: Verdict, decoder: SpeculativeDecoder | None = None) -> str:
    """Returns the page; tokens appear as text if the decoder has a tokenizer."""
    headline = "Nothing was found" if verdict.is_lossless else "Not lossless"
    if verdict.loading is not None and not verdict.loading.is_passed:
        headline = "Not loaded as transformers loads it"
    subject = " · ".join(
        f"{inline(name)} {inline(value)}" for name, value in verdict.subject.items()
    )
    parts = [f"# {headline}", *([subject] if subject else [])]
    if verdict.loading is not None:
        parts += ["## Loading", inline(verdict.loading.sentence)]
    if verdict.state is not None:
        parts += _state(verdict.state)
    if verdict.greedy is not None:
        parts += _greedy(verdict.greedy, decoder)
    if verdict.sampling is not None:
        parts += _sampling(verdict.sampling)
    parts.append(f"It took {verdict.seconds:.0f} s.")
    return "\n\n".join(parts) + "\n"


def _state(evidence: StateEvidence) -> list[str]:
    rows = [
        [
            check.name,
            str(check.num_texts),
            f"{check.error:.2g}",
            f"{check.limit:.2g}",
            "passed" if check.is_passed else "failed",
        ]
        for check in evidence.checks
    ]
    return [
        "## The state behind a text",
        "Each way to a text must end where decoding token by token ends.",
        table(("way", "texts", "largest error", "fails above", "verdict"), rows),
    ]


def _greedy(evidence: GreedyEvidence, decoder: SpeculativeDecoder | None) -> list[str]:
    num_same = evidence.num_tokens - len(evidence.differences)
    found = (
        f"{num_same} of {evidence.num_tokens} tokens in {evidence.num_prompts} texts are those of "
        f"plain decoding. {len(evidence.ties)} differ by a tie within rounding, "
        f"{len(evidence.errors)} by more."
    )
    parts = ["## Greedy decoding", found]
    shown = [*evidence.errors, *evidence.ties][:MOST_SHOWN]
    if shown:
        heads = ("prompt", "position", "emitted", "plain", "logits", "gap", "rounding", "verdict")
        parts.append(table(heads, [_difference(one, decoder) for one in shown]))
    return parts


def _difference(difference: Difference, decoder: SpeculativeDecoder | None) -> list[str]:
    return [
        str(difference.prompt_index + 1),
        str(difference.position),
        _token(difference.emitted_token, decoder),
        _token(difference.plain_token, decoder),
        f"{difference.emitted_logit:.4f}, {difference.plain_logit:.4f}",
        f"{difference.gap:.2g}",
        f"{difference.rounding:.2g}",
        "tie" if difference.is_tie else "error",
    ]


def _sampling(evidence: SamplingEvidence) -> list[str]:
    parts = [
        f"## Sampling at temperature {evidence.temperature:g}",
        f"Correct sampling fails with a probability of {evidence.alpha:g} at most.",
        table(
            ("test", "samples", "cells", "p-value", "fails below", "finds", "verdict"),
            [_test(test) for test in evidence.tests],
        ),
        FINDS,
    ]
    if evidence.impossible_tokens:
        parts.append(f"{evidence.impossible_tokens} tokens came out that have no probability.")
    cells = [cell for test in evidence.tests if not test.is_passed for cell in test.most_deviant]
    if cells:
        heads = ("prompt", "what", "observed", "expected", "deviation")
        rows = [
            [
                "all" if cell.prompt_index is None else str(cell.prompt_index + 1),
                inline(cell.label),
                str(cell.observed),
                f"{cell.expected:.1f}",
                f"{cell.deviation:+.1f}",
            ]
            for cell in cells
        ]
        parts += ["What deviates most:", table(heads, rows)]
    return parts


def _test(test: FrequencyTest) -> list[str]:
    return [
        test.name,
        str(test.num_samples),
        str(test.num_cells),
        f"{test.p_value:.4f}",
        f"{test.alpha:g}",
        f"{test.detectable_variation:.3f}",
        "passed" if test.is_passed else "failed",
    ]


def _token(token: int, decoder: SpeculativeDecoder | None) -> str:
    if decoder is None or decoder.tokenizer is None:
        return str(token)
    return code(repr(decoder.tokenizer.decode([token])))

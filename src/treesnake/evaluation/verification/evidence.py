"""What was looked at and what was found."""

from dataclasses import asdict, dataclass
from typing import Any

from treesnake.loading.reference import LogitsComparison


@dataclass(frozen=True)
class Difference:
    """A position where greedy decoding did not emit the most probable token of plain decoding.

    Attributes:
        prompt_index: which prompt.
        position: how many tokens were generated before.
        emitted_token: what was emitted.
        plain_token: what plain decoding emits after the same text.
        emitted_logit: of the target, by plain decoding.
        plain_logit: the largest one.
        rounding: how far logits of this position are apart between two ways of plain decoding.
    """

    prompt_index: int
    position: int
    emitted_token: int
    plain_token: int
    emitted_logit: float
    plain_logit: float
    rounding: float

    @property
    def gap(self) -> float:
        """By how much the emitted token's logit is below the largest."""
        return self.plain_logit - self.emitted_logit

    @property
    def is_tie(self) -> bool:
        """Whether the gap is no larger than what rounding can do to both logits."""
        return self.gap <= 2 * self.rounding


@dataclass(frozen=True)
class GreedyEvidence:
    """What greedy decoding emitted, compared with plain decoding token by token.

    Attributes:
        num_prompts: how many texts.
        num_tokens: how many tokens were compared.
        differences: all positions that differ, ties included.
    """

    num_prompts: int
    num_tokens: int
    differences: tuple[Difference, ...]

    @property
    def ties(self) -> tuple[Difference, ...]:
        """The differences that are ties within rounding."""
        return tuple(difference for difference in self.differences if difference.is_tie)

    @property
    def errors(self) -> tuple[Difference, ...]:
        """The differences that rounding does not explain."""
        return tuple(difference for difference in self.differences if not difference.is_tie)

    @property
    def is_passed(self) -> bool:
        """Whether every difference is a tie."""
        return not self.errors


@dataclass(frozen=True)
class CellCount:
    """How often something happened, and how often it should have.

    Attributes:
        prompt_index: after which prompt; None if it is about all of them.
        label: what happened, in words.
        observed: how often.
        expected: how often the target would have done it.
    """

    prompt_index: int | None
    label: str
    observed: int
    expected: float

    @property
    def deviation(self) -> float:
        """The difference in units of the root of what was expected."""
        return (self.observed - self.expected) / self.expected**0.5


@dataclass(frozen=True)
class FrequencyTest:
    """A chi-square test of counts against the target's exact probabilities.

    Attributes:
        name: what was counted.
        num_samples: how many draws.
        num_cells: how many kinds of outcome were told apart.
        statistic: Pearson's sum of squared deviations.
        p_value: the probability of such a statistic, or a larger one, if nothing is wrong; found by
            simulation, so that it is exact however small the counts are.
        alpha: the probability of a false alarm.
        detectable_variation: a total variation over the cells that would be found with a
            probability of 0.9, however it is spread over them.
        observed_variation: the total variation between counts and probabilities; chance makes some.
        most_deviant: the cells that deviate most.
    """

    name: str
    num_samples: int
    num_cells: int
    statistic: float
    p_value: float
    alpha: float
    detectable_variation: float
    observed_variation: float
    most_deviant: tuple[CellCount, ...]

    @property
    def is_passed(self) -> bool:
        """Whether chance explains the counts."""
        return self.p_value > self.alpha


@dataclass(frozen=True)
class SamplingEvidence:
    """What sampling emitted, compared with the target's probabilities.

    Attributes:
        temperature: that of the samples.
        alpha: the probability that correct sampling fails any of the tests.
        tests: the tests.
        impossible_tokens: tokens that were emitted although their probability is 0.
    """

    temperature: float
    alpha: float
    tests: tuple[FrequencyTest, ...]
    impossible_tokens: int = 0

    @property
    def is_passed(self) -> bool:
        """Whether chance explains everything that was seen."""
        return not self.impossible_tokens and all(test.is_passed for test in self.tests)


@dataclass(frozen=True)
class StateCheck:
    """One way to a text, compared with plain decoding.

    Attributes:
        name: the way, in words.
        num_texts: how many texts were looked at.
        error: the largest difference of logits, relative to how far logits are spread.
        limit: what rounding explains.
    """

    name: str
    num_texts: int
    error: float
    limit: float

    @property
    def is_passed(self) -> bool:
        """Whether rounding explains the difference."""
        return self.error <= self.limit


@dataclass(frozen=True)
class StateEvidence:
    """What a target said after texts that it came to in ways that corrupt states elsewhere.

    Attributes:
        rounding: the error between a text prefilled at once and the same text step by step.
        checks: the ways.
    """

    rounding: float
    checks: tuple[StateCheck, ...]

    @property
    def is_passed(self) -> bool:
        """Whether rounding explains everything."""
        return all(check.is_passed for check in self.checks)


@dataclass(frozen=True)
class Verdict:
    """Whether decoding was lossless as far as was looked, and the evidence.

    Attributes:
        subject: what was verified: target, drafter, search, dtype, device and so on.
        greedy: the evidence at temperature 0, if that was asked for.
        sampling: the evidence above it, if that was asked for.
        seconds: what it took.
        loading: the target's logits beside those of transformers' own model, if that was asked for.
        state: the evidence on different ways to texts, if that was asked for.
    """

    subject: dict[str, str]
    greedy: GreedyEvidence | None
    sampling: SamplingEvidence | None
    seconds: float
    loading: LogitsComparison | None = None
    state: StateEvidence | None = None

    @property
    def is_lossless(self) -> bool:
        """Whether nothing that was looked at contradicts it."""
        parts = (self.loading, self.state, self.greedy, self.sampling)
        return all(part.is_passed for part in parts if part is not None)

    def as_json(self) -> dict[str, Any]:
        """Returns everything as plain data, verdicts included."""
        return {
            "is_lossless": self.is_lossless,
            "subject": self.subject,
            "seconds": self.seconds,
            "loading": None if self.loading is None else self.loading.as_json(),
            "state": None if self.state is None else _state_json(self.state),
            "greedy": None if self.greedy is None else _greedy_json(self.greedy),
            "sampling": None if self.sampling is None else _sampling_json(self.sampling),
        }


def _state_json(evidence: StateEvidence) -> dict[str, Any]:
    return {
        "is_passed": evidence.is_passed,
        "rounding": evidence.rounding,
        "checks": [asdict(check) | {"is_passed": check.is_passed} for check in evidence.checks],
    }


def _greedy_json(evidence: GreedyEvidence) -> dict[str, Any]:
    return {
        "is_passed": evidence.is_passed,
        "num_prompts": evidence.num_prompts,
        "num_tokens": evidence.num_tokens,
        "num_ties": len(evidence.ties),
        "differences": [
            asdict(difference) | {"gap": difference.gap, "is_tie": difference.is_tie}
            for difference in evidence.differences
        ],
    }


def _sampling_json(evidence: SamplingEvidence) -> dict[str, Any]:
    return {
        "is_passed": evidence.is_passed,
        "temperature": evidence.temperature,
        "alpha": evidence.alpha,
        "impossible_tokens": evidence.impossible_tokens,
        "tests": [asdict(test) | {"is_passed": test.is_passed} for test in evidence.tests],
    }

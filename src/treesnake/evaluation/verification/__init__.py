"""Losslessness as an experiment on a user's own pair, with evidence.

Greedy decoding is compared with plain decoding token by token. Sampling is compared with the
target's own probabilities, which are known, by tests whose false-alarm rate is exact and whose
power is stated.
"""

from treesnake.evaluation.verification.evidence import (
    CellCount,
    Difference,
    FrequencyTest,
    GreedyEvidence,
    SamplingEvidence,
    StateCheck,
    StateEvidence,
    Verdict,
)
from treesnake.evaluation.verification.greedy import verify_greedy
from treesnake.evaluation.verification.sampling import SamplingPlan, verify_sampling
from treesnake.evaluation.verification.state import verify_state
from treesnake.evaluation.verification.verify import VerifyPlan, verify

__all__ = [
    "CellCount",
    "Difference",
    "FrequencyTest",
    "GreedyEvidence",
    "SamplingEvidence",
    "SamplingPlan",
    "StateCheck",
    "StateEvidence",
    "Verdict",
    "VerifyPlan",
    "verify",
    "verify_greedy",
    "verify_sampling",
    "verify_state",
]

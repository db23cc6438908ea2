"""How alike are drafter and target, apart from any tree, rule or search?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from treesnake.chance import TorchRng
from treesnake.errors import InvalidInputError
from treesnake.prompt import Prompt
from treesnake.protocols import Drafter, Target
from treesnake.sampling import SamplingParams, to_probs
from treesnake.shape import LevelWidths
from treesnake.tree import TokenTree

NUM_BINS = 10
ONE_CHILD = LevelWidths((1,))


@dataclass(frozen=True, eq=False)
class Agreement:
    """Sums over the positions of a text.

    Attributes:
        num_positions: how many distributions were compared.
        total_variation: half the summed difference of both distributions, summed over positions.
        num_same_choice: positions where both hold the same token most probable.
        bin_counts: per tenth of the drafter's highest probability, the number of positions.
        bin_confidence: per tenth, the sum of these probabilities.
        bin_target_probs: per tenth, the sum of the target's probabilities of the same tokens.
    """

    num_positions: int
    total_variation: float
    num_same_choice: int
    bin_counts: Int[np.ndarray, " bins"]
    bin_confidence: Float[np.ndarray, " bins"]
    bin_target_probs: Float[np.ndarray, " bins"]


def compare_models(
    target: Target,
    drafter: Drafter,
    prompt: Prompt,
    tokens: Sequence[int],
    params: SamplingParams,
) -> Agreement:
    """Compares both distributions in front of every token of a text.

    Args:
        target: a new session.
        drafter: a new session that can draw a token from probabilities.
        prompt: what the text continues.
        tokens: the text, best the target's own.
        params: the distribution; its temperature must be above 0, for at 0 there is no confidence.

    Raises:
        InvalidInputError: if the drafter has no probabilities, as prompt lookup, or at
            temperature 0.
    """
    if params.is_greedy:
        raise InvalidInputError("models are compared at a temperature above 0")
    target.prefill(prompt)
    drafter.prefill(prompt)
    rng = TorchRng(0)
    counts = np.zeros(NUM_BINS, dtype=np.int64)
    confidence, hits = np.zeros(NUM_BINS), np.zeros(NUM_BINS)
    variation, num_same = 0.0, 0
    for token in (prompt.token_ids[-1], *tokens[:-1]):
        logits = target.score(TokenTree.chain([token]))
        draft = drafter.draft(token, ONE_CHILD, params, rng)
        if draft.draft_probs is None:
            raise InvalidInputError("the drafter has no probabilities to compare")
        target_probs = to_probs(logits, params)[0].cpu()
        draft_probs = draft.draft_probs[0].cpu()
        choice = int(draft_probs.argmax())
        highest = float(draft_probs[choice])
        bin_index = min(int(highest * NUM_BINS), NUM_BINS - 1)
        counts[bin_index] += 1
        confidence[bin_index] += highest
        hits[bin_index] += float(target_probs[choice])
        variation += float((target_probs - draft_probs).abs().sum()) / 2
        num_same += choice == int(target_probs.argmax())
        target.commit((0,))
        drafter.commit([token])
    return Agreement(len(tokens), variation, num_same, counts, confidence, hits)


def binned_calibration_error(
    counts: Sequence[int], confidence: Sequence[float], target_probs: Sequence[float]
) -> float:
    """Returns the expected calibration error (Guo et al. 2017), from 0 to 1.

    The mean over positions of how far, in each tenth of confidence, the drafter's highest
    probability is from the probability that the target gives the same token.
    """
    total = sum(counts)
    gaps = [abs(mean - hit) for mean, hit in zip(confidence, target_probs, strict=True)]
    return sum(gaps) / total if total else 0.0

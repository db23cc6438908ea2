"""Does sampling have the target's distribution?

The target's probabilities are known exactly, so what is sampled is compared with them and not with
other samples. Two tests share the false alarms that are allowed. Short texts are counted over a
partition that the target's own probabilities make: this sees how a rule treats a tree's first
levels. Every token of some longer texts is placed on the scale of the target's cumulative
probabilities, from the most probable token down: this sees what goes wrong later, such as a state
that was not rolled back, after which improbable tokens become frequent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.decoder import DecoderSession, SpeculativeDecoder
from treesnake.errors import InvalidInputError
from treesnake.evaluation.verification.evidence import SamplingEvidence
from treesnake.evaluation.verification.frequencies import Counts, compare_frequencies
from treesnake.evaluation.verification.greedy import Report
from treesnake.evaluation.verification.partition import (
    IMPOSSIBLE,
    RARE,
    Partition,
    divide_texts,
)
from treesnake.evaluation.verification.plain import PlainDecoding, is_ended, last_bit
from treesnake.prompt import Prompt
from treesnake.sampling import SamplingParams, to_probs

NUM_TENTHS = 10


@dataclass(frozen=True)
class SamplingPlan:
    """How much is sampled.

    Attributes:
        params: the distribution; the temperature must be above 0.
        num_samples: short texts per prompt.
        num_tokens: tokens of each of these; trees are clipped to one less.
        num_long_tokens: tokens of the one longer text per prompt and repetition.
        num_long_texts: longer texts per prompt.
        alpha: the probability that correct sampling fails.
        seed: makes it reproducible; None draws a fresh one.

    Raises:
        InvalidInputError: if a value is out of range.
    """

    params: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=1.0))
    num_samples: int = 300
    num_tokens: int = 6
    num_long_tokens: int = 64
    num_long_texts: int = 2
    alpha: float = 0.01
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.params.is_greedy:
            raise InvalidInputError("sampling is verified at a temperature above 0")
        counts = (self.num_samples, self.num_tokens, self.num_long_tokens, self.num_long_texts)
        if min(counts) < 1:
            raise InvalidInputError("sampling is verified with at least one text of one token")
        if not 0 < self.alpha < 1:
            raise InvalidInputError(f"alpha is a probability, got {self.alpha}")

    def params_of(self, *sample: int) -> SamplingParams:
        """Returns the params with a seed of its own for each sample."""
        if self.seed is None:
            return self.params
        seed = np.random.SeedSequence([self.seed, *sample]).generate_state(1, np.uint64)[0]
        return replace(self.params, seed=int(seed >> np.uint64(1)))


def verify_sampling(
    decoder: SpeculativeDecoder,
    prompts: Sequence[Prompt],
    plan: SamplingPlan,
    *,
    report: Report | None = None,
) -> SamplingEvidence:
    """Samples texts and tests whether they have the target's distribution.

    Args:
        decoder: what is verified; its target is also the reference.
        prompts: what the texts continue.
        plan: how much, and at what false-alarm rate.
        report: is told of the progress.
    """
    chance = np.random.default_rng(plan.seed)
    short, num_impossible = _count_short_texts(decoder, prompts, plan, report)
    tenths, num_more = _count_tenths(decoder, prompts, plan, chance, report)
    share = plan.alpha / 2
    tests = (
        compare_frequencies("short texts", short, share, chance),
        compare_frequencies("tokens of longer texts", [tenths], share, chance),
    )
    return SamplingEvidence(
        plan.params.temperature, plan.alpha, tests, impossible_tokens=num_impossible + num_more
    )


def _count_short_texts(
    decoder: SpeculativeDecoder,
    prompts: Sequence[Prompt],
    plan: SamplingPlan,
    report: Report | None,
) -> tuple[list[Counts], int]:
    """Returns counts per prompt over its own cells, and how many texts cannot be."""
    session = decoder.new_session()
    plain = PlainDecoding(decoder.pair.target)
    groups: list[Counts] = []
    num_impossible = 0
    for index, prompt in enumerate(prompts):
        partition = _partition(decoder, prompt, plan)
        observed = np.zeros(len(partition.probs), dtype=np.int64)
        for number in range(plan.num_samples):
            tokens = _sample(
                decoder, prompt, plan.params_of(0, index, number), plan.num_tokens, session
            )
            cell = partition.find(tokens)
            if cell == IMPOSSIBLE:
                num_impossible += count_impossible(plain, prompt, tokens, plan.params)
            else:
                observed[cell] += 1
            if report:
                done = index * plan.num_samples + number + 1
                report("short texts", done, len(prompts) * plan.num_samples)
        groups.append(_counts(partition, observed, index))
    return groups, num_impossible


def _partition(decoder: SpeculativeDecoder, prompt: Prompt, plan: SamplingPlan) -> Partition:
    plain = PlainDecoding(decoder.pair.target)

    def next_probs(prefix: tuple[int, ...]) -> Float[Tensor, " vocab"]:
        return to_probs(plain.logits(prompt.followed_by(prefix)), plan.params)

    return divide_texts(
        next_probs,
        num_samples=plan.num_samples,
        num_tokens=plan.num_tokens,
        is_ended=partial(is_ended, end_token_ids=decoder.end_token_ids),
        describe=_describer(decoder),
    )


def _counts(partition: Partition, observed: np.ndarray, prompt_index: int) -> Counts:
    """Leaves out the cell of rare continuations where there are none."""
    kept = slice(0 if partition.probs[RARE] > 0 else 1, None)
    return Counts(observed[kept], partition.probs[kept], partition.labels[kept], prompt_index)


def _count_tenths(
    decoder: SpeculativeDecoder,
    prompts: Sequence[Prompt],
    plan: SamplingPlan,
    chance: np.random.Generator,
    report: Report | None,
) -> tuple[Counts, int]:
    """Counts in which tenth of the target's cumulative distribution each token falls.

    Tokens are ordered from the most to the least probable, and a token falls on a random point of
    the stretch that is as long as its probability. Whatever came before, the point is uniform if
    the token has the target's distribution (Rosenblatt 1952), so the points of a whole text are
    independent of each other.
    """
    session = decoder.new_session()
    plain = PlainDecoding(decoder.pair.target)
    observed = np.zeros(NUM_TENTHS, dtype=np.int64)
    num_impossible = 0
    num_texts = len(prompts) * plan.num_long_texts
    for number in range(num_texts):
        prompt = prompts[number % len(prompts)]
        tokens = _sample(decoder, prompt, plan.params_of(1, number), plan.num_long_tokens, session)
        rows = to_probs(plain.logits_along(prompt, tokens), plan.params).double().numpy()
        for probs, token in zip(rows, tokens, strict=True):
            prob = float(probs[token])
            if prob == 0:
                continue
            # Of equally probable tokens the first ones come first, as in a stable sort.
            before = float(probs[probs > prob].sum() + probs[:token][probs[:token] == prob].sum())
            point = (before + prob * chance.random()) / float(probs.sum())
            observed[min(int(point * NUM_TENTHS), NUM_TENTHS - 1)] += 1
        if not all(row[token] for row, token in zip(rows, tokens, strict=True)):
            num_impossible += count_impossible(plain, prompt, tokens, plan.params)
        if report:
            report("longer texts", number + 1, num_texts)
    labels = [f"tokens in tenth {tenth + 1} of the distribution" for tenth in range(NUM_TENTHS)]
    return Counts(observed, np.full(NUM_TENTHS, 1 / NUM_TENTHS), labels), num_impossible


def count_impossible(
    plain: PlainDecoding, prompt: Prompt, tokens: Sequence[int], params: SamplingParams
) -> int:
    """Counts the tokens of a text that top-k, top-p or min-p rule out.

    One that rounding could have moved over the edge is none: its logit is as close to the smallest
    that is kept as two ways of plain decoding are to each other.
    """
    number = 0
    rows = plain.logits_along(prompt, tokens)
    for position, (logits, token) in enumerate(zip(rows, tokens, strict=True)):
        kept_mask = to_probs(logits, params) > 0
        if not kept_mask[token]:
            other = plain.logits(prompt.followed_by(tokens[:position]))
            edge = logits[kept_mask].min()
            pair = torch.stack([edge, logits[token]])
            rounding = max(float((logits - other)[token].abs()), last_bit(pair))
            number += float(edge - logits[token]) > 2 * rounding
    return number


def _sample(
    decoder: SpeculativeDecoder,
    prompt: Prompt,
    params: SamplingParams,
    num_tokens: int,
    session: DecoderSession,
) -> tuple[int, ...]:
    return decoder.generate(prompt, params, max_new_tokens=num_tokens, session=session).token_ids


def _describer(decoder: SpeculativeDecoder) -> Callable[[Sequence[int]], str]:
    """Returns what names tokens: their text, or their numbers where there is no tokenizer."""
    tokenizer = decoder.tokenizer
    if tokenizer is None:
        return lambda tokens: " ".join(map(str, tokens))
    return lambda tokens: repr(tokenizer.decode(tokens)) if tokens else ""

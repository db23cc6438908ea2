"""Is greedy decoding that of the target alone, token for token?"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.decoder import SpeculativeDecoder
from treesnake.evaluation.verification.evidence import Difference, GreedyEvidence
from treesnake.evaluation.verification.plain import PlainDecoding, last_bit
from treesnake.prompt import Prompt
from treesnake.sampling import SamplingParams, first_largest

Report = Callable[[str, int, int], None]
"""Is told what is being done, how many parts of it are done, and of how many."""


def verify_greedy(
    decoder: SpeculativeDecoder,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 64,
    report: Report | None = None,
) -> GreedyEvidence:
    """Compares greedy decoding with plain decoding on every token of some texts.

    Plain decoding is led along the text that was generated, and at each of its tokens asked for its
    own. If all agree, plain decoding would have made the same text, by induction; and what comes
    after a first difference is judged as well, which a comparison of two texts cannot do.

    Args:
        decoder: what is verified; its target is also the reference.
        prompts: they run in one session, so that what one leaves behind would show in the next.
        max_new_tokens: of each text.
        report: is told of the progress.
    """
    plain = PlainDecoding(decoder.pair.target)
    session = decoder.new_session()
    differences: list[Difference] = []
    num_tokens = 0
    for index, prompt in enumerate(prompts):
        generation = decoder.generate(
            prompt, SamplingParams(), max_new_tokens=max_new_tokens, session=session
        )
        tokens = generation.token_ids
        rows = plain.logits_along(prompt, tokens)
        num_tokens += len(tokens)
        for position, wanted in enumerate(first_largest(rows).tolist()):
            if wanted != tokens[position]:
                differences.append(
                    _difference(index, position, prompt, tokens, rows[position], plain)
                )
        if report:
            report("greedy texts", index + 1, len(prompts))
    return GreedyEvidence(len(prompts), num_tokens, tuple(differences))


def _difference(
    prompt_index: int,
    position: int,
    prompt: Prompt,
    tokens: Sequence[int],
    logits: Float[Tensor, " vocab"],
    plain: PlainDecoding,
) -> Difference:
    emitted, wanted = tokens[position], int(first_largest(logits))
    # The same text prefilled at once: another order of the same sums, and as right.
    other = plain.logits(prompt.followed_by(tokens[:position]))
    pair = torch.tensor([emitted, wanted])
    return Difference(
        prompt_index=prompt_index,
        position=position,
        emitted_token=emitted,
        plain_token=wanted,
        emitted_logit=float(logits[emitted]),
        plain_logit=float(logits[wanted]),
        rounding=max(float((logits - other)[pair].abs().max()), last_bit(logits[pair])),
    )

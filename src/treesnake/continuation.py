"""One text from a prompt to its end: how long it may become, what ends it, where chance is from."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from treesnake.chance import TorchRng
from treesnake.constraints import Constraint, EarliestEnd
from treesnake.generate import generate
from treesnake.logprobs import as_num_top
from treesnake.outcome import FinishReason, Step
from treesnake.prompt import Prompt
from treesnake.protocols import AcceptanceRule, Drafter, Target, TreeSearch
from treesnake.sampling import SamplingParams
from treesnake.stopping import EndTokens, StopRule


@dataclass(frozen=True, eq=False)
class Continuation:
    """A text under way.

    Attributes:
        steps: runs the next step whenever it is asked.
        limit_reason: why the text ended, if no step says so.
    """

    steps: Iterator[Step]
    limit_reason: FinishReason


def continue_text(
    target: Target,
    drafter: Drafter,
    prompt: Prompt,
    params: SamplingParams,
    *,
    search: TreeSearch,
    max_new_tokens: int,
    min_new_tokens: int = 0,
    end_token_ids: Collection[int] = (),
    constraints: Sequence[Constraint] = (),
    stop_rules: Sequence[StopRule] = (),
    accept: AcceptanceRule | None = None,
    logprobs: int | None = None,
) -> Continuation:
    """Continues a prompt by at most so many tokens, as far as the target's context goes.

    Every random decision comes from the seed in `params`. Nothing runs before the first step.

    Args:
        target: the session whose output is wanted.
        drafter: the session that guesses, for the same text.
        prompt: what to continue.
        params: how to sample.
        search: the text's own.
        max_new_tokens: at most so many.
        min_new_tokens: no end token comes before so many, unless nothing else is allowed.
        end_token_ids: tokens that end the text.
        constraints: on the next token given the text so far.
        stop_rules: what else ends the text.
        accept: the acceptance rule; by default the best that is exact for each draft.
        logprobs: how many of the most probable tokens each position tells; None for no log
            probabilities.

    Raises:
        InvalidInputError: if the prompt has a token that the target does not know, or `logprobs` is
            more than all tokens.
        ContextLengthError: if the prompt does not fit into the target's context.
    """
    context_length = target.context_length
    prompt.check(target.vocab_size, context_length)
    max_length, limit_reason = len(prompt) + max_new_tokens, FinishReason.LENGTH
    if context_length is not None and context_length < max_length:
        max_length, limit_reason = context_length, FinishReason.CONTEXT
    if min_new_tokens:
        earliest = EarliestEnd(len(prompt) + min_new_tokens, frozenset(end_token_ids))
        constraints = [*constraints, earliest]
    steps = generate(
        target,
        drafter,
        prompt,
        search=search,
        params=params,
        rng=TorchRng(params.seed),
        max_length=max_length,
        accept=accept,
        constraints=constraints,
        stop_rules=[EndTokens(frozenset(end_token_ids)), *stop_rules],
        num_top_logprobs=None if logprobs is None else as_num_top(logprobs, target.vocab_size),
    )
    return Continuation(steps, limit_reason)

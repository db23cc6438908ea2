"""The method: draft a tree, score it in one pass, accept a path, commit the path.

This file knows roles and no model. What it yields is lossless: with the greedy rule the tokens are
those of plain greedy decoding, with the others they have the distribution of plain sampling.
"""

from collections.abc import Generator, Sequence
from functools import partial

from treesnake.acceptance.exact import rule_for
from treesnake.clock import num_sharing, read_s, waited_s, work_clock
from treesnake.constraints import Constraint, constrain, num_allowed
from treesnake.draft import Draft, Scored
from treesnake.lease import leased
from treesnake.logprobs import token_logprobs
from treesnake.outcome import Step, StepSeconds
from treesnake.prompt import Prompt
from treesnake.protocols import AcceptanceRule, Drafter, Target, TreeSearch
from treesnake.sampling import Distributions, Rng, SamplingParams
from treesnake.shape import OFF
from treesnake.stopping import StopRule, first_cut


@leased
def generate(
    target: Target,
    drafter: Drafter,
    prompt: Prompt,
    *,
    search: TreeSearch,
    params: SamplingParams,
    rng: Rng,
    max_length: int,
    accept: AcceptanceRule | None = None,
    constraints: Sequence[Constraint] = (),
    stop_rules: Sequence[StopRule] = (),
    num_top_logprobs: int | None = None,
) -> Generator[Step, None, None]:
    """Continues a prompt step by step, until a stop rule ends the text or it is `max_length` long.

    The first step drafts nothing, so the first token comes as soon as in plain decoding. The
    drafter is given the prompt before the second step.

    The target's session holds all tokens of the text so far but the last one, whichever step the
    caller stops at. So does the drafter's, from the second step on. The target's session serves the
    generation that took the first step last; a step of another one raises InvalidInputError.

    Args:
        target: the session whose output is wanted.
        drafter: the session that guesses.
        prompt: at least one token.
        search: chooses the shape of each tree; it is clipped to the room that is left.
        params: the distribution to sample from; the seed is in `rng`.
        rng: every random decision.
        max_length: the number of tokens, prompt included, at which to stop.
        accept: the acceptance rule; by default the best that is exact for each draft.
        constraints: applied to the target at every node.
        stop_rules: cut the text; nothing after a cut is emitted or committed.
        num_top_logprobs: how many of the most probable tokens each step tells for each of its own,
            beside the log probability of that; None for no log probabilities.
    """
    accept = accept or rule_for(params)
    context = list(prompt.token_ids)
    while len(context) < max_length:
        room, num_new = max_length - len(context), len(context) - len(prompt)
        begun, read = work_clock(), read_s()
        if num_new == 0:
            target.prefill(prompt)
        elif num_new == 1:
            drafter.prefill(prompt)
            drafter.commit(prompt.token_ids[-1:])

        started, waited = work_clock(), waited_s()
        shape, draft = OFF, Draft.nothing(context[-1])
        if num_new:
            shape = search.choose(len(context)).clipped(room - 1)
            draft = drafter.draft(context[-1], shape, params, rng)

        drafted = work_clock()
        find_cut = partial(first_cut, stop_rules, context[len(prompt) :])
        own_logits = target.score(draft.tree)
        num_texts = num_sharing()
        logits, dead_ends = constrain(
            own_logits, draft.tree, context, constraints, find_cut, is_greedy=params.is_greedy
        )

        scored = work_clock()
        distributions = Distributions(logits, params)
        acceptance = accept(draft, distributions, rng)
        num_emitted = min(room, num_allowed(acceptance.path, dead_ends))
        emitted = acceptance.emitted(draft.tree)[:num_emitted]
        cut = find_cut(emitted)
        if cut:
            emitted = emitted[: cut.num_kept]
        path = acceptance.path[: len(emitted)]
        logprobs = None
        if num_top_logprobs is not None:
            logprobs = token_logprobs(own_logits[list(path)], emitted, num_top_logprobs)

        accepted = work_clock()
        # The last emitted token is the next anchor; all before it is committed.
        target.commit(path)
        if num_new:
            drafter.commit([context[-1], *emitted[:-1]], Scored(draft, distributions, path))
        rng.advance(len(emitted))
        context += emitted

        seconds = StepSeconds(
            draft_s=drafted - started,
            score_s=scored - drafted,
            accept_s=accepted - scored,
            commit_s=work_clock() - accepted,
            queued_s=waited_s() - waited,
            prefill_s=started - begun + read_s() - read,
        )
        step = Step(
            shape,
            draft.tree,
            acceptance,
            tuple(emitted),
            seconds,
            cut.reason if cut else None,
            draft.node_probs,
            draft.num_expanded,
            draft.stream_weights,
            logprobs,
            num_texts,
        )
        if num_new:
            search.observe(step)
        yield step
        if cut:
            return

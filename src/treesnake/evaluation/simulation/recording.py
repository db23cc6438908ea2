"""Records traces: a text of the target once, and the drafter at each of its positions.

A text is greedy, or the sample of a seed: either is the same whatever is drafted.
"""

from collections.abc import Collection

from treesnake.chance import TorchRng
from treesnake.continuation import continue_text
from treesnake.drafters.none import NoDrafter
from treesnake.errors import InvalidInputError
from treesnake.evaluation.simulation.trace import RecordedTree, Trace
from treesnake.prompt import Prompt
from treesnake.protocols import PairModel
from treesnake.sampling import SamplingParams
from treesnake.search.static import StaticSearch
from treesnake.shape import OFF, BestFirst, LevelWidths, Shape

TREE = BestFirst(8, 10, 64)
"""What is recorded at each position."""

RANKS = LevelWidths((8,), sampled=False)
"""How far the next token is looked for among the drafter's most probable ones."""

GREEDY = SamplingParams()


def record(
    pair: PairModel,
    prompt: Prompt,
    *,
    num_tokens: int,
    end_token_ids: Collection[int],
    name: str = "",
    category: str = "",
    tree: Shape = TREE,
    params: SamplingParams = GREEDY,
) -> Trace:
    """Decodes plainly, then drafts at every position; it takes about a tree's drafting for each.

    Raises:
        InvalidInputError: if the drafter has no probabilities of its own, or a sample has no seed.
    """
    if not params.is_greedy and params.seed is None:
        raise InvalidInputError("a sample to record needs a seed, by which its text is known")
    target, drafter = pair.new_sessions()
    plain = continue_text(
        target,
        NoDrafter(),
        prompt,
        params,
        search=StaticSearch(OFF),
        max_new_tokens=num_tokens,
        end_token_ids=end_token_ids,
    )
    text = [token for step in plain.steps for token in step.emitted]
    rng = TorchRng(params.seed or 0)
    drafter.prefill(prompt)
    anchor = prompt.token_ids[-1]
    ranks: list[int] = []
    trees: list[RecordedTree] = []
    for index, token in enumerate(text):
        best = drafter.draft(anchor, RANKS, params, rng).tree.tokens[1:]
        ranks.append(best.index(token) if token in best else -1)
        draft = drafter.draft(anchor, tree, params, rng)
        if draft.node_probs is None:
            raise InvalidInputError(
                "traces need a drafter with probabilities, such as a Mamba; this one has none"
            )
        trees.append(
            RecordedTree(
                parents=draft.tree.parents,
                probs=tuple(round(prob, 6) for prob in draft.node_probs),
                path=draft.tree.follow([anchor, *text[index:]]),
            )
        )
        drafter.commit([anchor])
        rng.advance(1)
        anchor = token
    return Trace(name, category, len(prompt), tuple(ranks), tuple(trees))

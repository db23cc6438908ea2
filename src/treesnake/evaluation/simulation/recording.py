"""Records traces: the target's greedy text once, and the drafter at each of its positions."""

from treesnake.drafters.none import NoDrafter
from treesnake.errors import InvalidInputError
from treesnake.evaluation.simulation.trace import RecordedTree, Trace
from treesnake.generate import generate
from treesnake.prompt import Prompt
from treesnake.protocols import Drafter, Target
from treesnake.sampling import SamplingParams, TorchRng
from treesnake.search.static import StaticSearch
from treesnake.shape import OFF, BestFirst, LevelWidths, Shape
from treesnake.stopping import StopRule

TREE = BestFirst(8, 10, 64)
"""What is recorded at each position."""

RANKS = LevelWidths((8,))
"""How far the next token is looked for among the drafter's most probable ones."""

GREEDY = SamplingParams()


def record(
    target: Target,
    drafter: Drafter,
    prompt: Prompt,
    *,
    num_tokens: int,
    stop_rules: list[StopRule],
    name: str = "",
    category: str = "",
    tree: Shape = TREE,
) -> Trace:
    """Decodes plainly, then drafts at every position; it takes about a tree's drafting for each.

    Raises:
        InvalidInputError: if the drafter has no probabilities of its own.
    """
    rng = TorchRng(0)
    steps = generate(
        target,
        NoDrafter(),
        prompt,
        search=StaticSearch(OFF),
        params=GREEDY,
        rng=rng,
        max_length=len(prompt) + num_tokens,
        stop_rules=stop_rules,
    )
    text = [token for step in steps for token in step.emitted]
    drafter.prefill(prompt)
    anchor = prompt.token_ids[-1]
    ranks: list[int] = []
    trees: list[RecordedTree] = []
    for index, token in enumerate(text):
        best = drafter.draft(anchor, RANKS, GREEDY, rng).tree.tokens[1:]
        ranks.append(best.index(token) if token in best else -1)
        draft = drafter.draft(anchor, tree, GREEDY, rng)
        if draft.node_probs is None:
            raise InvalidInputError(
                "traces need a drafter with probabilities, such as a Mamba; this one has none"
            )
        trees.append(
            RecordedTree(
                parents=tuple(draft.tree.parent_list),
                probs=tuple(round(prob, 6) for prob in draft.node_probs),
                path=draft.tree.follow([anchor, *text[index:]]),
            )
        )
        drafter.commit([anchor])
        anchor = token
    return Trace(name, category, len(prompt), tuple(ranks), tuple(trees))

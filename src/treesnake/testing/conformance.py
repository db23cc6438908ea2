"""What each role must satisfy, as checks that anyone can run on their own implementation.

A check raises `AssertionError` and says which promise was broken. It takes models, and makes
sessions of them as it needs them.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from treesnake.chance import TorchRng
from treesnake.draft import Draft
from treesnake.drafters.growing import grow
from treesnake.prompt import Prompt
from treesnake.protocols import AcceptanceRule, Drafter, DrafterModel, Target, TargetModel
from treesnake.sampling import Distributions, Rng, SamplingParams, to_probs
from treesnake.shape import BestFirst, FixedTree, LevelWidths, Priced, Shape, chain
from treesnake.testing.enumeration import enumerate_outcomes
from treesnake.testing.tiny import TableModel, TinyNetwork
from treesnake.tree import TokenTree, TreeBuilder

SHAPES: tuple[Shape, ...] = (
    LevelWidths(()),
    chain(1),
    chain(4),
    LevelWidths((2, 2, 1)),
    BestFirst(2, 3, 4),
    FixedTree((0, 0, 2, 3)),
    Priced(2, (0.0, 0.3, 0.3), (0.1, 0.1, 0.2)),
)


def check_target(
    model: TargetModel, *, num_trials: int = 3, seed: int = 0, tolerance: float = 1e-4
) -> None:
    """Checks that trees are scored as their paths are, and that commit is what it says.

    Args:
        model: any target.
        num_trials: how many random texts and trees.
        seed: which ones.
        tolerance: the largest difference of logits that counts as rounding.

    Raises:
        AssertionError: naming the promise that was broken.
    """
    chance = random.Random(seed)
    vocab_size = model.new_session().vocab_size
    for _ in range(num_trials):
        prompt = _random_prompt(chance, vocab_size)
        _check_scores(model, chance, prompt, tolerance)
        _check_commit(model, chance, prompt, tolerance)
        _check_sessions_are_independent(model, chance, prompt, tolerance)
        _check_prefill(model, chance, prompt, tolerance)


def check_drafter(
    model: DrafterModel, vocab_size: int, *, num_steps: int = 6, seed: int = 0
) -> None:
    """Checks that drafts are what they say, and do not depend on how the text came about.

    Args:
        model: any drafter.
        vocab_size: that of the target.
        num_steps: how many drafts and commits in a row, for each shape.
        seed: which random texts and paths.

    Raises:
        AssertionError: naming the promise that was broken.
    """
    chance = random.Random(seed)
    for shape in SHAPES:
        for params in (SamplingParams(), SamplingParams(temperature=1.0)):
            drafting = _Drafting(model, vocab_size, shape, params, chance)
            session = model.new_session()
            text = list(_random_prompt(chance, vocab_size).token_ids)
            session.prefill(Prompt.of(text))
            session.commit(text[-1:])  # the first step of a text drafts nothing
            text.append(chance.randrange(vocab_size))
            for _ in range(num_steps):
                draft = drafting.check(session, text, "new session on the same text")
                grown = draft.tree.path_tokens(chance.randrange(len(draft.tree)))
                if chance.random() < 0.3:  # found by another drafter
                    grown.append(chance.randrange(vocab_size))
                session.commit(grown)
                text += [*grown[1:], chance.randrange(vocab_size)]
            for prompt in _prompts_after(chance, text, vocab_size):
                session.prefill(prompt)
                drafting.check(session, prompt.token_ids, "new session with the same prompt")


def check_rule(
    rule: AcceptanceRule,
    shape: Shape,
    *,
    num_trials: int = 8,
    seed: int = 0,
    num_tokens: int = 3,
) -> None:
    """Checks by exact enumeration that a rule is lossless for drafts of a shape.

    Every draft that can be drawn and every decision of the rule is gone through, over random tables
    with 3 tokens; what was emitted is continued with the target's own probabilities to
    `num_tokens` tokens, and the distribution of these must be the target's.

    Args:
        rule: any acceptance rule.
        shape: a small one, not deeper than `num_tokens` - 1.
        num_trials: how many random pairs of target and drafter.
        seed: which ones.
        num_tokens: the length of the texts.

    Raises:
        AssertionError: if the distributions differ.
        LosslessnessError: if the rule refuses such drafts.
    """
    for trial in range(num_trials):
        target = TableModel(3, seed=2 * trial + seed)
        drafter = TableModel(3, seed=2 * trial + seed + 1)
        params = SamplingParams(temperature=1.0)

        difference = total_variation(
            emitted_distribution(
                rule, drafting(drafter, shape, params), target, params, num_tokens
            ),
            sequence_distribution(target, 0, params, num_tokens),
        )
        assert difference < 1e-5, (
            f"{_name(rule)} is not lossless for {shape}: the distribution of {num_tokens} tokens "
            f"is {difference:.2g} from the target's in total variation"
        )


def drafting(drafter: TableModel, shape: Shape, params: SamplingParams) -> Callable[[Rng], Draft]:
    """Returns the random procedure that drafts over anchor 0 with a table."""
    return lambda rng: grow(0, shape, params, rng, TinyNetwork(drafter).new_state().extend).draft


def emitted_distribution(
    rule: AcceptanceRule,
    drafting: Callable[[Rng], Draft],
    target: TableModel,
    params: SamplingParams,
    num_tokens: int,
) -> dict[tuple[int, ...], float]:
    """Returns the exact distribution of the next tokens if one draft is offered to a rule.

    Where fewer than `num_tokens` are emitted, the target's own probabilities continue them.
    """

    def step(rng: Rng) -> tuple[int, ...]:
        draft = drafting(rng)
        logits = TinyNetwork(target).new_state().extend(draft.tree.tokens, draft.tree.parents)
        return tuple(rule(draft, Distributions(logits, params), rng).emitted(draft.tree))

    distribution: dict[tuple[int, ...], float] = {}
    for emitted, probability in enumerate_outcomes(step).items():
        missing = max(num_tokens - len(emitted), 0)
        tails = sequence_distribution(target, emitted[-1], params, missing)
        for tail, share in tails.items():
            tokens = (*emitted, *tail)[:num_tokens]
            distribution[tokens] = distribution.get(tokens, 0.0) + probability * share
    return distribution


def sequence_distribution(
    target: TableModel, anchor: int, params: SamplingParams, num_tokens: int
) -> dict[tuple[int, ...], float]:
    """Returns the target's own distribution of the next tokens after `anchor`."""
    if num_tokens == 0:
        return {(): 1.0}
    _, logits = target.step(target.initial(), anchor)
    return {
        (token, *tail): probability * share
        for token, probability in enumerate(to_probs(logits, params).tolist())
        for tail, share in sequence_distribution(target, token, params, num_tokens - 1).items()
    }


def total_variation(
    first: dict[tuple[int, ...], float], second: dict[tuple[int, ...], float]
) -> float:
    """Returns half the summed difference of two distributions: 0 if equal, 1 if disjoint."""
    return sum(abs(first.get(key, 0.0) - second.get(key, 0.0)) for key in {*first, *second}) / 2


def _check_scores(
    model: TargetModel, chance: random.Random, prompt: Prompt, tolerance: float
) -> None:
    """Scores several trees in one session, two of one size, and the first of them twice."""
    session = _prefilled(model, prompt)
    trees = [
        _random_tree(chance, prompt.token_ids[-1], session.vocab_size, num_nodes)
        for num_nodes in (6, 6, 11)
    ]
    first = session.score(trees[0])
    for tree in trees:
        logits = session.score(tree)
        assert logits.shape == (len(tree), session.vocab_size), (
            f"score must return one row of logits per node, got {tuple(logits.shape)}"
        )
        for leaf in (node for node, children in enumerate(tree.children) if not children):
            alone = _prefilled(model, prompt)
            for node in tree.path(leaf):
                expected = _step_through(alone, [tree.tokens[node]])
                message = f"node {node} differs from its path alone"
                _assert_close(logits[node], expected, tolerance, message)
    _assert_close(
        session.score(trees[0]), first, tolerance, "scores differ after scoring other trees"
    )


def _check_commit(
    model: TargetModel, chance: random.Random, prompt: Prompt, tolerance: float
) -> None:
    committed, stepped = _prefilled(model, prompt), _prefilled(model, prompt)
    anchor = prompt.token_ids[-1]
    for _ in range(3):
        tree, path = _commit_some_path(committed, chance, anchor)
        _step_through(stepped, tree.path_tokens(path[-1]))
        anchor = chance.randrange(committed.vocab_size)
        probe = _random_tree(chance, anchor, committed.vocab_size)
        _assert_close(
            committed.score(probe),
            stepped.score(probe),
            tolerance,
            "committing a path differs from running it token by token",
        )


def _check_sessions_are_independent(
    model: TargetModel, chance: random.Random, prompt: Prompt, tolerance: float
) -> None:
    first = _prefilled(model, prompt)
    tree = _random_tree(chance, prompt.token_ids[-1], first.vocab_size)
    alone = first.score(tree).clone()
    other = _random_prompt(chance, first.vocab_size)
    _commit_some_path(_prefilled(model, other), chance, other.token_ids[-1])
    _assert_close(
        first.score(tree), alone, tolerance, "scores differ after another session was used"
    )


def _check_prefill(
    model: TargetModel, chance: random.Random, prompt: Prompt, tolerance: float
) -> None:
    session = _prefilled(model, prompt)
    text = list(prompt.token_ids)
    for _ in range(2):
        tree, path = _commit_some_path(session, chance, text[-1])
        text += tree.path_tokens(path[-1])[1:]
        for next_prompt in _prompts_after(chance, text, session.vocab_size):
            session.prefill(next_prompt)
            anchor = TokenTree.chain(next_prompt.token_ids[-1:])
            _assert_close(
                session.score(anchor),
                _prefilled(model, next_prompt).score(anchor),
                tolerance,
                "prefill of a session in use differs from that of a new one",
            )


@dataclass(frozen=True)
class _Drafting:
    """Drafts again and again, and compares."""

    model: DrafterModel
    vocab_size: int
    shape: Shape
    params: SamplingParams
    chance: random.Random

    def check(self, session: Drafter, text: Sequence[int], reference: str) -> Draft:
        """Returns a draft, once it is the same again, and in a new session on the same text."""
        seed = self.chance.randrange(2**31)
        draft = self._draft(session, text, seed)
        _check_draft(draft, text[-1], self.shape, self.vocab_size)
        other = _random_prompt(self.chance, self.vocab_size)
        self._draft(self._prefilled(other), other.token_ids, seed)
        again = self._draft(session, text, seed)
        _assert_same_draft(
            again, draft, "the draft differs from the one before it on the same text"
        )
        fresh = self._draft(self._prefilled(Prompt.of(text)), text, seed)
        _assert_same_draft(draft, fresh, f"the draft differs from that of a {reference}")
        return again

    def _draft(self, session: Drafter, text: Sequence[int], seed: int) -> Draft:
        return session.draft(text[-1], self.shape, self.params, TorchRng(seed))

    def _prefilled(self, prompt: Prompt) -> Drafter:
        session = self.model.new_session()
        session.prefill(prompt)
        return session


def _check_draft(draft: Draft, anchor: int, shape: Shape, vocab_size: int) -> None:
    tree = draft.tree
    assert tree.tokens[0] == anchor, "node 0 of a draft must be the anchor"
    assert tree.depth <= shape.depth, f"a draft is deeper than its shape {shape}"
    assert max(tree.tokens) < vocab_size, "a drafted token is not in the target's vocabulary"
    for node, children in enumerate(tree.children):
        tokens = [tree.tokens[child] for child in children]
        assert len(set(tokens)) == len(tokens), f"node {node} has the same child twice: {tokens}"
        for child in children:
            if draft.sampled_mask[child]:
                assert draft.draft_probs is not None
                row = draft.draft_probs[node]
                assert row.shape == (vocab_size,), (
                    "draft_probs must be over the target's vocabulary"
                )
                assert abs(float(row.sum()) - 1) < 1e-3, "a row of draft_probs does not sum to 1"
                assert row[tree.tokens[child]] > 0, "a sampled token had no probability"


def _assert_same_draft(actual: Draft, expected: Draft, promise: str) -> None:
    assert actual.tree.tokens == expected.tree.tokens, promise
    assert actual.tree.parents == expected.tree.parents, promise
    assert actual.sampled_mask == expected.sampled_mask, promise
    if actual.draft_probs is not None and expected.draft_probs is not None:
        _assert_close(actual.draft_probs, expected.draft_probs, 1e-4, promise)


def _prefilled(model: TargetModel, prompt: Prompt) -> Target:
    session = model.new_session()
    session.prefill(prompt)
    return session


def _step_through(session: Target, tokens: Sequence[int]) -> Float[Tensor, " vocab"]:
    """Runs tokens one by one and returns the logits after the last."""
    logits = None
    for token in tokens:
        logits = session.score(TokenTree.chain([token]))
        session.commit((0,))
    assert logits is not None
    return logits[0]


def _random_prompt(chance: random.Random, vocab_size: int) -> Prompt:
    length = chance.choice([1, 2, 3, 9])
    return Prompt(tuple(chance.randrange(vocab_size) for _ in range(length)))


def _prompts_after(
    chance: random.Random, text: Sequence[int], vocab_size: int
) -> tuple[Prompt, ...]:
    """Returns a continuation of a text, its beginning, another text, and the text again."""
    longer = (*text, *_random_prompt(chance, vocab_size).token_ids)
    beginning = text[: chance.randrange(len(text)) + 1]
    other = _random_prompt(chance, vocab_size)
    return Prompt.of(longer), Prompt.of(beginning), other, Prompt.of(text)


def _random_tree(
    chance: random.Random, anchor: int, vocab_size: int, num_nodes: int = 6
) -> TokenTree:
    """Grows a tree; most have one size, so that what was kept of another tree would fit."""
    builder = TreeBuilder(anchor)
    while len(builder.tokens) < num_nodes:
        builder.add(chance.randrange(len(builder.tokens)), chance.randrange(vocab_size))
    return builder.build()


def _commit_some_path(
    session: Target, chance: random.Random, anchor: int
) -> tuple[TokenTree, tuple[int, ...]]:
    """Scores a tree and commits a path to one of its later nodes."""
    tree = _random_tree(chance, anchor, session.vocab_size)
    path = tree.path(chance.randrange(len(tree) // 2, len(tree)))
    session.score(tree)
    session.commit(path)
    return tree, path


def _assert_close(actual: Tensor, expected: Tensor, tolerance: float, promise: str) -> None:
    difference = float((actual - expected).abs().max())
    assert difference <= tolerance, f"{promise}: logits differ by {difference:.3g}"


def _name(rule: AcceptanceRule) -> str:
    return getattr(rule, "__name__", type(rule).__name__)

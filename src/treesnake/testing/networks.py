"""What every network must satisfy, whatever its layers are."""

import random
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.errors import InvalidInputError
from treesnake.models.tree_network import Part, TreeNetwork, TreeState
from treesnake.pauses import pausing
from treesnake.prompt import Prompt

MOST_PARTS = 4


def check_network(
    network: TreeNetwork,
    *,
    num_trials: int = 3,
    seed: int = 0,
    tolerance: float = 1e-4,
    longest: int = 24,
) -> None:
    """Checks that trees, shared passes and snapshots give what plain texts give.

    Args:
        network: any network.
        num_trials: how many random texts and trees.
        seed: which ones.
        tolerance: the largest difference of logits that counts as rounding; 0 for networks that
            promise the same bits.
        longest: tokens of the longest text; its context must hold 16 more.

    Raises:
        AssertionError: naming the promise that was broken.
    """
    chance = random.Random(seed)
    for _ in range(num_trials):
        trial = _Trial(network, chance, tolerance, longest)
        for check in (
            trial.check_nodes,
            trial.check_shared_pass,
            trial.check_snapshot,
            trial.check_prefill,
            trial.check_pause,
            trial.check_refusals,
        ):
            check()


class _Trial:
    def __init__(
        self, network: TreeNetwork, chance: random.Random, tolerance: float, longest: int
    ) -> None:
        self._network = network
        self._chance = chance
        self._tolerance = tolerance
        self._longest = longest

    def check_nodes(self) -> None:
        """Grows a tree in several calls; each node must have the logits of its path as a text."""
        text = self._text()
        state = self._filled(text)
        tokens: list[int] = []
        parents: list[int] = []
        for _ in range(3):
            new_tokens, new_parents = self._nodes(len(tokens))
            logits = state.extend(new_tokens, new_parents)
            tokens += new_tokens
            parents += new_parents
            for row, node in enumerate(range(len(tokens) - len(new_tokens), len(tokens))):
                path = _path(parents, node)
                plain = self._filled([*text, *(tokens[step] for step in path[:-1])])
                self._assert_close(
                    logits[row],
                    plain.extend([tokens[node]], [-1])[0],
                    "a node differs from its path as a text",
                )
        path = _path(parents, self._chance.randrange(len(tokens)))
        state.commit(path)
        assert state.length == len(text) + len(path), "length is not that of the committed text"
        self._assert_same(
            state,
            self._filled([*text, *(tokens[node] for node in path)]),
            "committing a path differs from the path as a text",
        )

    def check_shared_pass(self) -> None:
        """Runs several texts in shared passes, and each of them alone."""
        texts = [self._text() for _ in range(self._chance.randint(1, MOST_PARTS))]
        together, alone = map(self._filled, texts), map(self._filled, texts)
        pairs = list(zip(together, alone, strict=True))
        sizes = [0] * len(pairs)
        for _ in range(3):
            members = self._chance.sample(range(len(pairs)), self._chance.randint(1, len(pairs)))
            grown = [self._nodes(sizes[member]) for member in members]
            parts = [
                Part(pairs[member][0], *nodes) for member, nodes in zip(members, grown, strict=True)
            ]
            for member, nodes, logits in zip(
                members, grown, self._network.extend_all(parts), strict=True
            ):
                self._assert_close(
                    logits,
                    pairs[member][1].extend(*nodes),
                    "a part of a shared pass differs from the same nodes alone",
                )
                sizes[member] += len(nodes[0])
        for state, other in pairs:
            self._assert_same(state, other, "a shared pass left a text as another")

    def check_snapshot(self) -> None:
        """Comes back to a text by a snapshot, in the same state and in a new one."""
        text = self._text()
        state = self._filled(text)
        snapshot = state.snapshot()
        assert snapshot.num_bytes >= 0
        state.extend(*self._nodes(0))
        state.commit([0])
        for restored in (state, self._network.new_state()):
            restored.restore(snapshot)
            assert restored.length == len(text), "a restored text has another length"
            self._assert_same(restored, self._filled(text), "a restored text differs")
            longer = [*text, *self._text()][: self._longest]
            restored.prefill(_prompt(longer))
            self._assert_same(
                restored, self._filled(longer), "a text that goes on from a snapshot differs"
            )
            state.restore(snapshot)

    def check_prefill(self) -> None:
        """Gives one state prompt after prompt: longer, shorter, edited, another, the first."""
        text = self._text()
        state = self._filled(text)
        cut = self._chance.randrange(len(text)) if text else 0
        edited = [*text[:cut], *self._text()][: self._longest]
        border = (cut,) if 0 < cut < len(edited) else ()
        for wanted in ([*text, *self._tokens(3)], text[:cut], edited, self._text(), text):
            state.extend(*self._nodes(0))
            state.prefill(_prompt(wanted, border))
            self._assert_same(
                state, self._filled(wanted), "prefill of a state in use differs from a new one's"
            )

    def check_pause(self) -> None:
        """Ends a prefill where it pauses; the state holds a text still."""
        text, chance = self._text(), self._chance

        def stop() -> None:
            if chance.random() < 0.5:
                raise InterruptedError

        for state in (self._network.new_state(), self._filled(self._text())):
            with suppress(InterruptedError), pausing(stop):
                state.prefill(_prompt(text))
            state.prefill(_prompt(text))
            self._assert_same(
                state, self._filled(text), "prefill after one that a pause ended differs"
            )

    def check_refusals(self) -> None:
        """Asks for what cannot be, which must change nothing."""
        text = self._text()
        state, other = self._filled(text), self._filled(text)
        vocab_size = self._network.vocab_size
        state.extend([1 % vocab_size, 0], [-1, 0])
        demands: tuple[Callable[[], object], ...] = (
            lambda: state.extend([0], [2]),
            lambda: state.extend([], []),
            lambda: state.extend([0, 0], [-1]),
            lambda: state.commit([1]),
            lambda: state.commit([0, 0]),
            lambda: state.extend([vocab_size], [-1]),
            lambda: state.extend([-1], [-1]),
            lambda: self._network.extend_all([Part(state, [0], [-1]), Part(state, [0], [-1])]),
            lambda: self._network.extend_all([Part(other, [0], [-1]), Part(state, [0], [2])]),
        )
        for number, demand in enumerate(demands):
            try:
                demand()
            except InvalidInputError:
                continue
            raise AssertionError(f"demand {number} of those that cannot be met was not refused")
        state.commit([0, 1])
        expected = self._filled([*text, 1 % vocab_size, 0])
        self._assert_same(state, expected, "a demand that was refused changed the tree")
        message = "a pass that was refused for one part has changed another"
        self._assert_same(other, self._filled(text), message)

    def _tokens(self, number: int) -> list[int]:
        return [self._chance.randrange(self._network.vocab_size) for _ in range(number)]

    def _text(self) -> list[int]:
        return self._tokens(self._chance.randrange(self._longest))

    def _nodes(self, num_before: int) -> tuple[list[int], list[int]]:
        """Returns up to four new nodes for a tree that has some."""
        number = self._chance.randint(1, 4)
        return self._tokens(number), [
            self._chance.randrange(-1, num_before + index) for index in range(number)
        ]

    def _filled(self, text: Sequence[int]) -> TreeState:
        state = self._network.new_state()
        state.prefill(_prompt(text))
        return state

    def _assert_same(self, actual: TreeState, expected: TreeState, promise: str) -> None:
        tokens, parents = self._tokens(3), [-1, 0, -1]
        self._assert_close(
            actual.extend(tokens, parents), expected.extend(tokens, parents), promise
        )
        actual.commit(())

    def _assert_close(
        self,
        actual: Float[Tensor, "*rows vocab"],
        expected: Float[Tensor, "*rows vocab"],
        promise: str,
    ) -> None:
        assert actual.shape == expected.shape, f"{promise}: shapes differ"
        if self._tolerance == 0:
            assert torch.equal(actual, expected), f"{promise}: the bits of the logits differ"
            return
        difference = float((actual - expected).abs().max())
        assert difference <= self._tolerance, f"{promise}: logits differ by {difference:.3g}"


def _prompt(text: Sequence[int], borders: tuple[int, ...] = ()) -> Prompt:
    """Returns the prompt of which a state holds this text: one token more."""
    inside = tuple(border for border in borders if border <= len(text))
    return Prompt((*text, 0), borders=inside)


def _path(parents: Sequence[int], node: int) -> list[int]:
    """Returns the nodes from the text down to a node."""
    path = [node]
    while parents[path[0]] >= 0:
        path.insert(0, parents[path[0]])
    return path

"""Any network as a drafter.

Mamba and Mamba-2 (Choi et al. 2025) take the same memory and time however long the text is. A
Transformer's cache grows with the text; a window keeps it small.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from treesnake.chance import TorchRng
from treesnake.draft import Draft, Scored
from treesnake.drafters.draft_state import DraftState
from treesnake.drafters.growing import GrownDraft, grow, grown_at_once
from treesnake.drafters.late import LateDrafter
from treesnake.drafters.views import View, as_it_is, natural_view
from treesnake.drafters.vocabulary import (
    SAME_VOCABULARY,
    DraftVocabulary,
    SameVocabulary,
    VocabularyMap,
)
from treesnake.drafters.window import WindowedDrafter
from treesnake.errors import InvalidInputError
from treesnake.models.tree_network import TreeNetwork, TreeState
from treesnake.prompt import Prompt
from treesnake.sampling import Rng, SamplingParams
from treesnake.shape import Shape, is_off

MOST_ROOM = 64
"""Positions of a context that are kept free for trees, if it is long enough."""


@dataclass(frozen=True, eq=False)
class NetworkDrafterModel:
    """Makes drafter sessions over a network.

    A text longer than the network's context, or a prompt longer than `window`, is seen through a
    window on its end; see `WindowedDrafter`. It slides where memory and time grow with the text.

    Attributes:
        network: the weights.
        vocabulary: how its tokens relate to the target's; None if they are the same.
        window: how many tokens it sees at most; None is all that its context holds. A recurrent
            network sees no more of a prompt, and all of the answer.
        view: how it reads prompts with images; None is whole if it sees them, else without them.

    Raises:
        InvalidInputError: if the window is too small, or larger than the context.
    """

    network: TreeNetwork
    vocabulary: VocabularyMap | None = None
    window: int | None = None
    view: View | None = None

    def __post_init__(self) -> None:
        if self.window is None:
            return
        if self.window < 2:
            raise InvalidInputError(f"a drafter's window has at least 2 tokens, got {self.window}")
        largest = self.largest_window
        if largest is not None and self.window > largest:
            raise InvalidInputError(
                f"the drafter can look at {largest} tokens at most, got a window of {self.window}"
            )

    @property
    def max_depth(self) -> int | None:
        """How deep a tree may be, so that it fits into the context behind the window."""
        context_length = self.network.context_length
        return None if context_length is None else min(MOST_ROOM, context_length // 4)

    @property
    def largest_window(self) -> int | None:
        """How many tokens the context holds in front of a tree; None if it has no limit."""
        context_length, max_depth = self.network.context_length, self.max_depth
        if context_length is None or max_depth is None:
            return None
        return context_length - max_depth

    @property
    def slides(self) -> bool:
        """Whether the window moves while the answer grows: not where a text has one size."""
        return self.network.context_length is not None

    def new_session(self) -> LateDrafter:
        """Returns a session with an empty state."""
        view = self.view or natural_view(self.network)
        state = self.network.new_state()
        window = self.window or self.largest_window
        if window is None:
            return LateDrafter(NetworkDrafter(state, self.vocabulary, self.max_depth, view))
        drafter = NetworkDrafter(state, self.vocabulary, self.max_depth)
        return LateDrafter(WindowedDrafter(drafter, window, view, slides=self.slides))


class NetworkDrafter:
    """A drafter session: a network's state of one text, on which trees grow.

    Args:
        state: the state of an empty text.
        vocabulary: how the network's tokens relate to the target's; None if they are the same.
        max_depth: no tree becomes deeper.
        view: how prompts with images are read.
    """

    def __init__(
        self,
        state: TreeState,
        vocabulary: VocabularyMap | None = None,
        max_depth: int | None = None,
        view: View = as_it_is,
    ) -> None:
        self._vocabulary = vocabulary or SAME_VOCABULARY
        self._text = DraftState(state, self._vocabulary)
        self._max_depth = max_depth
        self._view = view
        self._grown: GrownDraft | None = None
        has_all_columns = isinstance(self._vocabulary, SameVocabulary | DraftVocabulary)
        self._at_once = self._text.at_once if has_all_columns else None

    @property
    def num_bytes(self) -> int:
        """What the text takes in memory."""
        return self._text.num_bytes

    def prefill(self, prompt: Prompt) -> None:
        """Makes the state hold every token of its view of the prompt but the last."""
        self._grown = None
        self._text.prefill(self._view(prompt))

    def draft(self, anchor: int, shape: Shape, params: SamplingParams, rng: Rng) -> Draft:
        """Grows a tree over `anchor`; see `treesnake.drafters.growing.grow`."""
        self._grown = None
        self._text.forget_tree()
        if self._max_depth is not None:
            shape = shape.clipped(self._max_depth)
        if not is_off(shape):
            self._text.catch_up()
        self._grown = self._grow_at_once(anchor, shape, params, rng) or grow(
            anchor, shape, params, rng, self._text.extend, self._vocabulary
        )
        return self._grown.draft

    def _grow_at_once(
        self, anchor: int, shape: Shape, params: SamplingParams, rng: Rng
    ) -> GrownDraft | None:
        """Grows a tree of chosen tokens in one pass of the network, if it can; else None."""
        if self._at_once is None:
            return None
        fixed = shape.as_tree()
        if fixed is None or not fixed.depth or not self._at_once.can_grow_fixed(fixed):
            return None
        noise = None
        if not params.is_greedy:
            if fixed.sampled or not isinstance(rng, TorchRng):
                return None
            noise = rng.waiting_times.noise(params.temperature)
        columns = self._text.grow_fixed(anchor, fixed, noise)
        return grown_at_once(anchor, fixed, columns, self._vocabulary)

    def commit(self, token_ids: Sequence[int], scored: Scored | None = None) -> None:
        """Takes tokens into the state, which is behind by those that it has not seen."""
        seen = () if self._grown is None else self._grown.seen(token_ids)
        self._text.commit(seen, token_ids)
        self._grown = None

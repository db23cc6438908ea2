"""A drafter of one's own: it guesses that the text counts on, and is checked for its promises."""

from collections.abc import Sequence

from treesnake import Prompt, SamplingParams, SpeculativeDecoder
from treesnake.draft import Draft, Scored
from treesnake.pairs import Pair
from treesnake.sampling import Rng
from treesnake.shape import Shape
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import TableModel, TinyNetwork, check_drafter
from treesnake.tree import TreeBuilder

VOCAB_SIZE = 10


class CountingModel:
    """Makes sessions; a drafter with weights would hold them here, for all sessions to share."""

    def new_session(self) -> "Counting":
        return Counting()


class Counting:
    """Drafts the numbers after the anchor. It needs no state: the anchor says it all."""

    def prefill(self, prompt: Prompt) -> None:
        """Would read the prompt."""

    def draft(self, anchor: int, shape: Shape, params: SamplingParams, rng: Rng) -> Draft:
        length = min(shape.depth, shape.num_drafted)
        builder = TreeBuilder(anchor)
        builder.add_path([(anchor + step) % VOCAB_SIZE for step in range(1, length + 1)])
        return Draft.chosen(builder.build())

    def commit(self, token_ids: Sequence[int], scored: Scored | None = None) -> None:
        """Would read the tokens by which the text grew."""


check_drafter(CountingModel(), VOCAB_SIZE)

decoder = SpeculativeDecoder(
    Pair(NetworkTargetModel(TinyNetwork(TableModel(VOCAB_SIZE))), CountingModel())
)
print(decoder.generate([1, 2, 3], max_new_tokens=12).token_ids)

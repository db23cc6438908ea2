"""Drafting in text, for a target with another tokenizer.

The drafter reads and writes its own tokens. The target's tokens are read as the text that they
spell, and a conversation as the drafter's own chat template has it. The drafter's paths are text,
too: the target's tokenizer encodes them behind the target's own tokens. Nodes found so are chosen,
whatever the shape says: the drafter's probabilities are of its own tokens, so no rule could use
them.

Of the text, the network's state holds whole pieces only (`treesnake.drafters.pieces`). The open
piece is run at the head of each draft. So nothing is ever rolled back, and the network reads what
its tokenizer writes for the whole text.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from treesnake.conversation import Message, render
from treesnake.draft import Draft, Scored
from treesnake.drafters.draft_state import MOST_BEHIND
from treesnake.drafters.first_tokens import FirstTokens, first_tokens
from treesnake.drafters.growing import GrownDraft, grow, with_noise
from treesnake.drafters.late import LateDrafter
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.pieces import OpenPiece, PieceEncoder, PieceReader
from treesnake.drafters.re_encoding import PathEncoder, PathTree, WrittenPath
from treesnake.drafters.spelling import Spelling
from treesnake.drafters.vocabulary import SAME_VOCABULARY
from treesnake.drafters.window import WindowedDrafter, first_seen
from treesnake.errors import InvalidInputError
from treesnake.models.tree_network import TreeState
from treesnake.prompt import Prompt, num_shared
from treesnake.sampling import Rng, SamplingParams
from treesnake.shape import Shape, is_off
from treesnake.tree import TokenTree

MOST_OPEN = 64
"""Bytes of an open piece behind which nothing is drafted: all of its tokens run at each draft."""


@dataclass(frozen=True, eq=False)
class Translation:
    """Two tokenizers and what joins them.

    Attributes:
        drafter: the drafter's tokenizer.
        target: the target's.
        drafter_ends: the drafter's tokens that end a text.
        target_ends: the target's.

    Raises:
        InvalidInputError: if a tokenizer is not one of the package tokenizers, or the drafter's
            cannot read a text in parts.
    """

    drafter: PreTrainedTokenizerBase
    target: PreTrainedTokenizerBase
    drafter_ends: Collection[int] = ()
    target_ends: Collection[int] = ()

    def __post_init__(self) -> None:
        _ = self.reader, self.paths, self.special_tokens

    @cached_property
    def reader(self) -> PieceReader:
        """Reads the target's tokens."""
        encoder = PieceEncoder(_fast(self.drafter))
        return PieceReader(Spelling(_fast(self.target)), encoder, self._mark)

    @cached_property
    def paths(self) -> PathEncoder:
        """Writes the target's tokens."""
        return PathEncoder(_fast(self.target), self.reader.spelling)

    @cached_property
    def special_tokens(self) -> Mapping[int, int]:
        """The target's special token for each of the drafter's that has one.

        They are matched by name. All ends of a text stand for the target's end.
        """
        ours, theirs = self.reader.encoder.spelling.special, self.reader.spelling.special
        id_of = {name: index for index, name in theirs.items()}
        matched = {index: id_of[name] for index, name in ours.items() if name in id_of}
        end = self._end
        if end is None:
            return matched
        return dict.fromkeys(self.drafter_ends, end) | {
            index: token
            for index, token in matched.items()
            if index not in self.drafter_ends or token in self.target_ends
        }

    def rendered(self, messages: Sequence[Message], *, is_answered: bool) -> str | None:
        """Returns a conversation as the drafter's chat template has it; None if it cannot.

        Args:
            messages: the conversation.
            is_answered: whether an answer comes next, so that its beginning is part of the text.
        """
        tokenizer: Any = self.drafter
        if not messages or not tokenizer.chat_template:
            return None
        template = partial(
            tokenizer.apply_chat_template, add_generation_prompt=is_answered, tokenize=False
        )
        try:
            return render(messages, template)
        except InvalidInputError:
            return None

    @property
    def _end(self) -> int | None:
        """The target's token that ends a text, the one of its tokenizer if there are several."""
        stated = self.target.eos_token_id
        if isinstance(stated, int) and stated in self.target_ends:
            return stated
        return min(self.target_ends, default=None)

    @cached_property
    def _marks(self) -> Mapping[str, str]:
        ours, theirs = self.reader.encoder.spelling.special, self.reader.spelling.special
        names = {*ours.values()}
        marks = {name: name for name in theirs.values() if name in names}
        ends = [ours[index] for index in sorted(self.drafter_ends) if index in ours]
        for index in self.target_ends:
            if index in theirs and ends:
                marks.setdefault(theirs[index], ends[0])
        if isinstance(self.target.bos_token, str):
            own = self.drafter.bos_token
            marks.setdefault(self.target.bos_token, own if isinstance(own, str) else "")
        return marks

    def _mark(self, name: str) -> str:
        """Returns the drafter's name for a special token; a line break if it knows none."""
        return self._marks.get(name, "\n")


@dataclass(frozen=True, eq=False)
class TextDrafterModel:
    """Makes sessions of a network that drafts in text.

    Attributes:
        own: the network with its own tokens, as if it drafted for itself.
        translation: between its tokens and the target's.
    """

    own: NetworkDrafterModel
    translation: Translation

    @cached_property
    def first_tokens(self) -> FirstTokens:
        """How the tokens that the network drafts are written in the target's."""
        vocabulary, reader = self.own.vocabulary or SAME_VOCABULARY, self.translation.reader
        drafted = vocabulary.known_ids(self.own.network.vocab_size).tolist()
        special = self.translation.special_tokens
        return first_tokens(drafted, reader.encoder.spelling, reader.spelling, special)

    def new_session(self) -> LateDrafter:
        """Returns a session with an empty state."""
        drafter, largest = TextDrafter(self), self.own.largest_window
        if largest is None:
            return LateDrafter(drafter)
        # A token of the target may be several of the drafter's.
        window = self.own.window or max(largest // 2, 2)
        return LateDrafter(WindowedDrafter(drafter, window))


class TextDrafter:
    """A session: a text in the drafter's tokens, on which its trees grow.

    Args:
        model: the network and its translation.
    """

    def __init__(self, model: TextDrafterModel) -> None:
        own, translation = model.own, model.translation
        self._model = model
        self._state: TreeState = own.network.new_state()
        self._vocabulary = own.vocabulary or SAME_VOCABULARY
        self._max_depth = own.max_depth
        self._window = None if own.slides else own.window
        self._context_length = own.network.context_length
        self._translation = translation
        self._reader = translation.reader
        self._paths = translation.paths
        self._special = translation.special_tokens
        self._forget_text()
        self._forget_draft()

    @property
    def num_bytes(self) -> int:
        """What the text takes in memory."""
        return self._state.num_bytes

    @property
    def held(self) -> tuple[int, ...]:
        """The drafter's tokens of the text that will never change."""
        self._read()
        return tuple(self._held)

    @property
    def open_tokens(self) -> list[int]:
        """The drafter's tokens of the piece behind them, as it is now."""
        self._read()
        return self._reader.tokens(self._open)

    def prefill(self, prompt: Prompt) -> None:
        """Makes the session hold every token of the prompt but the last; it reads text alone.

        A conversation is read as the drafter's own chat template has it, to which the last token of
        the prompt belongs. A recurrent network reads the end of it only, if it has a window.
        """
        self._forget_draft()
        own = (
            None if prompt.inputs else self._translation.rendered(prompt.messages, is_answered=True)
        )
        borders = self._read_text(prompt) if own is None else self._read_conversation(prompt, own)
        if self._window is not None:
            start = first_seen(len(self._held), self._window)
            del self._held[:start]
            borders = tuple(border - start for border in borders if border > start)
        if self._fits(1):
            next_token = (self.open_tokens or [0])[0]
            self._state.prefill(Prompt((*self._held, next_token), borders=borders))

    def _read_conversation(self, prompt: Prompt, own: str) -> tuple[int, ...]:
        """Makes the text a conversation in the drafter's template; returns its borders."""
        self._forget_text()
        closed, piece = self._reader.begin(own)
        history = self._translation.rendered(prompt.messages, is_answered=False) or ""
        border = len(self._reader.begin(history)[0]) if own.startswith(history) else 0
        self._tokens, self._held, self._open = list(prompt.token_ids[:-1]), closed, piece
        self._num_read = len(prompt)
        return (border,) if border else ()

    def _read_text(self, prompt: Prompt) -> tuple[int, ...]:
        """Makes the text that of the target's tokens; returns its borders in the drafter's."""
        prompt = prompt.without_inputs()
        wanted = prompt.token_ids[:-1]
        if self._holds_anchor:
            self._forget_text()
        num_kept = num_shared(self._tokens, wanted)
        if num_kept < len(self._tokens):
            self._forget_text()
            num_kept = 0
        borders: list[int] = []
        for end in sorted({each for each in prompt.borders if num_kept < each < len(wanted)}):
            self._tokens += wanted[len(self._tokens) : end]
            self._read()
            borders.append(len(self._held))
        self._tokens += wanted[len(self._tokens) :]
        self._read()
        return tuple(borders)

    def draft(self, anchor: int, shape: Shape, params: SamplingParams, rng: Rng) -> Draft:
        """Grows a tree of text over `anchor`, and encodes its paths.

        In sampled text the tokens come first that the target would draw by the noise of their
        places, if it had the network's distribution.
        """
        self._forget_draft()
        if self._max_depth is not None:
            shape = shape.clipped(self._max_depth)
        if is_off(shape):
            return Draft.nothing(anchor)
        self._read()
        closed, piece = self._with_anchor(anchor)
        if len(piece.text.encode()) > MOST_OPEN:
            return Draft.nothing(anchor)
        ahead = [*closed, *self._reader.tokens(piece)]
        if not ahead or not self._fits(len(ahead) + shape.depth):
            return Draft.nothing(anchor)
        self._catch_up(ahead[0])
        self._head = [*self._held[self._state.length :], *ahead]
        if not params.is_greedy and not piece.partial:
            self._noise = _Noise(self._model.first_tokens, rng, params.temperature)
        grown = grow(
            self._head[-1], _chosen(shape), SamplingParams(), rng, self._extend, self._vocabulary
        )
        return self._in_target_tokens(anchor, grown, shape, len(piece.partial))

    def commit(self, token_ids: Sequence[int], scored: Scored | None = None) -> None:
        """Takes tokens into the text; those of whole pieces that were run become state.

        They are read where the network was run, or else with the next draft.
        """
        self._tokens += token_ids
        if not self._node_of:
            return
        self._read()
        path: list[int] = []
        for token in self._held[self._state.length :]:
            node = self._node_of.get((path[-1] if path else -1, token))
            if node is None:
                break
            path.append(node)
        self._state.commit(path)
        self._node_of = {}

    def _read(self) -> None:
        """Reads the tokens that were not read yet; an interruption leaves an empty text."""
        tokens, held, piece = self._tokens, self._held, self._open
        unread = tokens[self._num_read :]
        if not unread:
            return
        self._forget_text()
        closed, piece = self._reader.read(piece, unread)
        held += closed
        self._tokens, self._held, self._open = tokens, held, piece
        self._num_read = len(tokens)

    @property
    def _holds_anchor(self) -> bool:
        """Whether the text has the anchor, which is no token of `_tokens` yet."""
        return self._num_read > len(self._tokens)

    def _with_anchor(self, anchor: int) -> tuple[list[int], OpenPiece]:
        """Returns what the anchor closes, and the piece that is open behind it."""
        if self._holds_anchor:
            return [], self._open
        return self._reader.read(self._open, [anchor])

    def _forget_text(self) -> None:
        self._num_read = 0
        self._tokens: list[int] = []
        self._held: list[int] = []
        self._open = OpenPiece()

    def _forget_draft(self) -> None:
        """Empties the tree, also what was grown of it before an interruption."""
        self._state.commit(())
        self._head: list[int] = []
        self._node_of: dict[tuple[int, int], int] = {}
        self._noise: _Noise | None = None

    def _fits(self, num_ahead: int) -> bool:
        """Tells whether the network's context holds the text and so many tokens more."""
        return self._context_length is None or len(self._held) + num_ahead <= self._context_length

    def _catch_up(self, next_token: int) -> None:
        """Runs whole pieces as text, if too many of them are not in the state yet."""
        if len(self._held) - self._state.length > MOST_BEHIND:
            self._state.prefill(Prompt((*self._held, next_token)))

    def _extend(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> Float[Tensor, "new_nodes network_logits"]:
        """Appends nodes numbered from the last token of the head; the head goes in before them."""
        before = len(self._head) - 1
        if parents[0] < 0:
            tokens, behind = self._head, list(range(-1, before))
        else:
            tokens, behind = token_ids, [before + parent for parent in parents]
        for token, parent in zip(tokens, behind, strict=True):
            self._node_of.setdefault((parent, token), len(self._node_of))
        logits = self._state.extend(tokens, behind)[-len(token_ids) :]
        return logits if self._noise is None else self._noise.added(logits, token_ids, parents)

    def _in_target_tokens(
        self, anchor: int, grown: GrownDraft, shape: Shape, num_partial: int
    ) -> Draft:
        own = grown.draft.tree
        leaves = [node for node, below in enumerate(own.children) if not below and node]
        leaves.sort(key=own.path)  # of siblings the more probable one comes first, as in `own`
        written = [self._written(own, leaf) for leaf in leaves]
        text = [*self._tokens[-32:], anchor]
        found = self._paths.continuations(text, [path.data for path in written])
        tree = PathTree(anchor, self._reader.spelling, grown.draft.node_probs)
        for path, tokens in zip(written, found, strict=True):
            if tokens or not path.data:
                tree.add(path, tokens, num_partial, shape.depth)
        levels = grown.draft.num_expanded
        return tree.draft(shape, own.num_expanded if levels is None else levels)

    def _written(self, tree: TokenTree, leaf: int) -> WrittenPath:
        """Returns the text below the root down to a leaf, or to the first special token."""
        spelling = self._reader.encoder.spelling
        data, ends, nodes = b"", list[int](), list[int]()
        for node in tree.path(leaf)[1:]:
            token = tree.tokens[node]
            spelled = spelling.of(token)
            if isinstance(spelled, str) or token in self._special:
                return WrittenPath(data, (*ends,), (*nodes,), self._special.get(token), node)
            data += spelled
            ends.append(len(data))
            nodes.append(node)
        return WrittenPath(data, (*ends,), (*nodes,))


class _Noise:
    """The noise of one draft's nodes, whose places in the target's text follow from their tokens.

    Args:
        first: how the network's tokens are written in the target's.
        rng: tells the noise.
        temperature: how much it counts.
    """

    def __init__(self, first: FirstTokens, rng: Rng, temperature: float) -> None:
        self._first = first
        self._rng = rng
        self._temperature = temperature
        self._places: list[int] = []

    def added(
        self,
        logits: Float[Tensor, "new_nodes columns"],
        token_ids: Sequence[int],
        parents: Sequence[int],
    ) -> Float[Tensor, "new_nodes columns"]:
        """Returns the logits after new nodes with noise; a parent is -1 behind the anchor."""
        new = [
            0 if parent < 0 else self._places[parent] + self._first.counts.get(token, 1)
            for token, parent in zip(token_ids, parents, strict=True)
        ]
        self._places += new
        return with_noise(logits, new, self._first.ids, self._temperature, self._rng)


def _chosen(shape: Shape) -> Shape:
    """Returns the shape with the most probable children in the place of drawn ones."""
    fixed = shape.as_tree()
    return shape if fixed is None else replace(fixed, sampled=False)


def _fast(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InvalidInputError(
            f"drafting in text needs tokenizers of the package tokenizers, and "
            f"{tokenizer.name_or_path or 'one of the two'} is a {type(tokenizer).__name__}; draft "
            'the tokens in common with tokens="shared"'
        )
    return tokenizer

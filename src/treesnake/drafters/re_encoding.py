"""What a drafter wrote, in the target's tokens: paths of text become one tree."""

from bisect import bisect_left
from codecs import getincrementaldecoder
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from treesnake.draft import Draft
from treesnake.drafters.spelling import Spelling
from treesnake.shape import Shape
from treesnake.tree import TokenTree, TreeBuilder

MOST_TAIL = 8
"""Tokens of the target's text that are encoded again with each path."""

MOST_CACHED = 4096
"""Encoded texts that are kept."""

WHITE_SPACE = b" \t\n\r"


@dataclass(frozen=True)
class WrittenPath:
    """A path of the drafter's tree as text.

    Attributes:
        data: what its tokens spell.
        ends: for each of its tokens the bytes up to its end.
        nodes: the number of each token's node in the drafter's tree.
        last: the target's special token that comes behind, such as its end; None if none does.
        last_node: the drafter's node of that.
    """

    data: bytes
    ends: tuple[int, ...]
    nodes: tuple[int, ...]
    last: int | None = None
    last_node: int = 0


class PathEncoder:
    """Encodes paths behind the end of the target's own text.

    Tokens that the target has emitted stay as they are. Where the target's tokenizer would write
    the end of the text otherwise with a path behind it, the path is encoded by itself.

    Args:
        tokenizer: the target's.
        spelling: the target's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, spelling: Spelling) -> None:
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._spelling = spelling
        self._cache: dict[str, list[int]] = {}

    def continuations(self, token_ids: Sequence[int], paths: Sequence[bytes]) -> list[list[int]]:
        """Returns the target's tokens of each path behind a text.

        Args:
            token_ids: the text, or its end.
            paths: bytes behind the last whole character of the text. So each repeats the bytes of a
                character that the text has begun; one that begins otherwise has no tokens.
        """
        tail = self._tail(token_ids)
        decoder = getincrementaldecoder("utf-8")("replace")
        before = tail.guard + decoder.decode(tail.data)
        partial = decoder.getstate()[0]
        known = [*self._ids(tail.guard), *tail.token_ids]
        return [self._continuation(before, known, partial, path) for path in paths]

    def _continuation(
        self, before: str, known: Sequence[int], partial: bytes, path: bytes
    ) -> list[int]:
        """Returns the tokens of a path behind a text, of which the tokens are known."""
        text = _valid_text(path)
        if not path.startswith(partial) or not text:
            return []
        tokens = self._ids(before + text)
        if tokens[: len(known)] == known:
            return tokens[len(known) :]
        return [] if partial else self._ids_alone(text)

    def _ids_alone(self, text: str) -> list[int]:
        """Returns the tokens of a text behind another one that they do not depend on."""
        guard = "a" if text[0].isspace() else "\n"
        before, both = self._ids(guard), self._ids(guard + text)
        return both[len(before) :] if both[: len(before)] == before else []

    def _tail(self, token_ids: Sequence[int]) -> "_Tail":
        """Returns the last word of the text, or its last few tokens, and what to put before it."""
        spelled: list[bytes] = []
        for token in reversed(token_ids[-MOST_TAIL:]):
            each = self._spelling.of(token)
            if isinstance(each, str):
                return self._tail_behind(each, token_ids, spelled)
            spelled.insert(0, each)
            if each[:1] and each[0] in WHITE_SPACE:
                return self._tail_behind("a", token_ids, spelled)
        is_whole = len(token_ids) <= MOST_TAIL
        return self._tail_behind("" if is_whole else "\n", token_ids, spelled)

    def _tail_behind(
        self, guard: str, token_ids: Sequence[int], spelled: Sequence[bytes]
    ) -> "_Tail":
        data = b"".join(spelled)
        if not guard and self._spelling.drops_first_space:
            data = data.removeprefix(b" ")
        start = len(token_ids) - len(spelled)
        return _Tail(guard, data, list(token_ids[start:]))

    def _ids(self, text: str) -> list[int]:
        found = self._cache.get(text)
        if found is None:
            if len(self._cache) >= MOST_CACHED:
                self._cache.clear()
            found = self._backend.encode(text, add_special_tokens=False).ids if text else []
            self._cache[text] = found
        return found


@dataclass(frozen=True)
class _Tail:
    """The end of a text.

    Attributes:
        guard: what stands in for the text before it.
        data: its bytes.
        token_ids: its tokens.
    """

    guard: str
    data: bytes
    token_ids: list[int]


@dataclass(eq=False)
class PathTree:
    """A tree of the target's tokens, made of paths of text.

    The probability of a node is that of the text up to its end: the sum over the drafter's nodes
    that reach this end first. None of these is below another.

    Args:
        anchor: the last token of the text.
        spelling: the target's.
        probs: of the drafter's nodes, if they are known.
    """

    anchor: int
    spelling: Spelling
    probs: Sequence[float] | None
    _builder: TreeBuilder = field(init=False)
    _reached_by: dict[int, set[int]] = field(init=False)

    def __post_init__(self) -> None:
        self._builder = TreeBuilder(self.anchor)
        self._reached_by = defaultdict(set)

    def add(
        self, path: WrittenPath, token_ids: Sequence[int], num_partial: int, depth: int
    ) -> None:
        """Adds the target's tokens of a path, at most so many.

        Args:
            path: the drafter's.
            token_ids: the target's tokens for it.
            num_partial: bytes in front that the text holds already.
            depth: of the tree, at most.
        """
        nodes = [*accumulate(token_ids[:depth], self._builder.add, initial=0)]
        if path.last is not None and len(token_ids) < depth:
            last = self._builder.add(nodes[-1], path.last)
            self._reached_by[last].add(path.last_node)
        if self.probs is not None:
            end = num_partial
            for node, token in zip(nodes[1:], token_ids, strict=False):
                end += self.spelling.num_bytes(token)
                self._reached_by[node].add(_first_reaching(path, end))

    def draft(self, shape: Shape, num_expanded: tuple[int, ...]) -> Draft:
        """Returns the nodes that the shape has room for and that pay."""
        probs = self._node_probs()
        kept = self._kept(shape, probs)
        return Draft.chosen(
            self._tree(kept),
            node_probs=None if probs is None else tuple(probs[node] for node in kept),
            num_expanded=num_expanded,
        )

    def _tree(self, kept: Sequence[int]) -> TokenTree:
        tokens, parents = self._builder.tokens, self._builder.parents
        if len(kept) == len(tokens):
            return self._builder.build()
        number = {node: index for index, node in enumerate(kept)}
        return TokenTree(
            tuple(tokens[node] for node in kept),
            (-1, *(number[parents[node]] for node in kept[1:])),
        )

    def _node_probs(self) -> list[float] | None:
        if self.probs is None:
            return None
        probs = [1.0]
        for node, parent in enumerate(self._builder.parents[1:], start=1):
            prob = sum(self.probs[reached] for reached in self._reached_by[node])
            probs.append(min(prob, probs[parent]))
        return probs

    def _kept(self, shape: Shape, probs: Sequence[float] | None) -> Sequence[int]:
        """Returns the best nodes, or without probabilities the first ones, in their order."""
        nodes = range(len(self._builder.tokens))
        if probs is None:
            return nodes[: shape.num_drafted + 1]
        kept: list[int] = []
        for node in sorted(nodes[1:], key=lambda node: (-probs[node], node)):
            if len(kept) == shape.num_drafted or not shape.pays(probs[node], len(kept)):
                break
            kept.append(node)
        return [0, *sorted(kept)]


def _first_reaching(path: WrittenPath, end: int) -> int:
    """Returns the first node of a path whose text reaches so far, or else its last."""
    return path.nodes[min(bisect_left(path.ends, end), len(path.nodes) - 1)]


def _valid_text(data: bytes) -> str:
    """Returns the text of bytes up to the first that is no part of a whole character."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        return data[: error.start].decode()

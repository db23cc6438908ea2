"""What a drafter wrote, in the target's tokens: paths of text become one tree."""

from codecs import getincrementaldecoder
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
        before = decoder.decode(tail.data)
        partial = decoder.getstate()[0]
        return [self._continuation(tail, before, partial, path) for path in paths]

    def _continuation(self, tail: "_Tail", before: str, partial: bytes, path: bytes) -> list[int]:
        text = _valid_text(path)
        if not path.startswith(partial) or not text:
            return []
        tokens = self._ids_behind(tail.guard, before + text)
        num_tail = len(tail.token_ids)
        if tokens is not None and tokens[:num_tail] == tail.token_ids:
            return tokens[num_tail:]
        if partial:
            return []
        return self._ids_behind("a" if text[0].isspace() else "\n", text) or []

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

    def _ids_behind(self, guard: str, text: str) -> list[int] | None:
        """Returns the tokens of a text that comes behind another; None if they cannot be told."""
        before, both = self._ids(guard), self._ids(guard + text)
        return both[len(before) :] if both[: len(before)] == before else None

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
    _reached_by: list[set[int]] = field(init=False)

    def __post_init__(self) -> None:
        self._builder = TreeBuilder(self.anchor)
        self._reached_by = [{0}]

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
        ends = accumulate(map(self.spelling.num_bytes, token_ids), initial=num_partial)
        next(ends)
        parent = 0
        for token, end in list(zip(token_ids, ends, strict=True))[:depth]:
            parent = self._add(parent, token, _first_reaching(path, end))
        if path.last is not None and len(token_ids) < depth:
            self._add(parent, path.last, path.last_node)

    def draft(self, shape: Shape, num_expanded: tuple[int, ...]) -> Draft:
        """Returns the nodes that the shape has room for and that pay."""
        kept = self._kept(shape)
        number = {node: index for index, node in enumerate(kept)}
        tokens, parents = self._builder.tokens, self._builder.parents
        tree = TokenTree(
            tuple(tokens[node] for node in kept),
            (-1, *(number[parents[node]] for node in kept[1:])),
        )
        probs = self._node_probs
        return Draft.chosen(
            tree,
            node_probs=None if probs is None else tuple(probs[node] for node in kept),
            num_expanded=num_expanded,
        )

    @property
    def _node_probs(self) -> list[float] | None:
        if self.probs is None:
            return None
        probs = [1.0]
        for nodes, parent in list(zip(self._reached_by, self._builder.parents, strict=True))[1:]:
            probs.append(min(sum(self.probs[node] for node in nodes), probs[parent]))
        return probs

    def _kept(self, shape: Shape) -> list[int]:
        """Returns the best nodes, or without probabilities the first ones, in their order."""
        probs = self._node_probs
        nodes = range(1, len(self._builder.tokens))
        kept: list[int] = []
        if probs is None:
            kept = [*nodes][: shape.num_drafted]
        else:
            for node in sorted(nodes, key=lambda node: (-probs[node], node)):
                if len(kept) == shape.num_drafted or not shape.pays(probs[node], len(kept)):
                    break
                kept.append(node)
        return [0, *sorted(kept)]

    def _add(self, parent: int, token: int, reached_by: int) -> int:
        node = self._builder.add(parent, token)
        if node == len(self._reached_by):
            self._reached_by.append(set())
        self._reached_by[node].add(reached_by)
        return node


def _first_reaching(path: WrittenPath, end: int) -> int:
    """Returns the first node of a path whose text reaches so far, or else its last."""
    pairs = zip(path.nodes, path.ends, strict=True)
    return next((node for node, reached in pairs if reached >= end), path.nodes[-1])


def _valid_text(data: bytes) -> str:
    """Returns the text of bytes up to the first that is no part of a whole character."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        return data[: error.start].decode()

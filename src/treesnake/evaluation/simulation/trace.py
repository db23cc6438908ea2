"""What a drafter would have drafted at every position of a target's greedy text.

The text is fixed: whatever is drafted, greedy decoding emits it. So what a shape would accept at a
position is a look-up, and searches can be compared exactly, on the same text, in microseconds a
step. Two things are kept for each position: the rank of the next token among the drafter's most
probable ones, which answers for every tree that is fixed beforehand, since the drafter's
distribution depends on the text alone and not on how far ahead it drafts; and the drafter's
best-first tree with its probabilities, which contains the smaller trees that depend on these.
"""

import gzip
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import log
from pathlib import Path
from typing import Any

from treesnake.errors import LoadError
from treesnake.files import replacing
from treesnake.json_lines import Row, json_line, parse_json_lines


@dataclass(frozen=True)
class RecordedTree:
    """The drafter's best-first tree at one position.

    Attributes:
        parents: of each node; the anchor's is -1.
        probs: the probability of the path to each node by the drafter; the anchor's is 1.
        path: the nodes that the text follows, the anchor's first.
    """

    parents: tuple[int, ...]
    probs: tuple[float, ...]
    path: tuple[int, ...]

    @cached_property
    def best_children(self) -> list[list[tuple[int, float]]]:
        """For each node its children, most probable first, with their log-probabilities there."""
        children: list[list[tuple[int, float]]] = [[] for _ in self.parents]
        for node in range(1, len(self.parents)):
            parent = self.parents[node]
            log_prob = log(max(self.probs[node], 1e-30) / max(self.probs[parent], 1e-30))
            children[parent].append((node, min(log_prob, 0.0)))
        for row in children:
            row.sort(key=lambda child: -child[1])
        return children


@dataclass(frozen=True)
class Trace:
    """One text with its drafts.

    Attributes:
        name: of the prompt.
        category: of the prompt.
        prompt_length: in tokens.
        ranks: for each token of the text, how many tokens the drafter held more probable; -1 where
            there were more than were looked at.
        trees: the drafter's tree before each token.
    """

    name: str
    category: str
    prompt_length: int
    ranks: tuple[int, ...]
    trees: tuple[RecordedTree, ...]

    def __len__(self) -> int:
        return len(self.ranks)


def write_traces(path: Path, traces: Iterable[Trace]) -> None:
    """Writes traces as compressed JSON lines, whole or not at all."""
    with (
        replacing(path) as partial,
        gzip.open(partial, "wb", compresslevel=5) as file,
    ):
        for trace in traces:
            file.write(json_line(asdict(trace)))


def read_traces(paths: Sequence[Path]) -> list[Trace]:
    """Reads traces from files as `write_traces` leaves them.

    Raises:
        LoadError: if one is missing or is something else.
    """
    traces: list[Trace] = []
    for path in paths:
        try:
            with gzip.open(path, "rb") as file:
                traces += [_trace(row) for row in parse_json_lines(file, f"{path}")]
        except (OSError, EOFError, zlib.error, ValueError, TypeError, AttributeError) as error:
            raise LoadError(f"{path} holds no traces: {error}; record them first") from error
    return traces


def _trace(row: Row) -> Trace:
    trees = tuple(
        RecordedTree(**{name: tuple(values) for name, values in tree.items()})
        for tree in row.field("trees")
    )
    fields: dict[str, Any] = {**row.fields, "ranks": tuple(row.field("ranks")), "trees": trees}
    return Trace(**fields)

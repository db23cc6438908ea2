"""The texts of a process within a number of bytes, and where a run of tokens occurred in them.

The idea is SuffixDecoding's (Oliaro et al. 2025): agents repeat themselves, files are edited,
questions return. The structure is that of LZ77 compressors: tokens lie in a ring, the oldest are
overwritten first, and each place is linked to the one before it whose last tokens have the same
hash. So a token is added in the same time however many there are, and so is a run looked up: a
bounded number of links is followed. A suffix tree or array needs no fewer bytes and must be merged
or rebuilt as texts come and go.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from treesnake.errors import InvalidInputError
from treesnake.memory.memory_log import MemoryLog
from treesnake.memory.recall_record import RecallRecord
from treesnake.threads import new_lock

DEFAULT_BYTES = 64 << 20
LEAST_BYTES = 1 << 16

MOST_AGREEING = 32
"""Tokens in a row that are compared; what is more counts as so many."""

RUNS = (8, 2)
"""Tokens that a place has in common with the text's end, by the links that lead to it: the long run
finds the few places that agree for long, the short one those that tell what is frequent."""

SHORTEST_RUN = RUNS[-1]

NUM_FOLLOWED = 24
"""Links that are followed for each run, from the latest place on."""

TOKEN_BYTES = 4 + len(RUNS) * (4 + 2)
"""The token and, for each run, the link and a quarter of an entry in the table of latest places."""

BORDER = 0
"""What lies between two texts. Tokens are kept as their number and one."""

MOST_AT_ONCE = 1 << 16
"""Tokens of texts that are read from a file and linked together."""

_BETWEEN = np.array([BORDER], np.uint32)
_FACTOR = 0x9E3779B97F4A7C15
_64_BITS = 0xFFFFFFFFFFFFFFFF


@dataclass(frozen=True, eq=False)
class Recalled:
    """Places that the end of a text agrees with, the longest agreement first, then the latest.

    Attributes:
        agreements: of each place, how many tokens before it are those at the end of the text.
        continuations: of each place, the tokens that came next; -1 where its text ended.
    """

    agreements: list[int]
    continuations: list[list[int]]


NOTHING = Recalled([], [])


class TextMemory:
    """What was said, the latest of it. Any thread may add and look up.

    Lookups take no lock. One that meets a text being written may read a wrong continuation, which
    is a wrong guess and nothing else.

    Args:
        num_bytes: what it takes in memory at most. Memory that holds nothing yet is not taken.
        log: a file that it is read from and written to; None keeps it in the process.

    Attributes:
        record: what came of guesses from it.

    Raises:
        InvalidInputError: if that is too small.
    """

    def __init__(self, num_bytes: int = DEFAULT_BYTES, log: MemoryLog | None = None) -> None:
        if num_bytes < LEAST_BYTES:
            raise InvalidInputError(
                f"a memory needs at least {LEAST_BYTES} bytes, got {num_bytes}; leave it out to "
                "have none"
            )
        self._num_bytes = num_bytes
        self._capacity = num_bytes // TOKEN_BYTES
        self._tokens = np.zeros(self._capacity, np.uint32)
        self._indexes = [_Index(run, self._capacity) for run in RUNS]
        self._end = MOST_AGREEING  # so that every place has so many before it
        self._lock = new_lock()
        self._log = log
        self._others: dict[str, TextMemory] = {}
        self.record = RecallRecord()
        if log is not None:
            self._write_all(log.read(self._capacity))

    def __len__(self) -> int:
        """Returns how many tokens it holds, those between texts counted."""
        return min(self._end - MOST_AGREEING, self._capacity)

    @property
    def num_bytes(self) -> int:
        """What it takes in memory once it is full."""
        return self._tokens.nbytes + sum(index.num_bytes for index in self._indexes)

    def add(self, token_ids: Sequence[int], *, num_known: int = 0, after: int = -1) -> int:
        """Adds a text, or a piece of one.

        Args:
            token_ids: the piece, with some tokens before it that are its context.
            num_known: how many of them are context.
            after: what adding the piece before returned. If nothing was added meanwhile, the two
                lie side by side; else the context is kept once more.

        Returns:
            Where the piece ends, for the next one.
        """
        kept = np.asarray(token_ids[-(self._capacity // 2) :], np.uint32) + np.uint32(1)
        with self._lock:
            end = self._write(kept, max(num_known - (len(token_ids) - len(kept)), 0), after)
        if self._log is not None:
            self._log.append(token_ids, num_known)
        return end

    def of(self, user: str) -> "TextMemory":
        """Returns the memory of another user, which shares nothing with this one."""
        with self._lock:
            if user not in self._others:
                log = None if self._log is None else self._log.of(user)
                self._others[user] = TextMemory(self._num_bytes, log)
            return self._others[user]

    def recall(self, context: Sequence[int], depth: int, *, long_runs: bool = False) -> Recalled:
        """Finds where the end of a text occurred before, and what came next.

        Args:
            context: the latest tokens; no more than `MOST_AGREEING` are looked at.
            depth: how many tokens of each continuation are wanted.
            long_runs: whether only places are wanted that agree for long, which costs a third where
                there is none.
        """
        end = self._end
        recent = [token + 1 for token in context[-MOST_AGREEING:]]
        oldest = max(end - self._capacity, 0) + MOST_AGREEING
        found: dict[int, None] = {}
        for index in self._indexes[:1] if long_runs else self._indexes:
            if len(recent) >= index.run:
                found.update(dict.fromkeys(index.places(recent, oldest)))
        if not found:
            return NOTHING
        begins = np.fromiter(found, np.int64, len(found))
        places = begins[:, None] + np.arange(-len(recent), depth)
        window = self._tokens[places % self._capacity].astype(np.int64)
        window[places >= end] = BORDER
        alike = window[:, len(recent) - 1 :: -1] == np.array(recent[::-1])
        agreements = np.logical_and.accumulate(alike, axis=1).sum(axis=1)
        order = np.lexsort((-begins, -agreements))
        order = order[: int((agreements >= SHORTEST_RUN).sum())]
        continuations = window[order, len(recent) :] - 1
        return Recalled(agreements[order].tolist(), continuations.tolist())

    def _write_all(self, texts: Sequence[NDArray[np.uint32]]) -> None:
        """Adds whole texts, many at once."""
        parts: list[NDArray[np.uint32]] = []
        num_tokens = 0
        for number, text in enumerate(texts, 1):
            parts += [text[-(self._capacity // 2) :] + np.uint32(1), _BETWEEN]
            num_tokens += len(text)
            if number == len(texts) or num_tokens > MOST_AT_ONCE:
                self._write(np.concatenate(parts)[-(self._capacity // 2) :], 0, -1)
                parts.clear()
                num_tokens = 0

    def _write(self, kept: NDArray[np.uint32], num_known: int, after: int) -> int:
        """Writes tokens over the oldest, and links their places; returns where they end."""
        if after == self._end and num_known > 0:
            begin = self._end - num_known
        else:
            kept = np.concatenate([_BETWEEN, kept])
            begin, num_known = self._end, num_known + 1
        self._tokens[np.arange(begin, begin + len(kept)) % self._capacity] = kept
        self._end = begin + len(kept)
        for index in self._indexes:
            index.add(kept, begin, num_known)
        return self._end


class _Index:
    """Links each place to the one before it with the same hash of the tokens in front.

    A link is the distance back, 0 if there is none.
    """

    def __init__(self, run: int, capacity: int) -> None:
        self.run = run
        self._capacity = capacity
        self._shift = 64 - max((capacity // 4).bit_length() - 1, 1)
        self._latest = np.zeros(1 << (64 - self._shift), np.int64)
        self._links = np.zeros(capacity, np.uint32)
        self._latest_view = self._latest.data
        self._links_view = self._links.data

    @property
    def num_bytes(self) -> int:
        return self._latest.nbytes + self._links.nbytes

    def add(self, kept: NDArray[np.uint32], begin: int, num_known: int) -> None:
        """Links the places of a piece behind its context."""
        first = max(num_known, self.run)
        if first >= len(kept):
            return
        hashes = np.zeros(len(kept) - first, np.uint64)
        for back in range(self.run, 0, -1):
            hashes = (hashes + kept[first - back : len(kept) - back]) * np.uint64(_FACTOR)
        slots = (hashes >> np.uint64(self._shift)).astype(np.int64)
        places = np.arange(begin + first, begin + len(kept))
        order = np.argsort(slots, kind="stable")
        slots, places = slots[order], places[order]
        is_first = np.concatenate([[True], slots[1:] != slots[:-1]])
        before = np.where(is_first, self._latest[slots], np.roll(places, 1))
        distances = np.where(before > 0, places - before, 0)
        self._links[places % self._capacity] = np.where(distances < self._capacity, distances, 0)
        is_last = np.concatenate([is_first[1:], [True]])
        self._latest[slots[is_last]] = places[is_last]

    def places(self, recent: Sequence[int], oldest: int) -> Iterator[int]:
        """Yields places behind tokens with the hash of the latest, the latest place first."""
        value = 0
        for token in recent[-self.run :]:
            value = (value + token) * _FACTOR & _64_BITS
        return islice(self._linked(self._latest_view[value >> self._shift], oldest), NUM_FOLLOWED)

    def _linked(self, place: int, oldest: int) -> Iterator[int]:
        while place >= oldest:
            yield place
            distance = self._links_view[place % self._capacity]
            if not distance:
                return
            place -= distance

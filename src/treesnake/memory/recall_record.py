"""How often guesses from a memory come true, by how long and how unanimously its places agree."""

from bisect import bisect_right

AGREEMENTS = (2, 3, 4, 5, 6, 8, 12, 20)
"""The least tokens that agree, of each row of the record."""

SHARES = (0.0, 0.4, 0.6, 0.8, 1.0)
"""The least share of the votes that the best guess has, of each column; the last is all of them."""

PRIOR_UNLIKE = 5.0
"""Against the tokens that agree, what speaks beforehand for another one next: what fits the default
target's answers to different questions best."""

PRIOR_WEIGHT = 4.0
"""The observations that what is believed beforehand counts for."""

DISCOUNT = 0.99
"""What an observation counts after each later one of its kind."""


class RecallRecord:
    """How often the best guess came true, of those that had as much in their favour."""

    def __init__(self) -> None:
        self._hits = [[0.0] * len(SHARES) for _ in AGREEMENTS]
        self._tries = [[0.0] * len(SHARES) for _ in AGREEMENTS]

    def observe(self, num_agreeing: int, share: float, *, is_right: bool) -> None:
        """Takes note of one guess."""
        row, column = _cell(num_agreeing, share)
        self._hits[row][column] = DISCOUNT * self._hits[row][column] + is_right
        self._tries[row][column] = DISCOUNT * self._tries[row][column] + 1

    def probability(self, num_agreeing: int, share: float) -> float:
        """Returns how often such a guess is believed to be right.

        Args:
            num_agreeing: the tokens that agree before the best of its places.
            share: of the votes.
        """
        row, column = _cell(num_agreeing, share)
        prior = share * num_agreeing / (num_agreeing + PRIOR_UNLIKE)
        hits, tries = self._hits[row][column], self._tries[row][column]
        return (hits + PRIOR_WEIGHT * prior) / (tries + PRIOR_WEIGHT)


def _cell(num_agreeing: int, share: float) -> tuple[int, int]:
    return max(bisect_right(AGREEMENTS, num_agreeing) - 1, 0), bisect_right(SHARES, share) - 1

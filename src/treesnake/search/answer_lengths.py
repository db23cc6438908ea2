"""How long answers become, to tell whether what pays with every token pays in all."""

from collections import deque
from math import inf

MOST_ANSWERS = 64
"""So many of the latest answers are remembered."""


class AnswerLength:
    """The tokens of one answer so far."""

    def __init__(self) -> None:
        self.num_tokens = 0


class AnswerLengths:
    """The lengths of the latest answers of all texts, those that still grow among them."""

    def __init__(self) -> None:
        self._latest: deque[AnswerLength] = deque(maxlen=MOST_ANSWERS)

    def begin(self) -> AnswerLength:
        """Returns the length of a new answer, for its text to keep up to date."""
        answer = AnswerLength()
        self._latest.append(answer)
        return answer

    def expected_rest(self, answer: AnswerLength) -> float:
        """Returns how many tokens an answer is expected to go on for.

        It goes on as the longer ones of the latest answers did in the mean, and for as long as it
        has become at least. Of the very first answer nothing is known, and all is hoped for.
        """
        others = [each.num_tokens for each in self._latest if each is not answer]
        if not others:
            return inf
        num_tokens = answer.num_tokens
        rests = [other - num_tokens for other in others if other > num_tokens]
        return max(sum(rests) / len(rests) if rests else 0.0, num_tokens)

"""Sessions of texts that have ended, so that the next turn of a chat runs only what is new."""

from collections.abc import Sequence
from dataclasses import dataclass

from treesnake.decoder import DecoderSession, SpeculativeDecoder
from treesnake.prompt import Key, Prompt, num_shared
from treesnake.threads import new_lock

LEAST_SHARED = 0.5
"""The part of a kept text that a prompt must begin with: a session is moved, not copied, so a text
that is long and goes on otherwise soon is worth more where it is."""


@dataclass(frozen=True, eq=False)
class _Kept:
    session: DecoderSession
    key: tuple[Key, ...]
    user: str | None
    num_bytes: int


class KeptSessions:
    """The sessions of a decoder that no text uses now; the one unused for longest goes first.

    What a session holds of a prompt decides about time alone, never about the text: sessions
    compare what they hold with the prompt themselves.

    Args:
        decoder: makes sessions.
        max_bytes: what all of them may take in memory together, targets and drafters.
    """

    def __init__(self, decoder: SpeculativeDecoder, max_bytes: int) -> None:
        self._decoder = decoder
        self._max_bytes = max_bytes
        self._kept: list[_Kept] = []
        self._lock = new_lock()
        self.num_hits = 0
        self.num_misses = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def num_bytes(self) -> int:
        """What all of them take in memory."""
        with self._lock:
            return sum(each.num_bytes for each in self._kept)

    def take(self, prompt: Prompt, user: str | None = None) -> tuple[DecoderSession, int]:
        """Returns the session of a user that holds most of a prompt, or a new one.

        It is the caller's, who brings it back by `keep`. The number says how many tokens of the
        prompt it holds. One with recurrent layers goes on from a snapshot, so it may run some of
        them again where the texts part before its end.
        """
        with self._lock:
            shared = {
                each: num_shared(each.key, prompt.key) for each in self._kept if each.user == user
            }
            fitting = [each for each, held in shared.items() if _serves(each, held)]
            if fitting:
                best = max(fitting, key=shared.__getitem__)
                self._kept.remove(best)
                self.num_hits += 1
                return best.session, min(shared[best], len(prompt) - 1)
            self.num_misses += 1
        memory = self._decoder.memory
        if memory is None or user is None:
            return self._decoder.new_session(), 0
        return self._decoder.new_session(memory.of(user)), 0

    def keep(self, session: DecoderSession, key: Sequence[Key], user: str | None = None) -> None:
        """Keeps a session as the one used last, as far as the memory allows.

        Args:
            session: no text uses it any more.
            key: the text that it holds, place by place.
            user: whose text it is.
        """
        num_bytes = sum(getattr(each, "num_bytes", 0) for each in (session.target, session.drafter))
        with self._lock:
            self._kept.append(_Kept(session, tuple(key), user, num_bytes))
            while sum(each.num_bytes for each in self._kept) > self._max_bytes:
                del self._kept[0]


def _serves(kept: _Kept, num_held: int) -> bool:
    return num_held > 0 and num_held >= LEAST_SHARED * len(kept.key)

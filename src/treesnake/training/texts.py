"""Texts of many shards, split, shuffled and cut into batches, the same ones for any machine.

Every text begins with an empty state, so texts are never joined: those of like length are run
together, filled up on the right. A causal network does not see what comes later, so the filling
needs no mask and changes nothing.

Which texts an update learns from is a function of the seed and the update's number alone. A
*pass* is what one device runs at once; an update is made of passes, which any number of devices
can share.
"""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from treesnake.errors import InvalidInputError
from treesnake.training.shards import Shard, read_shard, shard_files

TEXTS_PER_WINDOW = 1024
"""So many texts of a shuffled order are sorted by length at once."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Texts in one rectangle, and the positions in it where a token is learned.

    Attributes:
        tokens: filled up on the right with zeros.
        positions: where the next token is learned, counted through all rows.
        labels: the tokens there.
        top_ids: the target's most probable tokens there, if they are known.
        top_log_probs: the target's log probabilities of these.
    """

    tokens: Int[Tensor, "texts tokens"]
    positions: Int[Tensor, " positions"]
    labels: Int[Tensor, " positions"]
    top_ids: Int[Tensor, "positions top"] | None = None
    top_log_probs: Float[Tensor, "positions top"] | None = None

    def to(self, device: torch.device) -> "Batch":
        """Returns it on a device."""
        return Batch(
            tokens=self.tokens.to(device),
            positions=self.positions.to(device),
            labels=self.labels.to(device),
            top_ids=None if self.top_ids is None else self.top_ids.to(device),
            top_log_probs=None if self.top_log_probs is None else self.top_log_probs.to(device),
        )

    def without_positions(self) -> "Batch":
        """Returns one text of it of which nothing is learned."""
        nothing = self.positions[:0]
        top_ids = None if self.top_ids is None else self.top_ids[:0]
        top_log_probs = None if self.top_log_probs is None else self.top_log_probs[:0]
        return Batch(self.tokens[:1], nothing, self.labels[:0], top_ids, top_log_probs)


class Texts:
    """All texts of some shards that fit.

    Args:
        shards: where they are.
        max_tokens: longer ones are cut at their ends; prompts that leave no room are left out.
    """

    def __init__(self, shards: Sequence[Shard], max_tokens: int) -> None:
        self._shards = shards
        self._rows: list[tuple[int, int]] = []
        self._num_prompt: list[int] = []
        self.lengths: list[int] = []
        for index, shard in enumerate(shards):
            pairs = zip(shard.prompt_lengths.tolist(), shard.answer_lengths.tolist(), strict=True)
            for row, (num_prompt, num_answer) in enumerate(pairs):
                length = min(num_prompt + num_answer, max_tokens)
                if length > max(num_prompt, 1):
                    self._rows.append((index, row))
                    self._num_prompt.append(num_prompt)
                    self.lengths.append(length)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def num_left_out(self) -> int:
        """How many texts there are beside these."""
        return sum(map(len, self._shards)) - len(self)

    @property
    def has_target_probs(self) -> bool:
        """Whether every text comes with the target's probabilities."""
        return all(shard.top_ids is not None for shard in self._shards)

    def num_learned(self, indices: Iterable[int]) -> int:
        """Returns how many tokens of some texts are learned."""
        return sum(self.lengths[index] - max(self._num_prompt[index], 1) for index in indices)

    def split(self, part: float) -> tuple[list[int], list[int]]:
        """Returns the texts to learn from, and about this part of them, to be held out.

        A checksum of the prompt decides, so a text stays on its side when others are added, and
        equal prompts are on the same one.
        """
        learned: list[int] = []
        held_out: list[int] = []
        for index in range(len(self)):
            is_held_out = self._checksum(index) < part * 2**32
            (held_out if is_held_out else learned).append(index)
        return learned, held_out

    def batch(self, indices: Sequence[int]) -> Batch:
        """Returns some texts as a batch."""
        texts = [self._text(index) for index in indices]
        # The last token of a text is learned and never read.
        width = max(len(tokens) for tokens, _ in texts) - 1
        rectangle = torch.zeros(len(texts), width, dtype=torch.int64)
        positions = []
        for row, (tokens, first) in enumerate(texts):
            rectangle[row, : len(tokens) - 1] = tokens[:-1]
            positions.append(row * width + torch.arange(first - 1, len(tokens) - 1))
        top = [self._top(index) for index in indices] if self.has_target_probs else []
        return Batch(
            tokens=rectangle,
            positions=torch.cat(positions),
            labels=torch.cat([tokens[first:] for tokens, first in texts]),
            top_ids=torch.cat([ids for ids, _ in top]) if top else None,
            top_log_probs=torch.cat([log_probs for _, log_probs in top]) if top else None,
        )

    def _text(self, index: int) -> tuple[Int[Tensor, " tokens"], int]:
        """Returns a text and where in it learning begins."""
        shard_index, row = self._rows[index]
        shard = self._shards[shard_index]
        num_prompt = self._num_prompt[index]
        prompt_start, answer_start = shard.prompt_starts[row], shard.answer_starts[row]
        num_answer = self.lengths[index] - num_prompt
        prompt = shard.prompts[prompt_start : prompt_start + num_prompt]
        answer = shard.answers[answer_start : answer_start + num_answer]
        return torch.cat([prompt.long(), answer.long()]), max(num_prompt, 1)

    def _top(
        self, index: int
    ) -> tuple[Int[Tensor, "positions top"], Float[Tensor, "positions top"]]:
        shard_index, row = self._rows[index]
        shard = self._shards[shard_index]
        assert shard.top_ids is not None
        assert shard.top_log_probs is not None
        num_prompt = self._num_prompt[index]
        start = shard.answer_starts[row]
        positions = slice(start + (num_prompt == 0), start + self.lengths[index] - num_prompt)
        return shard.top_ids[positions].long(), shard.top_log_probs[positions].float()

    def _checksum(self, index: int) -> int:
        tokens, first = self._text(index)
        judged_by = tokens[:first] if self._num_prompt[index] else tokens
        return zlib.crc32(judged_by.numpy().tobytes())


def read_texts(folders: Sequence[Path], max_tokens: int, vocab_size: int) -> Texts:
    """Opens all shards of some folders.

    Raises:
        InvalidInputError: if there are none, or they have tokens that a target of `vocab_size` does
            not know.
        TrainingError: if one is broken.
    """
    shards = [_read_known(path, vocab_size) for each in folders for path in shard_files(each)]
    texts = Texts(shards, max_tokens)
    if not len(texts):
        listed = ", ".join(map(str, folders))
        raise InvalidInputError(f"there are no texts of at most {max_tokens} tokens in {listed}")
    return texts


def _read_known(path: Path, vocab_size: int) -> Shard:
    shard = read_shard(path)
    for tokens in (shard.prompts, shard.answers, shard.top_ids):
        if tokens is None or not tokens.numel():
            continue
        lowest, highest = (int(end) for end in tokens.to(torch.int64).aminmax())
        if lowest < 0 or highest >= vocab_size:
            raise InvalidInputError(
                f"{path} has the token {highest if lowest >= 0 else lowest}, and the target knows "
                f"{vocab_size}; learn from texts that were made with its tokenizer"
            )
    return shard


def epoch_updates(
    texts: Texts, learned: Sequence[int], batch_tokens: int, pass_tokens: int, seed: int
) -> list[list[list[int]]]:
    """Returns the updates of an epoch, each a list of passes, each a list of texts.

    A text that alone is longer than a pass is a pass of its own.
    """
    generator = torch.Generator().manual_seed(seed)
    order = [learned[i] for i in torch.randperm(len(learned), generator=generator).tolist()]
    passes: list[list[int]] = []
    for start in range(0, len(order), TEXTS_PER_WINDOW):
        window = sorted(order[start : start + TEXTS_PER_WINDOW], key=lambda i: texts.lengths[i])
        cut = cut_passes([texts.lengths[index] for index in window], pass_tokens)
        shuffled = torch.randperm(len(cut), generator=generator).tolist()
        passes += [[window[index] for index in cut[number]] for number in shuffled]
    updates: list[list[list[int]]] = [[]]
    num_tokens = 0
    for indices in passes:
        if num_tokens >= batch_tokens:
            updates.append([])
            num_tokens = 0
        updates[-1].append(indices)
        num_tokens += sum(texts.lengths[index] for index in indices)
    return updates


def cut_passes(lengths: Sequence[int], pass_tokens: int) -> list[range]:
    """Cuts ascending lengths into ranges whose rectangles hold at most `pass_tokens`."""
    cut: list[range] = []
    start = 0
    for end, length in enumerate(lengths):
        if end > start and length * (end - start + 1) > pass_tokens:
            cut.append(range(start, end))
            start = end
    return [*cut, range(start, len(lengths))] if lengths else []

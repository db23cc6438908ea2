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
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from treesnake.errors import InvalidInputError
from treesnake.training.losses import NEVER
from treesnake.training.shards import Shard, read_shard, shard_files

TEXTS_PER_WINDOW = 1024
"""So many texts of a shuffled order are sorted by length at once."""

NO_TOKEN = -1
"""Fills up rows of most probable tokens."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Texts in one rectangle, and the positions in it where a token is learned.

    Attributes:
        tokens: filled up on the right with zeros.
        positions: where the next token is learned, counted through all rows.
        labels: the tokens there.
        temperatures: at which the target drew them; 0 where it took the most probable one, or where
            the text is not its own.
        top_ids: the target's most probable tokens there, `NO_TOKEN` where it has fewer. Of a text
            that comes without them it is the label alone.
        top_log_probs: the target's log probabilities of these.
    """

    tokens: Int[Tensor, "texts tokens"]
    positions: Int[Tensor, " positions"]
    labels: Int[Tensor, " positions"]
    temperatures: Float[Tensor, " positions"]
    top_ids: Int[Tensor, "positions top"]
    top_log_probs: Float[Tensor, "positions top"]

    @classmethod
    def certain(
        cls,
        tokens: Int[Tensor, "texts tokens"],
        positions: Int[Tensor, " positions"],
        labels: Int[Tensor, " positions"],
    ) -> "Batch":
        """Returns texts of which nothing but the tokens is known."""
        top_ids = labels[:, None]
        greedy, log_probs = (
            torch.zeros(each.shape, device=labels.device) for each in (labels, top_ids)
        )
        return cls(tokens, positions, labels, greedy, top_ids, log_probs)

    @property
    def num_learned(self) -> list[int]:
        """How many tokens of each text are learned."""
        num_texts, width = self.tokens.shape
        return torch.bincount(self.positions.cpu() // width, minlength=num_texts).tolist()

    def to(self, device: torch.device) -> "Batch":
        """Returns it on a device."""
        return Batch(**{name: tensor.to(device) for name, tensor in vars(self).items()})

    def without_positions(self) -> "Batch":
        """Returns one text of it of which nothing is learned."""
        by_position = {name: each[:0] for name, each in vars(self).items() if name != "tokens"}
        return Batch(self.tokens[:1], **by_position)


class Texts:
    """All texts of some shards that fit.

    Args:
        shards: where they are.
        max_tokens: longer ones are cut at their ends; prompts that leave no room are left out.
    """

    def __init__(self, shards: Sequence[Shard], max_tokens: int) -> None:
        self._shards = shards
        widths = (1 if each.top_ids is None else each.top_ids.shape[1] for each in shards)
        self._num_top = max(widths, default=1)
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
        """Whether texts come with the target's probabilities; the others are taken for certain."""
        return any(shard.top_ids is not None for shard in self._shards)

    def num_learned(self, indices: Iterable[int]) -> int:
        """Returns how many tokens of some texts are learned."""
        return sum(self.lengths[index] - max(self._num_prompt[index], 1) for index in indices)

    def share_outside(self, vocabulary: Int[Tensor, " drafted"]) -> float:
        """Returns the part of all tokens of answers that a vocabulary lacks."""
        answers = [shard.answers.long() for shard in self._shards]
        num_outside = sum(int((~torch.isin(each, vocabulary)).sum()) for each in answers)
        return num_outside / sum(map(len, answers))

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
        top = [self._top(index) for index in indices]
        return Batch(
            tokens=rectangle,
            positions=torch.cat(positions),
            labels=torch.cat([tokens[first:] for tokens, first in texts]),
            temperatures=torch.cat([self._temperatures(index) for index in indices]),
            top_ids=torch.cat([ids for ids, _ in top]),
            top_log_probs=torch.cat([log_probs for _, log_probs in top]),
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
        """Returns what the target holds probable at the learned positions of a text."""
        shard_index, row = self._rows[index]
        shard = self._shards[shard_index]
        num_prompt = self._num_prompt[index]
        start = shard.answer_starts[row]
        positions = slice(start + (num_prompt == 0), start + self.lengths[index] - num_prompt)
        if shard.top_ids is None or shard.top_log_probs is None:
            ids = shard.answers[positions].long()[:, None]
            log_probs = torch.zeros(ids.shape)
        else:
            ids, log_probs = shard.top_ids[positions].long(), shard.top_log_probs[positions].float()
        lacking = (0, self._num_top - ids.shape[1])
        return F.pad(ids, lacking, value=NO_TOKEN), F.pad(log_probs, lacking, value=NEVER)

    def _temperatures(self, index: int) -> Float[Tensor, " positions"]:
        shard_index, row = self._rows[index]
        return self._shards[shard_index].temperatures[row].repeat(self.num_learned([index]))

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

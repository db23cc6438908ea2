"""Drafters whose tokens are not numbered as the target's are.

Drafting is lossless whatever the drafter's vocabulary is: tokens that it cannot say have no
probability in its drafts, and the target still emits them. What it costs is acceptance.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from treesnake.drafters.spelling import METASPACE, from_byte_level, from_sentencepiece
from treesnake.errors import InvalidInputError, LoadError
from treesnake.models.json_files import read_json
from treesnake.threads import on_one_thread

DRAFT_VOCABULARY_FILE = "draft_vocabulary.json"
"""A list of token ids beside a network, in the order in which it is to compute their logits."""

SPACES = {"byte_level": "\u0120", "sentencepiece": METASPACE}
"""How a space is written in the tokens of a vocabulary, by its kind."""


@runtime_checkable
class VocabularyMap(Protocol):
    """Speaks the target's token ids on one side and the drafter network's on the other."""

    def express(self, token_ids: Sequence[int]) -> list[int]:
        """Returns the network's token for each of the target's."""
        ...

    def known(self, logits: Float[Tensor, "nodes network_logits"]) -> Float[Tensor, "nodes known"]:
        """Returns the logits of those tokens that both sides know."""
        ...

    def token_at(self, column: int) -> int:
        """Returns which of the target's tokens has this column of `known`."""
        ...

    def known_ids(self, num_columns: int) -> Int[Tensor, " known"]:
        """Returns which of the target's tokens has each of the columns of `known`."""
        ...

    def spread(
        self, known: Float[Tensor, "nodes known"], missing: float
    ) -> Float[Tensor, "nodes vocab"]:
        """Returns numbers of known tokens in the columns of the target's vocabulary.

        Tokens that the network cannot say have the number `missing`.
        """
        ...


class SameVocabulary:
    """The same tokens on both sides."""

    def express(self, token_ids: Sequence[int]) -> list[int]:
        """Returns the same tokens."""
        return list(token_ids)

    def known(self, logits: Float[Tensor, "nodes vocab"]) -> Float[Tensor, "nodes vocab"]:
        """Returns all logits."""
        return logits

    def token_at(self, column: int) -> int:
        """Returns the token of this number."""
        return column

    def known_ids(self, num_columns: int) -> Int[Tensor, " known"]:
        """Returns the first numbers."""
        return _first_numbers(num_columns)

    def spread(
        self, known: Float[Tensor, "nodes vocab"], missing: float
    ) -> Float[Tensor, "nodes vocab"]:
        """Returns the numbers as they are."""
        return known


SAME_VOCABULARY = SameVocabulary()


@dataclass(frozen=True)
class PaddedVocabulary:
    """The same tokens on both sides, with more rows of padding on one.

    Attributes:
        network_size: the number of the network's tokens.
        target_size: the number of the target's.
    """

    network_size: int
    target_size: int

    def express(self, token_ids: Sequence[int]) -> list[int]:
        """Returns the same tokens; one that the network lacks becomes token 0."""
        return [token if token < self.network_size else 0 for token in token_ids]

    def known(self, logits: Float[Tensor, "nodes network_logits"]) -> Float[Tensor, "nodes known"]:
        """Returns the logits of all tokens that the target has as well."""
        return logits[:, : self.target_size]

    def token_at(self, column: int) -> int:
        """Returns the token of this number."""
        return column

    def known_ids(self, num_columns: int) -> Int[Tensor, " known"]:
        """Returns the first numbers."""
        return _first_numbers(num_columns)

    def spread(
        self, known: Float[Tensor, "nodes known"], missing: float
    ) -> Float[Tensor, "nodes vocab"]:
        """Returns the numbers, filled up at the end."""
        return F.pad(known, (0, self.target_size - known.shape[-1]), value=missing)


@dataclass(frozen=True, eq=False)
class DraftVocabulary:
    """The same tokens on both sides, of which the network drafts only some.

    Attributes:
        token_ids: those that the network gives logits for, in its order.
        network_size: the number of tokens that the network reads.
        target_size: the number of the target's tokens.

    Raises:
        InvalidInputError: if a token is listed twice, or not in the target's vocabulary.
    """

    token_ids: Int[Tensor, " network_logits"]
    network_size: int
    target_size: int

    def __post_init__(self) -> None:
        listed = self._listed
        if not listed or len({*listed}) < len(listed):
            raise InvalidInputError("a draft vocabulary lists tokens, and each of them once")
        if min(listed) < 0 or max(listed) >= self.target_size:
            raise InvalidInputError(
                f"the draft vocabulary has token ids from {min(listed)} to {max(listed)}, the "
                f"target's go from 0 to {self.target_size - 1}; make it with the target's tokenizer"
            )

    def express(self, token_ids: Sequence[int]) -> list[int]:
        """Returns the same tokens: all can be read, though not all are drafted."""
        return PaddedVocabulary(self.network_size, self.target_size).express(token_ids)

    def known(
        self, logits: Float[Tensor, "nodes network_logits"]
    ) -> Float[Tensor, "nodes network_logits"]:
        """Returns all logits: the target knows every token that is drafted."""
        return logits

    def token_at(self, column: int) -> int:
        """Returns the token that the network's logits have in this column."""
        return self._listed[column]

    def known_ids(self, num_columns: int) -> Int[Tensor, " known"]:
        """Returns the tokens that are drafted."""
        return self.token_ids

    @cached_property
    def _listed(self) -> list[int]:
        return self.token_ids.tolist()

    def spread(
        self, known: Float[Tensor, "nodes network_logits"], missing: float
    ) -> Float[Tensor, "nodes vocab"]:
        """Returns each number in its token's column."""
        return _scattered(known, self.token_ids, self.target_size, missing)


@dataclass(frozen=True, eq=False)
class SharedTokens:
    """Two tokenizers that have some tokens in common; each token is matched by the text it is.

    The text is not tokenized anew: it goes token by token through the map, with an unknown token in
    the place of what has no partner, so the network reads a text that its own tokenizer would
    never make. Acceptance is low.

    Attributes:
        network_ids: the network's tokens that have a partner.
        target_ids: the partners.
        network_id_of: for each of the target's tokens the partner, or an unknown token.
    """

    network_ids: Int[Tensor, " shared"]
    target_ids: Int[Tensor, " shared"]
    network_id_of: tuple[int, ...]

    def express(self, token_ids: Sequence[int]) -> list[int]:
        """Returns the partners, and an unknown token for each token without one."""
        return [self.network_id_of[token] for token in token_ids]

    def known(self, logits: Float[Tensor, "nodes network_logits"]) -> Float[Tensor, "nodes shared"]:
        """Returns the logits of tokens with a partner."""
        return logits[:, self.network_ids]

    def token_at(self, column: int) -> int:
        """Returns the partner."""
        return int(self.target_ids[column])

    def known_ids(self, num_columns: int) -> Int[Tensor, " known"]:
        """Returns the partners."""
        return self.target_ids

    def spread(
        self, known: Float[Tensor, "nodes shared"], missing: float
    ) -> Float[Tensor, "nodes vocab"]:
        """Returns the numbers of tokens with a partner in the partner's column."""
        return _scattered(known, self.target_ids, len(self.network_id_of), missing)


def save_draft_vocabulary(folder: Path, token_ids: Int[Tensor, " kept"]) -> None:
    """Writes a draft vocabulary beside the network that it is for."""
    (folder / DRAFT_VOCABULARY_FILE).write_text(json.dumps(token_ids.tolist()), "utf-8")


def read_draft_vocabulary(folder: Path) -> Int[Tensor, " kept"] | None:
    """Reads the draft vocabulary of a folder, if there is one.

    Raises:
        LoadError: if the file is no list of token ids.
    """
    path = folder / DRAFT_VOCABULARY_FILE
    if not path.exists():
        return None
    listed = read_json(path)
    if not isinstance(listed, list) or not all(type(token) is int for token in listed):
        raise LoadError(f"{path} is no list of token ids; make it with save_draft_vocabulary")
    try:
        return torch.tensor(listed, dtype=torch.int64)
    except (OverflowError, RuntimeError) as error:
        raise LoadError(f"{path} holds numbers too large for token ids: {error}") from error


def check_same_tokens(drafter: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase) -> None:
    """Checks that two tokenizers agree on every id that both have.

    Added tokens may differ, such as the marks of a chat template: they are few.

    Raises:
        InvalidInputError: naming both, and the first token that differs.
    """
    index = _first_difference(drafter, target)
    if index is not None:
        ours, theirs = (each.convert_ids_to_tokens(index) for each in (drafter, target))
        raise InvalidInputError(
            f"drafter and target have different tokenizers: token {index} is {ours!r} in "
            f"{_name(drafter)} and {theirs!r} in {_name(target)}; choose a drafter with the "
            'target\'s tokenizer, or let it draft in text with tokens="text"'
        )


def has_same_tokens(drafter: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase) -> bool:
    """Tells whether two tokenizers agree on every id that both have, and most ids are such.

    Small vocabularies agree by chance, where all that both have are added tokens.
    """
    ours, theirs = drafter.get_vocab(), target.get_vocab()
    num_common = len({*ours.items()} & {*theirs.items()})
    is_most = 2 * num_common > max(len(ours), len(theirs))
    return is_most and _first_difference(drafter, target) is None


def _first_difference(
    drafter: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase
) -> int | None:
    spared = {*drafter.added_tokens_decoder, *target.added_tokens_decoder}
    theirs = {index: token for token, index in target.get_vocab().items()}
    ours = ((index, token) for token, index in drafter.get_vocab().items())
    differing = (i for i, token in ours if i not in spared and theirs.get(i, token) != token)
    return min(differing, default=None)


def share_tokens(
    drafter: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase, target_size: int
) -> SharedTokens:
    """Matches the tokens of two tokenizers by the bytes of the text that they stand for.

    Args:
        drafter: the drafter's tokenizer.
        target: the target's.
        target_size: the number of tokens that the target gives logits for.

    Raises:
        InvalidInputError: if they have no token in common.
    """
    network_id_at = {spelling: index for index, spelling in _spellings(drafter).items()}
    pairs = {
        index: network_id_at[spelling]
        for index, spelling in sorted(_spellings(target).items())
        if spelling in network_id_at and index < target_size
    }
    if not pairs:
        raise InvalidInputError(
            f"the tokenizers {_name(drafter)} and {_name(target)} have no token in common; choose "
            "a drafter with the target's tokenizer"
        )
    unknown = next(
        (i for i in (drafter.unk_token_id, drafter.eos_token_id) if isinstance(i, int)), 0
    )
    return SharedTokens(
        torch.tensor([*pairs.values()]),
        torch.tensor([*pairs]),
        tuple(pairs.get(index, unknown) for index in range(target_size)),
    )


@lru_cache(maxsize=8)
def _first_numbers(count: int) -> Int[Tensor, " count"]:
    return torch.arange(count)


@on_one_thread
def _scattered(
    known: Float[Tensor, "nodes shared"],
    token_ids: Int[Tensor, " shared"],
    size: int,
    missing: float,
) -> Float[Tensor, "nodes vocab"]:
    scattered = known.new_full((len(known), size), missing)
    return scattered.index_copy_(1, token_ids.to(known.device), known)


def _spellings(tokenizer: PreTrainedTokenizerBase) -> dict[int, str | bytes]:
    """Returns the bytes of each token, or for an added token, which is no text, its name."""
    vocabulary, added = tokenizer.get_vocab(), tokenizer.added_tokens_decoder
    counts = {
        kind: sum(token.startswith(space) for token in vocabulary) for kind, space in SPACES.items()
    }
    kind = max(counts, key=lambda kind: counts[kind])
    spell = from_byte_level if kind == "byte_level" else from_sentencepiece
    return {index: token if index in added else spell(token) for token, index in vocabulary.items()}


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.name_or_path or type(tokenizer).__name__)

"""Constraints on the next token given the text so far, applied at every node of a tree.

They change the target's logits before probabilities are made of them, node by node with the node's
own path, so that constrained generation is as exact as free generation: what is sampled is the
constrained target. The drafter is left as it is; it may propose what is then rejected.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeGuard, cast, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from treesnake.arguments import as_count, as_number, as_token_ids
from treesnake.errors import InvalidInputError
from treesnake.sampling import first_largest
from treesnake.threads import on_one_thread
from treesnake.tree import TokenTree

FORBIDDEN = float("-inf")
"""The logit of a token that may not come next."""

LARGEST_BIAS = 100
"""Larger biases and penalties are refused, as OpenAI's API refuses them."""


@runtime_checkable
class Constraint(Protocol):
    """Changes the logits of the next token; must depend on its arguments alone."""

    def __call__(
        self, prefix: Sequence[int], logits: Float[Tensor, " vocab"]
    ) -> Float[Tensor, " vocab"]:
        """Returns new logits after the tokens `prefix`, prompt included; -inf forbids a token."""
        ...


@dataclass(frozen=True)
class RepetitionPenalty:
    """Makes tokens of the text less probable (CTRL, Keskar et al. 2019), as transformers does.

    Logits of seen tokens are divided by `penalty` if positive and multiplied by it if negative.
    """

    penalty: float

    def __post_init__(self) -> None:
        if not 0 < as_number("a repetition penalty", self.penalty) < float("inf"):
            raise InvalidInputError(
                f"a repetition penalty must be above 0 and finite, got {self.penalty}"
            )

    def __call__(
        self, prefix: Sequence[int], logits: Float[Tensor, " vocab"]
    ) -> Float[Tensor, " vocab"]:
        seen = torch.tensor(sorted(set(prefix)), device=logits.device)
        scores = logits[seen]
        scores = torch.where(scores < 0, scores * self.penalty, scores / self.penalty)
        return logits.index_copy(0, seen, scores)


@dataclass(frozen=True)
class BannedTokens:
    """Forbids some tokens everywhere.

    Raises:
        InvalidInputError: if these are no token ids; once it is used, if the model lacks one.
    """

    token_ids: Collection[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "token_ids", as_token_ids("banned tokens", self.token_ids))

    def __call__(
        self, prefix: Sequence[int], logits: Float[Tensor, " vocab"]
    ) -> Float[Tensor, " vocab"]:
        return logits.index_fill(0, _indices("banned", self.token_ids, logits), FORBIDDEN)


@dataclass(frozen=True)
class EarliestEnd:
    """Forbids the tokens that end a text until the text is so long, unless no other one is left.

    So a grammar whose answer is whole ends a text before its time, as a stop string does.

    Attributes:
        length: tokens of the shortest text without its end token, the prompt included.
        end_token_ids: the tokens that end it.
    """

    length: int
    end_token_ids: Collection[int]

    def __call__(
        self, prefix: Sequence[int], logits: Float[Tensor, " vocab"]
    ) -> Float[Tensor, " vocab"]:
        if len(prefix) >= self.length:
            return logits
        banned = BannedTokens(self.end_token_ids)(prefix, logits)
        return banned if float(banned.amax()) > FORBIDDEN else logits


@dataclass(frozen=True)
class LogitBias:
    """Adds a number to the logits of some tokens, as `logit_bias` of OpenAI's API does.

    Attributes:
        biases: a number from -100 to 100 for each of some token ids.

    Raises:
        InvalidInputError: if it is anything else; once it is used, if the model lacks a token.
    """

    biases: Mapping[int, float]

    def __post_init__(self) -> None:
        biases: object = self.biases
        if not isinstance(biases, Mapping):
            raise InvalidInputError(
                "biases are a number for each of some token ids, such as {5: -100}, got "
                f"{type(biases).__name__}"
            )
        as_token_ids("biases", biases)
        checked = {int(token): _as_bias("a bias", bias) for token, bias in biases.items()}
        object.__setattr__(self, "biases", checked)

    def __call__(
        self, prefix: Sequence[int], logits: Float[Tensor, " vocab"]
    ) -> Float[Tensor, " vocab"]:
        indices = _indices("biased", self.biases, logits)
        added = [self.biases[token] for token in sorted(self.biases)]
        return logits.index_add(0, indices, logits.new_tensor(added))


@dataclass(frozen=True)
class OccurrencePenalty:
    """Makes tokens of the answer less probable, as the penalties of OpenAI's API do.

    From the logit of each token that the answer has, it takes `presence`, and `frequency` once for
    each time that the token is there. The prompt does not count.

    Attributes:
        num_prompt_tokens: where the answer begins; `len(decoder.encode(prompt))`.
        presence: what one occurrence or more take off; negative makes repetition more probable.
        frequency: what each occurrence takes off.

    Raises:
        InvalidInputError: if a penalty is no number from -100 to 100.
    """

    num_prompt_tokens: int
    presence: float = 0.0
    frequency: float = 0.0

    def __post_init__(self) -> None:
        as_count("num_prompt_tokens", self.num_prompt_tokens, least=0)
        _as_bias("a presence penalty", self.presence)
        _as_bias("a frequency penalty", self.frequency)

    def __call__(
        self, prefix: Sequence[int], logits: Float[Tensor, " vocab"]
    ) -> Float[Tensor, " vocab"]:
        counts = Counter(prefix[self.num_prompt_tokens :])
        indices = torch.tensor(list(counts), dtype=torch.long, device=logits.device)
        taken = [self.presence + self.frequency * count for count in counts.values()]
        return logits.index_add(0, indices, logits.new_tensor(taken), alpha=-1)


def _as_bias(name: str, value: object) -> float:
    bias = as_number(name, value)
    if not -LARGEST_BIAS <= bias <= LARGEST_BIAS:
        raise InvalidInputError(
            f"{name} must be from -{LARGEST_BIAS} to {LARGEST_BIAS}, got {bias}"
        )
    return bias


def _indices(
    what: str, token_ids: Iterable[int], logits: Float[Tensor, " vocab"]
) -> Int[Tensor, " tokens"]:
    """Returns tokens in their order, if the model has them all."""
    tokens = sorted(token_ids)
    if tokens and not 0 <= tokens[0] <= tokens[-1] < len(logits):
        raise InvalidInputError(
            f"the model has tokens 0 to {len(logits) - 1}, and those from {tokens[0]} to "
            f"{tokens[-1]} are {what}; give token ids of its own tokenizer"
        )
    return torch.tensor(tokens, dtype=torch.long, device=logits.device)


@dataclass(frozen=True)
class AllowedTokens:
    """Allows only what a function of the text allows: a grammar, a schema, a list of words.

    A model often has more logits than its tokenizer has tokens. A mask of the tokenizer's length
    forbids the rest.

    Attributes:
        allowed_mask: takes the tokens so far, prompt included, and returns True for each token of
            the vocabulary that may come next; as a tensor, an array or a list.

    Raises:
        InvalidInputError: if it is no function; once it is used, if the mask is longer than the
            logits, too short for a token of the text, or not made of True and False.
    """

    allowed_mask: Callable[[Sequence[int]], Bool[Tensor, " vocab"] | np.ndarray | Sequence[bool]]

    def __post_init__(self) -> None:
        if not callable(self.allowed_mask):
            raise InvalidInputError(
                "allowed_mask is a function of the tokens so far, got "
                f"{type(self.allowed_mask).__name__}; write lambda prefix: mask"
            )

    def __call__(
        self, prefix: Sequence[int], logits: Float[Tensor, " vocab"]
    ) -> Float[Tensor, " vocab"]:
        mask = _as_mask(self.allowed_mask(prefix)).to(logits.device)
        if len(mask) != len(logits):
            last = max(prefix)
            if len(mask) < 2 or not last < len(mask) < len(logits):
                raise InvalidInputError(
                    f"a mask of allowed tokens has {len(mask)} entries, the model has "
                    f"{len(logits)} tokens and the text has token {last}; give one entry for each "
                    "token of the tokenizer, added tokens included"
                )
            mask = F.pad(mask, (0, len(logits) - len(mask)))
        return logits.masked_fill(~mask, FORBIDDEN)


def _as_mask(mask: object) -> Bool[Tensor, " entries"]:
    """Returns what a grammar gave as a tensor, if it is one mask of True and False."""
    if isinstance(mask, Sequence) and all(isinstance(entry, bool | np.bool_) for entry in mask):
        mask = np.array(mask, np.bool_)
    if isinstance(mask, np.ndarray) and mask.dtype == np.bool_:
        mask = torch.from_numpy(mask.copy())
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.ndim != 1:
        form = f" of {mask.dtype} and shape {tuple(mask.shape)}" if _is_array(mask) else ""
        raise InvalidInputError(
            "a mask of allowed tokens has one axis and is True for each token that may come next, "
            f"got {type(mask).__name__}{form}"
        )
    return mask


def _is_array(value: object) -> TypeGuard[Tensor | np.ndarray]:
    return isinstance(value, Tensor | np.ndarray)


def as_constraints(constraints: object) -> tuple[Constraint, ...]:
    """Returns what a user gives as constraints; None stands for none.

    Raises:
        InvalidInputError: if it is no list, or something in it cannot be called.
    """
    if constraints is None:
        return ()
    if isinstance(constraints, Constraint) or not isinstance(constraints, Iterable):
        raise InvalidInputError(
            f"constraints is a list: write constraints=[...], got {type(constraints).__name__}"
        )
    chosen = tuple(constraints)
    for each in chosen:
        if not callable(each) or isinstance(each, type):
            raise InvalidInputError(
                f"a constraint takes the text so far and logits, and returns logits, got {each!r}"
            )
    return cast(tuple[Constraint, ...], chosen)


@on_one_thread
def constrain(
    logits: Float[Tensor, "nodes vocab"],
    tree: TokenTree,
    context: Sequence[int],
    constraints: Sequence[Constraint],
    find_end: Callable[[Sequence[int]], object] = lambda drafted: None,
    *,
    is_greedy: bool = False,
) -> tuple[Float[Tensor, "nodes vocab"], frozenset[int]]:
    """Applies the constraints one after the other at every node; also returns the dead ends.

    They never see a text that they forbid, nor one that has ended: a node that cannot be accepted,
    or after which nothing will be emitted, keeps its logits, and so does all below it. Greedy text
    takes one path, so they see that path's texts alone, once each and one after the other.

    A dead end is a node after which no token is left. It keeps its logits too, since the drafter
    may have gone where the target never does; what is accepted may go up to it and not beyond, see
    `num_allowed`. The next tree begins there, if it was, and is refused.

    Args:
        logits: what the target gave.
        tree: the tree that it scored.
        context: the text so far, whose last token is the tree's anchor.
        constraints: none at all costs nothing.
        find_end: takes the drafted tokens on the way to a node; true where they end the text.
        is_greedy: whether the most probable token is the only one that can be accepted.

    Raises:
        InvalidInputError: if no token is left after the text, the anchor being a dead end; or if
            what a constraint returned is no row of logits.
    """
    if not constraints:
        return logits, frozenset()
    dead_ends: set[int] = set()
    rows: list[Float[Tensor, " vocab"]] = []
    is_open: list[bool] = []
    for node, (parent, token) in enumerate(zip(tree.parents, tree.tokens, strict=True)):
        drafted = tree.path_tokens(node)[1:]
        row = logits[node]
        is_open.append(
            parent < 0
            or (
                is_open[parent]
                and _can_follow(rows[parent], token, is_greedy=is_greedy)
                and not find_end(drafted)
            )
        )
        if is_open[node]:
            constrained = _constrain_row(row, [*context, *drafted], constraints)
            if float(constrained.amax()) > FORBIDDEN:
                row = constrained
            else:
                dead_ends.add(node)
                is_open[node] = False
        rows.append(row)
    if 0 in dead_ends:
        raise InvalidInputError(
            f"the constraints allow no token after {len(context)} tokens; allow at least an end "
            "token there"
        )
    return torch.stack(rows), frozenset(dead_ends)


def num_allowed(path: Sequence[int], dead_ends: Collection[int]) -> int:
    """Returns how many tokens of an accepted path and the target's own may be emitted.

    All of them, or those up to the first dead end: the text comes to it as plain decoding would.
    """
    return next((index for index, node in enumerate(path) if node in dead_ends), len(path))


def _can_follow(logits: Float[Tensor, " vocab"], token: int, *, is_greedy: bool) -> bool:
    if is_greedy:
        return int(first_largest(logits)) == token
    return bool(logits[token] > FORBIDDEN)


def _constrain_row(
    logits: Float[Tensor, " vocab"], prefix: Sequence[int], constraints: Sequence[Constraint]
) -> Float[Tensor, " vocab"]:
    row = logits.clone()  # a constraint may write into what it is given
    for constraint in constraints:
        constrained: object = constraint(prefix, row)
        row = _checked_row(constrained, logits, constraint)
    return row


def _is_row(row: object, vocab_size: int) -> TypeGuard[Tensor]:
    """Tells whether a constraint returned one number for each token."""
    return (
        isinstance(row, Tensor)
        and row.shape == (vocab_size,)
        and row.is_floating_point()
        and row.device.type != "meta"
    )


def _checked_row(
    row: object, logits: Float[Tensor, " vocab"], constraint: Constraint
) -> Float[Tensor, " vocab"]:
    """Returns what a constraint made of logits, if it is logits; -inf may be among them."""
    name = type(constraint).__name__
    if not _is_row(row, len(logits)):
        form = f" of {row.dtype} and shape {tuple(row.shape)}" if isinstance(row, Tensor) else ""
        raise InvalidInputError(
            f"the constraint {name} must return a logit for each of {len(logits)} tokens, got "
            f"{type(row).__name__}{form}"
        )
    row = row.detach()
    top = float(row.amax())
    if not top < float("inf"):
        raise InvalidInputError(
            f"the constraint {name} returned logits with {top} among them; -inf forbids a token, "
            "all others must be finite"
        )
    return row.to(logits.device)

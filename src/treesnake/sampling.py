"""How logits become probabilities and who draws tokens, for drafter and target alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from treesnake.arguments import as_count, as_number, as_seed
from treesnake.errors import InvalidInputError
from treesnake.threads import on_one_thread
from treesnake.transfers import fetched

COLD = 1e-6
"""Divided by lower temperatures, logits may become too large for float32."""

SMALLEST_NORMAL = torch.finfo(torch.float32).tiny
LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class SamplingParams:
    """The distribution to sample from, in terms of the target's logits.

    The filters apply in the order temperature, top-k, top-p, min-p, as in transformers.

    Attributes:
        temperature: divides the logits; 0 means greedy decoding and ignores the filters.
        top_k: keeps the k most probable tokens; None keeps all.
        top_p: keeps the smallest set of most probable tokens with at least this mass, in (0, 1].
        min_p: drops tokens below this fraction of the most probable one, in [0, 1].
        seed: makes a generation reproducible: the sample of plain decoding with this seed, unless
            a shape is fixed that draws its nodes; None draws a fresh one.

    Tokens that tie with the last kept one are kept as well, so that the result depends on the
    values of a row alone. None for any of these is the same as leaving it out.

    Raises:
        InvalidInputError: if a value is out of range, or no number.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, default in (("temperature", 0.0), ("top_p", 1.0), ("min_p", 0.0)):
            value: object = getattr(self, name)
            object.__setattr__(self, name, default if value is None else as_number(name, value))
        if not 0 <= self.temperature < float("inf"):
            raise InvalidInputError(
                f"temperature must be a finite number of at least 0, got {self.temperature}"
            )
        if self.top_k is not None:
            if self.top_k == 0:
                raise InvalidInputError("top_k must be at least 1, got 0; leave it out to keep all")
            object.__setattr__(self, "top_k", as_count("top_k", self.top_k))
        if not 0 < self.top_p <= 1:
            raise InvalidInputError(f"top_p must be in (0, 1], got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise InvalidInputError(f"min_p must be in [0, 1], got {self.min_p}")
        if self.seed is not None:
            object.__setattr__(self, "seed", as_seed(self.seed))

    @property
    def is_greedy(self) -> bool:
        """Whether each row of probabilities has a single 1."""
        return self.temperature == 0

    @property
    def has_filters(self) -> bool:
        """Whether a filter may drop tokens."""
        return self.top_k is not None or self.top_p < 1 or self.min_p > 0


@on_one_thread
def to_probs(
    logits: Float[Tensor, "*rows vocab"], params: SamplingParams
) -> Float[Tensor, "*rows vocab"]:
    """Returns the probabilities that `params` make of each row of logits, in float32.

    At temperature 0 all mass is on the first of the largest logits.
    """
    logits = logits.float()
    if params.is_greedy:
        return _all_on(first_largest(logits), logits)
    logits = _divided(logits, params.temperature)
    if params.top_k is not None and params.top_k < logits.shape[-1]:
        smallest_kept = _kth_largest(logits, params.top_k)
        logits = logits.masked_fill(logits < smallest_kept, float("-inf"))
    probs = _softmax(logits)
    if params.top_p < 1:
        _keep_from(_nucleus_floor(probs, params.top_p), probs)
    if params.min_p > 0:
        _keep_from(params.min_p * probs.amax(-1, keepdim=True), probs)
    return probs


@dataclass(frozen=True, eq=False)
class Distributions:
    """What `params` make of rows of logits: the distribution of the token after each node.

    Probabilities are made when somebody asks for them. Most steps need none: the largest logit is
    known without, and so is who comes first by noise.

    Attributes:
        logits: after each node.
        params: temperature and filters.
    """

    logits: Float[Tensor, "nodes vocab"]
    params: SamplingParams

    @cached_property
    def probs(self) -> Float[Tensor, "nodes vocab"]:
        """The probabilities of all tokens, in float32."""
        return to_probs(self.logits, self.params)


def all_finite(logits: Float[Tensor, "rows vocab"]) -> Callable[[], bool]:
    """Returns what tells whether the largest logit of each row is a number.

    On a GPU it waits for the logits, unless that was done meanwhile.
    """
    if _is_for_numpy(logits):
        rows = logits.numpy()
        tops = rows.argmax(-1)
        found = all(isfinite(row[column]) for row, column in zip(rows, tops, strict=True))
        return lambda: found
    are_finite = fetched(logits.amax(-1).isfinite().all())
    return lambda: bool(are_finite())


def _all_on(
    columns: Int[Tensor, "*rows"], like: Float[Tensor, "*rows vocab"]
) -> Float[Tensor, "*rows vocab"]:
    """Returns probabilities of 1 in one column of each row."""
    if not _is_for_numpy(like):
        return torch.zeros_like(like).scatter_(-1, columns[..., None], 1.0)
    rows = np.zeros((columns.numel(), like.shape[-1]), np.float32)
    rows[np.arange(len(rows)), columns.numpy().reshape(-1)] = 1
    return torch.from_numpy(rows.reshape(like.shape))


def log_softmax(logits: Float[Tensor, "*rows vocab"]) -> Float[Tensor, "*rows vocab"]:
    """Returns log probabilities."""
    if not _is_for_numpy(logits):
        return logits.log_softmax(-1)
    rows = logits.numpy()
    with np.errstate(invalid="ignore"):  # a row in which nothing is possible
        shifted = rows - rows.max(-1, keepdims=True)
    return torch.from_numpy(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def log_of(probs: Float[Tensor, "*rows vocab"]) -> Float[Tensor, "*rows vocab"]:
    """Returns the logarithms; that of 0, for which torch takes ten times as long, is -inf."""
    if not _is_for_numpy(probs):
        return probs.log()
    with np.errstate(divide="ignore"):
        return torch.from_numpy(np.log(probs.numpy()))


def first_largest(values: Float[Tensor, "*rows vocab"]) -> Int[Tensor, "*rows"]:
    """Returns where each row is largest, the first column of several.

    On a CPU by numpy, which takes a twentieth of torch's time; greedy decoding does this for every
    node.
    """
    if values.device.type == "cpu":
        return torch.from_numpy(np.asarray(cpu_rows(values).argmax(-1)))
    return values.argmax(-1)


def cpu_rows(logits: Float[Tensor, "*rows vocab"]) -> Float[np.ndarray, "*rows vocab"]:
    """Returns logits on a CPU in float32, for numpy and compiled code."""
    return (logits if logits.dtype == torch.float32 else _widened(logits)).numpy()


@on_one_thread
def _widened(logits: Float[Tensor, "*rows vocab"]) -> Float[Tensor, "*rows vocab"]:
    return logits.float()


class Largest(NamedTuple):
    """The largest numbers of each row, in falling order, and their columns."""

    values: Float[Tensor, "rows largest"]
    indices: Int[Tensor, "rows largest"]


def largest(values: Float[Tensor, "rows vocab"], number: int) -> Largest:
    """Returns the largest numbers of each row, on the host.

    On a CPU one after the other, by numpy: twenty times as fast as torch for one, and faster for
    the few that trees have below a node.
    """
    if values.device.type != "cpu":
        best = values.topk(number, dim=-1)
        numbers = fetched(best.values)
        columns = best.indices.cpu()  # waits for both
        return Largest(numbers(), columns)
    rows = values.float().numpy()
    if number > 1:
        rows = rows.copy()  # it loses what was found
    every = np.arange(len(rows))
    found = np.empty((len(rows), number), np.float32)
    columns = np.empty((len(rows), number), np.int64)
    for rank in range(number):
        if rank > 0:
            rows[every, columns[:, rank - 1]] = -np.inf
        columns[:, rank] = rows.argmax(-1)
        found[:, rank] = rows[every, columns[:, rank]]
    return Largest(torch.from_numpy(found), torch.from_numpy(columns))


@runtime_checkable
class Rng(Protocol):
    """The only source of chance: each random decision of a rule or a drafter is one of these.

    `treesnake.chance.TorchRng` draws them; `treesnake.testing.enumerate_outcomes` goes through all
    of them, which turns every acceptance rule into exact arithmetic on its own probabilities.
    """

    def coin(self, probability: float) -> bool:
        """Returns True with the given probability; values above 1 mean certainty."""
        ...

    def draw(self, probs: Float[Tensor, " vocab"]) -> int:
        """Returns one token; `probs` need not be normalized, but not all zero."""
        ...

    def draw_distinct(self, probs: Float[Tensor, " vocab"], num_tokens: int) -> list[int]:
        """Returns up to `num_tokens` tokens drawn one after the other without replacement.

        Each is drawn from `probs` with the earlier ones set to zero and renormalized. There are
        fewer where fewer tokens have any mass.
        """
        ...

    def waits(
        self, depth: int, token_ids: Int[np.ndarray, " tokens"]
    ) -> Float[np.ndarray, " tokens"]:
        """Returns the noise of some tokens at a place of the text, for a drafter to draw by.

        The noise is a waiting time with the exponential distribution: of tokens that come with
        probabilities as rates, `first_come` draws the one that comes first. Adding the Gumbel noise
        -log(waits) to log probabilities and taking the largest does the same.

        Args:
            depth: 0 for the place of the next token, 1 for that after it, and so on.
            token_ids: the target's.
        """
        ...

    def first_come(self, target: Distributions, depths: Sequence[int]) -> Callable[[int], int]:
        """Returns what draws the token after a node by the noise of the place at its depth.

        It depends on the place and on the node's row alone, not on what was drawn before.
        """
        ...

    def advance(self, num_tokens: int) -> None:
        """Goes on in the text: what was at depth `num_tokens` is at depth 0 from now on."""
        ...


def _is_for_numpy(rows: Float[Tensor, "..."]) -> bool:
    """Tells whether numpy is the one to go through whole rows, by the calling thread alone."""
    return rows.device.type == "cpu" and rows.dtype == torch.float32


def _divided(logits: Float[Tensor, "*rows vocab"], by: float) -> Float[Tensor, "*rows vocab"]:
    """Divides by a temperature, as far as float32 goes; quotients of a small one stay finite."""
    if by == 1:
        return logits
    if by < COLD:
        logits = logits - logits.amax(-1, keepdim=True)  # or the quotients would be infinite
    by = min(max(by, SMALLEST_NORMAL), LARGEST)
    if _is_for_numpy(logits):
        with np.errstate(over="ignore"):  # what is far below the largest becomes impossible
            return torch.from_numpy(np.asarray(logits.numpy() / np.float32(by)))
    return logits / by


def _softmax(logits: Float[Tensor, "*rows vocab"]) -> Float[Tensor, "*rows vocab"]:
    if not _is_for_numpy(logits):
        return logits.softmax(-1)
    rows = logits.numpy()
    with np.errstate(invalid="ignore"):  # a row in which nothing is possible
        probs = rows - rows.max(-1, keepdims=True)
        np.exp(probs, out=probs)  # in place: fresh memory costs more
    probs /= probs.sum(-1, keepdims=True)
    return torch.from_numpy(probs)


def _kth_largest(values: Float[Tensor, "*rows vocab"], k: int) -> Float[Tensor, "*rows 1"]:
    if values.device.type == "cpu":
        column = values.shape[-1] - k
        return torch.from_numpy(np.partition(values.numpy(), column)[..., column, None])
    return values.topk(k).values[..., -1:]


def _nucleus_floor(probs: Float[Tensor, "*rows vocab"], top_p: float) -> Float[Tensor, "*rows 1"]:
    """Returns the smallest probability of each row's nucleus.

    On a CPU sorting whole rows may take longer than scoring them did. Tokens with less than their
    share of 1 - top_p are in no nucleus, however many they are, so only the others are sorted; half
    the share, since sums are rounded.
    """
    if probs.device.type != "cpu":
        return _smallest_in_nucleus(probs, top_p)
    half_share = (1 - top_p) / probs.shape[-1] / 2
    rows = probs.reshape(-1, probs.shape[-1]).numpy()
    likely = (torch.from_numpy(np.compress(row > half_share, row)) for row in rows)
    floors = [float(_smallest_in_nucleus(row, top_p)) for row in likely]
    return probs.new_tensor(floors).reshape(*probs.shape[:-1], 1)


def _smallest_in_nucleus(
    probs: Float[Tensor, "*rows likely"], top_p: float
) -> Float[Tensor, "*rows 1"]:
    descending = _descending(probs)
    mass_before = descending.cumsum(-1) - descending
    num_kept = (mass_before < top_p).sum(-1, keepdim=True).clamp(min=1)
    return descending.gather(-1, num_kept - 1)


def _descending(values: Float[Tensor, "*rows vocab"]) -> Float[Tensor, "*rows vocab"]:
    """Returns each row sorted. On a CPU by numpy, which takes a twentieth of torch's time."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=-1)).flip(-1)
    return values.sort(dim=-1, descending=True).values


def _keep_from(floor: Float[Tensor, "*rows 1"], probs: Float[Tensor, "*rows vocab"]) -> None:
    """Drops what is below a floor and normalizes the rest, in place: fresh memory costs more."""
    probs.masked_fill_(probs < floor, 0)
    probs /= probs.sum(-1, keepdim=True)

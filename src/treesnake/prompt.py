"""What a sequence begins with."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import itemgetter
from typing import Any, SupportsIndex

from jaxtyping import Shaped
from numpy import generic, ndarray
from torch import Tensor, uint8

from treesnake.errors import ContextLengthError, InvalidInputError
from treesnake.utf8 import described

Key = int | tuple[str, int]
"""What one place of a text is: a token id, or for a placeholder the digest of its input and the
number of the placeholder within it."""


@dataclass(frozen=True, eq=False)
class PromptInput:
    """What a model is given once beside token ids, such as the pixels of an image.

    Two inputs are equal if their tensors are, bit for bit, and their placeholders.

    Attributes:
        tensors: by the names of the model's own arguments, such as `pixel_values`.
        start: the index of its first placeholder among the prompt's tokens.
        num_placeholders: how many tokens in a row stand for it.
        picture: what the tensors were made of, for those who put it into words; an image of Pillow,
            or None where that is not known.

    Raises:
        InvalidInputError: if there is no tensor or no placeholder.
    """

    tensors: Mapping[str, Shaped[Tensor, "..."]]
    start: int
    num_placeholders: int
    picture: object = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        tensors: object = self.tensors
        if (
            not isinstance(tensors, Mapping)
            or not tensors
            or not all(isinstance(tensor, Tensor) for tensor in tensors.values())
        ):
            raise InvalidInputError(
                "an input of a prompt needs tensors by the names of the model's arguments, such as "
                f"{{'pixel_values': tensor}}, got {described(tensors)}"
            )
        if not _are_whole([self.start, self.num_placeholders]) or not (
            self.start >= 0 and self.num_placeholders >= 1
        ):
            raise InvalidInputError(
                "an input of a prompt needs a first placeholder at token 0 or later, and at least "
                f"one placeholder; got start {described(self.start)} and "
                f"{described(self.num_placeholders)} placeholders"
            )

    @cached_property
    def digest(self) -> str:
        """A digest of names, shapes, dtypes and bytes of the tensors."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items(), key=itemgetter(0)):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
            flat = tensor.detach().cpu().contiguous().flatten()
            digest.update(flat.view(uint8).numpy().tobytes() if flat.numel() else b"")
        return digest.hexdigest()

    @property
    def end(self) -> int:
        """The index of the token after its last placeholder."""
        return self.start + self.num_placeholders

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PromptInput) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[str, int, int]:
        return self.digest, self.start, self.num_placeholders


@dataclass(frozen=True)
class Prompt:
    """The text that a generation continues.

    Attributes:
        token_ids: one token at least.
        inputs: what some of the tokens stand for, in the order of the text.
        borders: numbers of tokens behind which another prompt is likely to go on differently, such
            as the end of the last message. States that cannot be cut keep a snapshot there.
        messages: the conversation that the tokens are as the target's chat template has it, if they
            are one. A drafter with a template of its own reads it in that.

    Raises:
        InvalidInputError: if there is no token, one is no whole number or is negative, a border
            lies outside of the prompt, or placeholders overlap or lie outside of it.
    """

    token_ids: tuple[int, ...]
    inputs: tuple[PromptInput, ...] = ()
    borders: tuple[int, ...] = ()
    messages: tuple[Mapping[str, Any], ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.token_ids, tuple):
            object.__setattr__(self, "token_ids", _plain_ids(self.token_ids))
        self._check_tokens()
        self._check_borders()
        self._check_inputs()

    def _check_tokens(self) -> None:
        if not self.token_ids:
            raise InvalidInputError(
                "the prompt is empty: give at least one token (a beginning-of-text token will do)"
            )
        if not _are_whole(self.token_ids):
            index = next(i for i, token in enumerate(self.token_ids) if type(token) is not int)
            raise InvalidInputError(
                f"token ids are whole numbers, and number {index + 1} of {len(self)} is "
                f"{described(self.token_ids[index])}; give the ids of one text, or the text itself"
            )
        if min(self.token_ids) < 0:
            raise InvalidInputError(
                f"token ids cannot be negative, got {described(min(self.token_ids))}"
            )

    def _check_borders(self) -> None:
        borders: object = self.borders
        if (
            not isinstance(borders, tuple)
            or not _are_whole(borders)
            or not all(0 <= border <= len(self) for border in borders)
        ):
            raise InvalidInputError(
                f"borders are a tuple of numbers of tokens from 0 to {len(self)}, got {borders!r}"
            )

    def _check_inputs(self) -> None:
        inputs: object = self.inputs
        if not isinstance(inputs, tuple) or not all(isinstance(x, PromptInput) for x in inputs):
            raise InvalidInputError(
                f"the inputs of a prompt are a tuple of PromptInput, got {described(inputs)}"
            )
        reached = 0
        for each in self.inputs:
            if each.start < reached or each.end >= len(self):
                raise InvalidInputError(
                    f"an input has its placeholders at tokens {each.start} to {each.end - 1}; here "
                    f"they must lie between tokens {reached} and {len(self) - 2}: behind the input "
                    "before it, and before the last token of the prompt"
                )
            reached = each.end

    @classmethod
    def of(cls, token_ids: Iterable[SupportsIndex]) -> "Prompt":
        """Makes a prompt of any sequence of token ids, such as a list or a one-dimensional array.

        Raises:
            InvalidInputError: as the class does.
        """
        return cls(_plain_ids(token_ids))

    def __len__(self) -> int:
        return len(self.token_ids)

    @cached_property
    def key(self) -> tuple[Key, ...]:
        """What the text is, place by place.

        Texts with equal keys are equal. Equal token ids say nothing: pictures differ where their
        placeholders do not. So whatever compares texts compares keys.
        """
        key: list[Key] = list(self.token_ids)
        for each in self.inputs:
            key[each.start : each.end] = [
                (each.digest, number) for number in range(each.num_placeholders)
            ]
        return tuple(key)

    def without_inputs(self) -> "Prompt":
        """Returns the prompt as text alone, for models that read nothing else.

        Placeholders are left out: without what they stand for they say nothing.
        """
        if not self.inputs:
            return self
        retold = retell(self, lambda _: ())
        return Prompt(retold.token_ids, borders=retold.borders)

    def behind(self, start: int) -> "Prompt":
        """Returns the prompt from a token on, which stands in no input, as a text of its own."""
        return Prompt(
            self.token_ids[start:],
            tuple(
                replace(each, start=each.start - start)
                for each in self.inputs
                if each.start >= start
            ),
            tuple(border - start for border in self.borders if border > start),
        )

    def check(self, vocab_size: int, context_length: int | None) -> None:
        """Checks that a model with this vocabulary and context can continue the prompt.

        Raises:
            InvalidInputError: if a token is not in the vocabulary.
            ContextLengthError: if no new token would fit.
        """
        if max(self.token_ids) >= vocab_size:
            raise InvalidInputError(
                f"token id {described(max(self.token_ids))} is not in the vocabulary of "
                f"{vocab_size} tokens; encode the prompt with the target's own tokenizer"
            )
        if context_length is not None and len(self) >= context_length:
            num_placeholders = sum(each.num_placeholders for each in self.inputs)
            share = f" ({num_placeholders} of them for {len(self.inputs)} images)"
            advice = "give fewer images, or smaller ones" if self.inputs else "shorten the prompt"
            raise ContextLengthError(
                f"the prompt has {len(self)} tokens{share if self.inputs else ''} and the context "
                f"holds {context_length}, so there is no room for a new one; {advice}"
            )

    def followed_by(self, token_ids: Sequence[int]) -> "Prompt":
        """Returns the prompt with more tokens behind it."""
        return replace(self, token_ids=(*self.token_ids, *token_ids), messages=())

    def check_text_only(self) -> None:
        """Checks that the prompt is token ids and nothing else.

        Raises:
            InvalidInputError: if it has inputs.
        """
        if self.inputs:
            names = sorted({name for each in self.inputs for name in each.tensors})
            raise InvalidInputError(
                f"the model reads text and nothing else, and the prompt brings {', '.join(names)}; "
                "leave them out or load a model that takes them"
            )


@dataclass(frozen=True)
class Retold:
    """A prompt with other tokens in the place of its images.

    Attributes:
        token_ids: its tokens.
        starts: where the tokens for each image begin.
        borders: those of the prompt.
    """

    token_ids: tuple[int, ...]
    starts: tuple[int, ...]
    borders: tuple[int, ...]


def retell(
    prompt: Prompt,
    tokens_for: Callable[[PromptInput], Sequence[int]],
    marks: Set[int] = frozenset(),
) -> Retold:
    """Puts tokens in the place of each image.

    Args:
        prompt: any.
        tokens_for: returns the tokens for an image.
        marks: tokens that are left out.
    """
    image_at = {each.start: each for each in prompt.inputs}
    placeholders = {index for each in prompt.inputs for index in range(each.start, each.end)}
    token_ids: list[int] = []
    starts: list[int] = []
    lengths = [0]
    for index, token in enumerate(prompt.token_ids):
        if index in image_at:
            starts.append(len(token_ids))
            token_ids += tokens_for(image_at[index])
        elif index not in placeholders and token not in marks:
            token_ids.append(token)
        lengths.append(len(token_ids))
    borders = tuple(lengths[each] for each in prompt.borders)
    return Retold(tuple(token_ids), tuple(starts), borders)


def _are_whole(numbers: Iterable[object]) -> bool:
    """Tells whether all are of the type int, which bool is not."""
    return {*map(type, numbers)} <= {int}


def _plain_ids(token_ids: object) -> tuple[Any, ...]:
    """Returns token ids as a tuple of Python's own numbers, as far as they are numbers."""
    items = tuple(_items(token_ids))
    return items if _are_whole(items) else tuple(map(_plain, items))


def _items(token_ids: object) -> Iterable[Any]:
    """Returns what a prompt is made of; arrays as Python's own numbers."""
    try:
        items = token_ids.tolist() if isinstance(token_ids, (Tensor, ndarray)) else token_ids
    except RuntimeError as error:  # a tensor without memory, such as a sparse one
        raise InvalidInputError(f"the token ids of the prompt cannot be read: {error}") from error
    if isinstance(items, (str, bytes, bytearray, memoryview, Mapping, Set)):
        kind = type(items).__name__
        raise InvalidInputError(
            f"the prompt is of type {kind}; give text, a list of token ids or a list of messages"
        )
    if not isinstance(items, Iterable):
        raise InvalidInputError(
            f"the prompt must be text, a list of token ids or a list of messages, not "
            f"{described(token_ids)}"
        )
    return items


def _plain(token: Any) -> Any:
    """Returns a number of numpy or torch, or of a class of the caller's, as Python's own."""
    if isinstance(token, (Tensor, generic)):
        return token.tolist()
    return int(token) if isinstance(token, int) and not isinstance(token, bool) else token


def num_shared(first: Sequence[Key], second: Sequence[Key]) -> int:
    """Returns how many places two texts begin with in common."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))

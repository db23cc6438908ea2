"""A test that a model can be put through before it is trusted with trees."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
import transformers
from jaxtyping import Float
from torch import Tensor

from treesnake.errors import InvalidInputError, TreesnakeError, UnsupportedModelError
from treesnake.models.hf_images import HfImages
from treesnake.models.hf_passes import MISFITS, at_home
from treesnake.models.tree_network import TreeState
from treesnake.prompt import Prompt

PARENTS = (-1, 0, 0, 1, 1, 2, 4)
"""Siblings at two depths, and a leaf whose path is scattered over the rows of the cache."""

LEAF = 6

NOTHING: Mapping[str, Any] = MappingProxyType({})

_PASSED: WeakKeyDictionary["transformers.PreTrainedModel", str] = WeakKeyDictionary()
"""The attention with which each living model passed: `generate` of transformers may be called often
with one model, each time without knowing what was found out before."""

_PASSED_WITH_IMAGE: WeakSet["transformers.PreTrainedModel"] = WeakSet()
"""The living models that passed behind an image."""

TreeScore = Callable[[Prompt, Sequence[int], Sequence[int]], Float[Tensor, "nodes vocab"]]
"""Returns the logits after the nodes of a tree that continues a prompt without its last token."""


def check_scores_once(model: "transformers.PreTrainedModel", state: TreeState) -> None:
    """Does what `check_scores` does, unless the model passed before with the same attention."""
    attention = str(model.config.get_text_config(decoder=True)._attn_implementation)
    if _PASSED.get(model) != attention:
        check_scores(model, state)
        _PASSED[model] = attention


def check_inputs(
    model: "transformers.PreTrainedModel",
    images: HfImages | None,
    score: TreeScore,
    prompt: Prompt,
) -> None:
    """Checks that a model can read what a prompt brings beside its tokens.

    Args:
        model: the model.
        images: how it reads them; None if it reads text alone.
        score: as in `check_images_once`.
        prompt: what is to be read.

    Raises:
        InvalidInputError: if it cannot.
        UnsupportedModelError: if it reads images otherwise than trees need, with the reason.
    """
    if images is None or not prompt.inputs:
        prompt.check_text_only()
        return
    images.check_prompt(prompt)
    if not images.is_verified:
        images.check_supported()
        check_images_once(model, images, score, prompt)


def check_images_once(
    model: "transformers.PreTrainedModel", images: HfImages, score: TreeScore, prompt: Prompt
) -> None:
    """Compares the scores of a tree behind an image with the model's own passes over its paths.

    The reference runs a prompt up to its first image, and a path behind that, at once: with no
    cache, no mask and no positions from us. The first image that a model is given decides.

    Args:
        model: what is tried, once.
        images: how it reads them.
        score: our way.
        prompt: one with an image.

    Raises:
        UnsupportedModelError: if the scores differ, or the model fails.
    """
    if model in _PASSED_WITH_IMAGE:
        return
    image = prompt.inputs[0]
    text = prompt.token_ids[: image.end]
    nodes = _scattered_tokens(_vocab_size(model), len(PARENTS))
    try:
        logits = score(Prompt((*text, nodes[0]), inputs=(image,)), nodes, PARENTS)
        errors = []
        for node in (3, 5, LEAF):
            whole = Prompt((*text, *(nodes[step] for step in _path(node))), inputs=(image,))
            tensors = {**images.options(image), **images.token_types(whole)}
            errors.append(_relative_error(logits[node], _plain_logits(model, whole, tensors)))
    except (InvalidInputError, *MISFITS) as reason:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot score a token tree behind an image: {reason}"
        ) from reason
    if not max(errors) < _tolerance(model.dtype):
        raise UnsupportedModelError(
            f"{type(model).__name__} scores a token tree behind an image differently from its "
            f"paths, with a relative error of {max(errors):.2g}: it does not read an image as "
            "one part of the text; give it text only"
        )
    _PASSED_WITH_IMAGE.add(model)


def check_scores(model: "transformers.PreTrainedModel", state: TreeState) -> None:
    """Compares the scores of a small tree with the model's own forward passes over whole paths.

    The reference runs each path from the beginning of the text, with no cache, no mask and no
    positions from us, so it differs if the model ignores or misreads any of these. Costs seven
    forward passes of about ten tokens. What lies beyond ten tokens, such as the edge of a sliding
    window, is not tested.

    Raises:
        UnsupportedModelError: if the scores differ, or the model fails on a tree.
    """
    try:
        error = _largest_error(model, state)
    except (TreesnakeError, torch.OutOfMemoryError):
        raise
    except MISFITS as reason:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot score a token tree: {reason}"
        ) from reason
    if not error < _tolerance(model.dtype):
        raise UnsupportedModelError(
            f"{type(model).__name__} scores a token tree differently from its paths, with a "
            f"relative error of {error:.2g}: it disregards the mask, positions or cache given to it"
        )


def _largest_error(model: "transformers.PreTrainedModel", state: TreeState) -> float:
    token_ids = _scattered_tokens(_vocab_size(model), 5 + len(PARENTS))
    text, nodes = token_ids[:5], token_ids[5:]

    def text_to(node: int) -> Prompt:
        return Prompt((*text, *(nodes[step] for step in _path(node))))

    state.prefill(Prompt.of([*text, nodes[0]]))
    logits = state.extend(nodes, PARENTS)
    errors = [
        _relative_error(logits[node], _plain_logits(model, text_to(node))) for node in (3, 5, LEAF)
    ]
    state.commit(_path(LEAF))
    following = text[:1]
    logits = state.extend(following, [-1])
    whole = Prompt((*text_to(LEAF).token_ids, *following))
    return max(*errors, _relative_error(logits[0], _plain_logits(model, whole)))


def _path(node: int) -> list[int]:
    """Returns the nodes from the text to a node."""
    return [*_path(PARENTS[node]), node] if node >= 0 else []


@torch.no_grad()
def _plain_logits(
    model: "transformers.PreTrainedModel", text: Prompt, tensors: Mapping[str, Any] = NOTHING
) -> Float[Tensor, " vocab"]:
    input_ids = torch.tensor([text.token_ids], device=model.device)
    options = at_home(tensors, model)
    return model(input_ids=input_ids, use_cache=False, **options).logits[0, -1]


def _vocab_size(model: "transformers.PreTrainedModel") -> int:
    return model.config.get_text_config(decoder=True).vocab_size


def _relative_error(actual: Float[Tensor, " vocab"], expected: Float[Tensor, " vocab"]) -> float:
    actual, expected = actual.float(), expected.float()
    return float((actual - expected).norm() / (expected - expected.mean()).norm())


def _tolerance(dtype: torch.dtype) -> float:
    """Returns the error that counts as rounding; a mask disregarded costs several tenths."""
    return 1e-3 if dtype == torch.float32 else 0.1


def _scattered_tokens(vocab_size: int, num_tokens: int) -> list[int]:
    """Returns tokens from all over a vocabulary, away from special ones at its two ends."""
    return [vocab_size * (2 * index + 3) // (2 * num_tokens + 6) for index in range(num_tokens)]

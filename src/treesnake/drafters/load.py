"""Drafters by name."""

import json
from collections.abc import Callable
from functools import partial, reduce
from pathlib import Path
from typing import Any, Literal, get_args

from jaxtyping import Int
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from treesnake.drafters.composite import CompositeDrafterModel
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.ngram import NgramDrafterModel
from treesnake.drafters.none import NoDrafterModel
from treesnake.drafters.vocabulary import (
    DraftVocabulary,
    PaddedVocabulary,
    VocabularyMap,
    check_same_tokens,
    read_draft_vocabulary,
    share_tokens,
)
from treesnake.errors import InvalidInputError, LoadError
from treesnake.loading.checkpoint import DEFAULT_MODEL, Checkpoint, locate
from treesnake.loading.networks import load_attention_network
from treesnake.loading.pretrained import DtypeName, check_options, resolve_device
from treesnake.loading.state_space import load_state_space_network
from treesnake.models.checkpoint import CONFIG_FILE, TOKENIZER_FILES, read_config
from treesnake.protocols import DrafterModel

AUTO = "auto"
PROMPT_LOOKUP = "prompt-lookup"
NO_DRAFTER = "none"

SHIPPED_FOLDER = Path(__file__).parent / "shipped"
SHIPPED_FOR = dict.fromkeys(
    (DEFAULT_MODEL, "HuggingFaceTB/SmolLM2-135M-Instruct"), "treesnake-smol"
)
"""The trained drafters that come with the package, by the targets that they were trained for."""

WEIGHTLESS: dict[str, Callable[[], DrafterModel]] = {
    PROMPT_LOOKUP: NgramDrafterModel,
    NO_DRAFTER: NoDrafterModel,
}

Tokens = Literal["same", "shared"]
"""Which of the drafter's tokens may be drafted: all, for they are the target's; or those that both
tokenizers have in common."""


def load_drafter(
    name: str,
    *,
    target: Checkpoint | None = None,
    dtype: DtypeName = "auto",
    device: str = "auto",
    window: int | None = None,
    tokens: Tokens = "same",
) -> DrafterModel:
    """Returns a drafter.

    Args:
        name: "auto", prompt lookup, beside a trained drafter if one comes with the package for this
            target; "prompt-lookup"; "none", which never drafts anything; a folder, a GGUF file or a
            name at the hub, of a Mamba, Mamba-2 or Transformer; or one of these and prompt lookup,
            as in "state-spaces/mamba-130m-hf+prompt-lookup".
        target: what it drafts for; without it the drafter's tokens are taken for the target's.
        dtype: of the weights. "auto" is int8 for a Mamba on a CPU, else the checkpoint's own. What
            is drafted depends on it, and so does the speed; the text does not.
        device: "cpu", "cuda", "cuda:1", "mps" or "auto" for the best there is.
        window: how many tokens a Transformer sees at most; others have no use for it.
        tokens: "same" checks that the tokenizer is the target's; "shared" drafts what two different
            ones have in common, at a low acceptance.

    Raises:
        LoadError: if there is no such drafter, or its files are broken.
        UnsupportedModelError: if it is of a kind that cannot draft.
        InvalidInputError: for options that do not exist, and for another tokenizer.
    """
    if tokens not in get_args(Tokens):
        raise InvalidInputError(f'unknown tokens {tokens!r}; choose "same" or "shared"')
    check_options(dtype, device, None)
    check_drafter_name(name)
    load = partial(
        _load_model, target=target, dtype=dtype, device=device, window=window, tokens=tokens
    )
    parts = [
        known
        for part in _parts(name)
        for known in (default_drafters(target) if part == AUTO else (part,))
    ]
    parts = list(dict.fromkeys(parts))
    models = [part for part in parts if part not in WEIGHTLESS]
    # The model comes first: its nodes are drawn, and what is drawn must precede what is chosen.
    drafters = [*map(load, models), *(WEIGHTLESS[part]() for part in parts if part in WEIGHTLESS)]
    return reduce(CompositeDrafterModel, drafters)


def default_drafters(target: Checkpoint | None) -> tuple[str, ...]:
    """Returns what "auto" stands for: prompt lookup, beside a drafter that ships for the target."""
    name = target.name if target is not None else ""
    return (SHIPPED_FOR[name], PROMPT_LOOKUP) if name in SHIPPED_FOR else (PROMPT_LOOKUP,)


def check_drafter_name(name: str) -> None:
    """Checks what can be checked of a name before anything is looked for at a hub.

    Raises:
        InvalidInputError: if it can be no drafter.
    """
    models = [part for part in _parts(name) if part not in WEIGHTLESS]
    known = {AUTO, DEFAULT_MODEL, *SHIPPED_FOR.values()}
    for model in models:
        if model not in known and "/" not in model and not Path(model).exists():
            choice = ", ".join([AUTO, *dict.fromkeys(SHIPPED_FOR.values()), *WEIGHTLESS])
            raise InvalidInputError(
                f"there is no drafter {model!r}; choose one of {choice}, a folder, or a model at "
                "the hub as owner/name"
            )
    if len(models) > 1:
        raise InvalidInputError(
            f"{name!r} joins {len(models)} models; join one with {PROMPT_LOOKUP}, whose tokens are "
            "not drawn by chance"
        )


def _parts(name: str) -> list[str]:
    return [name] if Path(name).exists() else name.split("+")


def _load_model(
    name: str,
    *,
    target: Checkpoint | None,
    dtype: DtypeName,
    device: str,
    window: int | None,
    tokens: Tokens,
) -> DrafterModel:
    is_shipped = name in SHIPPED_FOR.values()
    path = SHIPPED_FOLDER / name if is_shipped else locate(name, revision=None, with_code=False)
    if _is_state_space(path):
        if window is not None:
            raise InvalidInputError(
                "a window is for drafters whose cost grows with the text; a Mamba's does not"
            )
        return _load_mamba(path, target, dtype, device, tokens)
    return _load_transformer(name, path, target, dtype, device, window, tokens)


def _load_mamba(
    folder: Path, target: Checkpoint | None, dtype: DtypeName, device: str, tokens: Tokens
) -> NetworkDrafterModel:
    network_size = read_config(folder).vocab_size
    tokenizer = _read_tokenizer(folder) if target is not None else None
    vocabulary = _vocabulary(tokenizer, network_size, target, tokens)
    kept = read_draft_vocabulary(folder) if tokens == "same" else None
    if kept is not None:
        vocabulary = _draft_vocabulary(kept, network_size, target)
    network = load_state_space_network(folder, dtype, resolve_device(device), kept, target)
    return NetworkDrafterModel(network, vocabulary)


def _load_transformer(
    name: str,
    path: Path,
    target: Checkpoint | None,
    dtype: DtypeName,
    device: str,
    window: int | None,
    tokens: Tokens,
) -> NetworkDrafterModel:
    kept = read_draft_vocabulary(path) if tokens == "same" else None
    loaded = load_attention_network(name, dtype=dtype, device=device, draft_vocab=kept)
    network_size = _vocab_size(loaded.checkpoint)
    vocabulary = _vocabulary(loaded.checkpoint.tokenizer, network_size, target, tokens)
    if kept is not None:
        vocabulary = _draft_vocabulary(kept, network_size, target)
    return NetworkDrafterModel(loaded.network, vocabulary, window)


def _vocabulary(
    tokenizer: PreTrainedTokenizerBase | None,
    network_size: int,
    target: Checkpoint | None,
    tokens: Tokens,
) -> VocabularyMap | None:
    """Returns how a drafter's tokens relate to the target's; None if they are the same.

    A drafter without a tokenizer is taken to have the target's.
    """
    if target is None:
        return None
    target_size = _vocab_size(target)
    if tokenizer is not None and tokens == "shared":
        return share_tokens(tokenizer, target.tokenizer, target_size)
    if tokenizer is not None:
        check_same_tokens(tokenizer, target.tokenizer)
    if network_size == target_size:
        return None
    return PaddedVocabulary(network_size, target_size)


def _draft_vocabulary(
    kept: Int[Tensor, " kept"], network_size: int, target: Checkpoint | None
) -> DraftVocabulary:
    target_size = network_size if target is None else _vocab_size(target)
    return DraftVocabulary(kept, network_size, target_size)


def _vocab_size(checkpoint: Checkpoint) -> int:
    return checkpoint.config.get_text_config(decoder=True).vocab_size


def _is_state_space(path: Path) -> bool:
    if path.is_file():
        return False
    config = _read_json(path / CONFIG_FILE)
    return config.get("model_type") in ("mamba", "mamba2") or "ssm_cfg" in config


def _read_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        return None
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        raise LoadError(f"the tokenizer in {folder} cannot be loaded: {error}") from error
    return tokenizer


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} cannot be read: {error}") from error

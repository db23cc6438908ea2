"""Finds a model by name, and reads everything about it but its weights.

Both engines start here: the transformers module is loaded by `load.load_pretrained`, the native
network reads `Checkpoint.weights` one tensor at a time.
"""

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from treesnake.errors import InvalidInputError, LoadError
from treesnake.loading.hub import fetch_model
from treesnake.loading.smollm import smollm_folder
from treesnake.models.gguf import GgufFile
from treesnake.models.weights import INDEX_FILE, SINGLE_FILE, Weights, open_weights

DEFAULT_MODEL = "smollm2"

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

# What ends a turn in the chat templates of the families that we know.
TURN_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eot|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end|>",
    "<|endofturn|>",
    "<|return|>",
    "<|END_OF_TURN_TOKEN|>",
)


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk: its folder or GGUF file, config and tokenizer; the weights are only opened.

    `weights` has the names of the Hugging Face layout, or for a GGUF file those of llama.cpp.
    """

    name: str
    path: Path
    config: PreTrainedConfig
    generation_config: GenerationConfig
    tokenizer: PreTrainedTokenizerBase
    weights: Weights | GgufFile
    trust_remote_code: bool = False

    @property
    def gguf_file(self) -> Path | None:
        """The GGUF file that holds all of it, or None for a folder."""
        return self.path if isinstance(self.weights, GgufFile) else None


def find_checkpoint(
    name: str = DEFAULT_MODEL, *, revision: str | None = None, trust_remote_code: bool = False
) -> Checkpoint:
    """Finds a model: "smollm2" (embedded), a folder, a GGUF file, or a name at the hub.

    Code that a model brings along is fetched and run only with `trust_remote_code`.

    Raises:
        LoadError: if there is no such model, or files of it are missing, broken or of another kind.
        InvalidInputError: if the name is empty, or a revision is given for a local model.
    """
    path = locate(name, revision=revision, with_code=trust_remote_code)
    if path.is_file():
        return _open_gguf(name, path)
    return _open_folder(name, path, trust_remote_code)


def locate(name: str, *, revision: str | None, with_code: bool) -> Path:
    """Returns the folder or GGUF file that a name stands for, fetched or converted if need be."""
    if not name:
        raise InvalidInputError(f"no model is named; the default is {DEFAULT_MODEL!r}")
    path = Path(name).expanduser()
    local = name == DEFAULT_MODEL or path.exists() or _looks_like_path(name)
    if local and revision is not None:
        raise InvalidInputError(f"revision {revision!r} is for models at the hub; {name} is local")
    if name == DEFAULT_MODEL:
        return smollm_folder()
    if not local:
        return fetch_model(name, revision=revision, with_code=with_code)
    if not path.exists():
        raise LoadError(f"there is no file or folder {path}")
    if path.is_file() and path.suffix != ".gguf":
        raise LoadError(f"{path} is a file; name the folder of a model, a GGUF file or a hub model")
    return path


def end_token_ids(checkpoint: Checkpoint) -> frozenset[int]:
    """Returns the tokens after which a model has finished.

    These are the end tokens of generation config and config. Where none of them occurs in the chat
    template, the template's own end of a turn is added: early instruct models name only the end of
    a text. A model that names no end token at all gets the tokenizer's.
    """
    ids = _ids(checkpoint.generation_config.eos_token_id) | _ids(
        checkpoint.config.get_text_config().eos_token_id
    )
    tokenizer = checkpoint.tokenizer
    ids = ids or _ids(tokenizer.eos_token_id)
    template = str(tokenizer.chat_template or "")
    if any(str(tokenizer.convert_ids_to_tokens(index)) in template for index in ids):
        return ids
    vocabulary = tokenizer.get_vocab()
    return ids | {vocabulary[end] for end in TURN_ENDS if end in template and end in vocabulary}


def _open_folder(name: str, folder: Path, trust_remote_code: bool) -> Checkpoint:
    _check_files(folder)
    _check_model_type(folder, trust_remote_code)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        generation_config = _read_generation_config(folder, config)
    except Exception as error:
        raise LoadError(f"the config of {name} in {folder} cannot be read: {error}") from error
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise LoadError(f"the tokenizer of {name} in {folder} cannot be loaded: {error}") from error
    return Checkpoint(
        name=name,
        path=folder,
        config=config,
        generation_config=generation_config,
        tokenizer=tokenizer,
        weights=open_weights(folder),
        trust_remote_code=trust_remote_code,
    )


def _open_gguf(name: str, path: Path) -> Checkpoint:
    weights = GgufFile(path)
    missing = [part for part in ("gguf", "accelerate") if find_spec(part) is None]
    if missing:
        raise LoadError(
            f"{path.name} is a GGUF file, which needs {' and '.join(missing)}; install "
            "treesnake[gguf]"
        )
    try:
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        tokenizer: Any = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:
        raise LoadError(f"transformers cannot use the GGUF file {path}: {error}") from error
    return Checkpoint(
        name=name,
        path=path,
        config=config,
        generation_config=GenerationConfig.from_model_config(config),
        tokenizer=tokenizer,
        weights=weights,
    )


def _check_files(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    found = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "nothing"
    if "adapter_config.json" in names:
        raise LoadError(f"{folder} is an adapter; merge it into its model and name the result")
    if "config.json" not in names:
        gguf = next((name for name in names if name.endswith(".gguf")), None)
        advice = f"to load a GGUF file, name it: {folder / gguf}" if gguf else f"it holds {found}"
        raise LoadError(f"{folder} is no model folder, it has no config.json; {advice}")
    if SINGLE_FILE in names or INDEX_FILE in names:
        return
    pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    if pickles:
        raise LoadError(
            f"the weights in {folder} are pickled ({pickles[0]}), and a pickle can run any code; "
            "save them as safetensors with transformers' save_pretrained, if you trust them"
        )
    raise LoadError(
        f"{folder} has no {SINGLE_FILE}, and no other format is loaded; it holds {found}"
    )


def _check_model_type(folder: Path, trust_remote_code: bool) -> None:
    try:
        fields: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
        model_type, brings_code = fields.get("model_type"), "auto_map" in fields
    except (ValueError, AttributeError) as error:
        raise LoadError(f"{folder / 'config.json'} is no JSON object: {error}") from error
    if trust_remote_code or model_type in CONFIG_MAPPING:
        return
    if brings_code:
        raise LoadError(
            f"{folder} runs only with the code that it brings along; read that code, and pass "
            "trust_remote_code=True if you trust it"
        )
    raise LoadError(
        f"{folder} has the model type {model_type!r}, which this version of transformers does not "
        "know; upgrade transformers, or choose another model"
    )


def _read_generation_config(folder: Path, config: PreTrainedConfig) -> GenerationConfig:
    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder)
    return GenerationConfig.from_model_config(config)


def _looks_like_path(name: str) -> bool:
    return (
        name.startswith((".", "/", "~"))
        or "\\" in name
        or name.count("/") > 1
        or name.endswith(".gguf")
    )


def _ids(stated: int | list[int] | None) -> frozenset[int]:
    if stated is None:
        return frozenset()
    return frozenset([stated] if isinstance(stated, int) else stated)

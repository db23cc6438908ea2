"""Finds a model by name, and reads everything about it but its weights.

All engines start here: `load_pretrained` makes a transformers module of a checkpoint, and our own
networks read `Checkpoint.weights` one tensor at a time.
"""

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from treesnake.errors import InvalidInputError, LoadError, reason_of
from treesnake.loading.architecture import (
    GGUF_SUFFIX,
    GRAFTED_ONTO,
    Architecture,
    FoundModel,
    file_names,
    gguf_in,
    identify,
    names_in,
)
from treesnake.loading.file_configs import config_of_transformers, file_config
from treesnake.loading.gguf_families import FAMILIES, hugging_face_tensors
from treesnake.loading.gguf_models import gguf_end_ids, read_gguf_config
from treesnake.loading.gguf_tokenizer import read_gguf_tokenizer
from treesnake.loading.grafts import grafted_weights
from treesnake.loading.hub import HUB_FILE, cached_folder, fetch_gguf, fetch_model
from treesnake.loading.options import DEFAULT_OPTIONS, LoadOptions
from treesnake.loading.smollm import find_gguf
from treesnake.models.checkpoint import CONFIG_FILE, hugging_face_fields, open_tensors, parse_config
from treesnake.models.gguf import GgufFile, is_gguf
from treesnake.models.json_files import read_json_object
from treesnake.models.pointers import check_no_pointer
from treesnake.models.rounded_weights import unrounded
from treesnake.models.weight_gate import check_sizes
from treesnake.models.weights import (
    INDEX_FILE,
    SINGLE_FILE,
    Weights,
    open_weights,
    without_index,
)

DEFAULT_MODEL = "smollm2"
SHAPEWORLD = "shapeworld"
HYBRID = "smollm2-hybrid"
SHIPPED_FOLDER = Path(__file__).parent / "shipped"

PACKAGED_MODELS: dict[str, Callable[[], Path]] = {
    DEFAULT_MODEL: find_gguf,
    SHAPEWORLD: lambda: SHIPPED_FOLDER / SHAPEWORLD,
    HYBRID: lambda: SHIPPED_FOLDER / HYBRID,
}
"""Models that come with a package, by name, with what finds them: the default, a small one that
sees pictures of coloured shapes (recipes/shapeworld), and the default with Mamba-2 mixers in the
place of some attentions (recipes/smollm2-hybrid)."""

GENERATION_CONFIG_FILE = "generation_config.json"

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"
"""What transformers warns of once, unless it has already; whoever runs a text checks its length."""

TOKENIZER_FILE = "tokenizer.json"
PROCESSOR_TEMPLATE_FILE = "chat_template.json"
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TOKENIZER_FIELDS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(
        [f"{name}_token" for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")],
        (str, dict),
    ),
    **dict.fromkeys(
        ["add_bos_token", "add_eos_token", "add_prefix_space", "clean_up_tokenization_spaces"],
        (bool,),
    ),
    "tokenizer_class": (str,),
    "chat_template": (str, list, dict),
    "model_max_length": (int, float),
    "auto_map": (dict, list),
    "padding_side": (str,),
    "truncation_side": (str,),
    "added_tokens_decoder": (dict,),
    "additional_special_tokens": (list,),
    "extra_special_tokens": (dict, list),
}

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
    """A model on disk; the weights are only opened.

    Attributes:
        found: its name, folder or file, and architecture.
        config: with the fields of transformers, also for our own networks.
        generation_config: its own, or what the config says.
        weights: with the names of the Hugging Face layout; those of llama.cpp for a GGUF file that
            transformers must read.
        trust_remote_code: whether code that it brings along may run.
        gguf: the GGUF file that is all of it, or None for a folder.
        base: what it is grafted onto, whose tokenizer it has, or None.
    """

    found: FoundModel
    config: PreTrainedConfig
    generation_config: GenerationConfig
    weights: Mapping[str, Tensor]
    trust_remote_code: bool
    gguf: GgufFile | None = None
    base: "Checkpoint | None" = None

    @property
    def name(self) -> str:
        """By which it was asked for."""
        return self.found.name

    @property
    def path(self) -> Path:
        """Its folder or GGUF file."""
        return self.found.path

    @property
    def gguf_file(self) -> Path | None:
        """Where the GGUF file lies that is all of it, or None for a folder."""
        return None if self.gguf is None else self.gguf.path

    @property
    def is_packed(self) -> bool:
        """Whether it is a GGUF file whose matrices have fewer bits than floats, or is on one."""
        if self.base is not None:
            return self.base.is_packed
        return self.gguf is not None and any(each.is_packed for each in self.gguf.tensors.values())

    @property
    def for_transformers(self) -> "Checkpoint":
        """The same checkpoint, with a config that transformers makes models of."""
        return replace(self, config=config_of_transformers(self.config))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, which is read when it is asked for the first time.

        Raises:
            LoadError: if there is none, or it is broken.
        """
        if self.base is not None:
            return self.base.tokenizer
        try:
            if self.gguf is not None:
                tokenizer = read_gguf_tokenizer(self.gguf)
            else:
                config = config_of_transformers(self.config)
                tokenizer = _read_tokenizer(
                    self.path, config=config, trust_remote_code=self.trust_remote_code
                )
            tokenizer.deprecation_warnings[TOO_LONG] = True
            return tokenizer
        except LoadError as error:
            raise LoadError(
                f"the tokenizer of {_where(self.found)} cannot be loaded: {error}"
            ) from error
        except Exception as error:
            _check_tokenizer_json(self.path)
            raise LoadError(
                f"the tokenizer of {_where(self.found)} cannot be loaded: {reason_of(error)}; "
                "fetch its files again"
            ) from error


def find_checkpoint(
    name: str = DEFAULT_MODEL, options: LoadOptions = DEFAULT_OPTIONS
) -> Checkpoint:
    """Finds a model with its tokenizer: of a package, a folder, a GGUF file, or at the hub.

    A GGUF file at the hub is owner/name/FILE.gguf.

    Code that a model brings along is fetched and run only with `trust_remote_code`.

    Raises:
        LoadError: if there is no such model, or files of it are missing, broken or of another kind.
        InvalidInputError: if the name is empty, or a revision is given for a local model.
    """
    checkpoint = open_checkpoint(identify(name, locate(name, options)), options)
    _ = checkpoint.tokenizer  # a broken one is refused before weights are read
    return checkpoint


def tokenizer_beside(name: str, config: PreTrainedConfig) -> PreTrainedTokenizerBase | None:
    """Returns the tokenizer that lies where transformers loaded a model from; nothing is fetched.

    None if no tokenizer is there that can be read.

    Args:
        name: a folder, or a model of which the hub's cache has files.
        config: that of the model.
    """
    revision = getattr(config, "_commit_hash", None)
    folder = Path(name) if Path(name).is_dir() else cached_folder(name, revision)
    if not name or folder is None:
        return None
    try:
        return _read_tokenizer(folder, config=config, trust_remote_code=False)
    except Exception:  # noqa: BLE001 - of many kinds, some of which tokenizers raises bare
        return None


def open_checkpoint(found: FoundModel, options: LoadOptions = DEFAULT_OPTIONS) -> Checkpoint:
    """Opens the weights of a model and reads everything else but its tokenizer.

    Raises:
        LoadError: if files of it are missing, broken or of another kind.
        UnsupportedModelError: if it is a Mamba of a kind that is not known.
    """
    openers = {
        Architecture.STATE_SPACE: _open_state_space,
        Architecture.TRANSFORMERS: _open_folder,
        Architecture.GGUF: _open_gguf,
        Architecture.GRAFT: _open_graft,
    }
    return openers[found.architecture](found, trust_remote_code=options.trust_remote_code)


def locate(name: str, options: LoadOptions = DEFAULT_OPTIONS) -> Path:
    """Returns the folder or GGUF file that a name stands for, fetched if need be.

    Raises:
        LoadError: if there is no such model.
        InvalidInputError: if the name is empty or no name, or a revision is given for a local
            model.
    """
    path, revision = local_path(name), options.revision
    local = name in PACKAGED_MODELS or os.path.lexists(path) or _looks_like_path(name)
    if local and revision is not None:
        raise InvalidInputError(f"revision {revision!r} is for models at the hub; {name} is local")
    if name in PACKAGED_MODELS:
        return PACKAGED_MODELS[name]()
    if not local and HUB_FILE.fullmatch(name):
        return fetch_gguf(name, revision=revision)
    if not local:
        path = fetch_model(name, revision=revision, with_code=options.trust_remote_code)
    _check_kind(path)
    return (gguf_in(path) if path.is_dir() else None) or path


def local_path(name: str) -> Path:
    """Returns where a name would lie, if it is that of a file or folder here.

    Raises:
        LoadError: if nobody can look there.
        InvalidInputError: if the name is empty, or nothing can have it.
    """
    if not isinstance(name, str):
        raise InvalidInputError(f"a model is named by a text, not by {name!r:.80}; write str(path)")
    if not name:
        raise InvalidInputError(f"no model is named; the default is {DEFAULT_MODEL!r}")
    try:
        path = Path(name).expanduser()
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise LoadError(f"{name!r:.80} cannot be looked at: {error.strerror}") from error
    except (ValueError, RuntimeError) as error:
        raise InvalidInputError(f"{name!r:.80} is no name of a model: {error}") from error
    if name.endswith("/") and path.is_file():
        raise InvalidInputError(
            f"{name!r:.80} names a folder, and {path} is a file; leave out the slash at its end"
        )
    return path


def end_token_ids(checkpoint: Checkpoint) -> frozenset[int]:
    """Returns the tokens after which a model has finished.

    The generation config names them, else the config as it was written, else the tokenizer: what
    the class of a config would fill in belongs to another model. Where none of the tokens occurs in
    the chat template, the template's own end of a turn is added: early instruct models name only
    the end of a text.

    Raises:
        LoadError: if something else than token ids is named.
    """
    tokenizer = checkpoint.tokenizer
    ids = (
        token_ids_in(checkpoint.generation_config.eos_token_id, checkpoint.path)
        or token_ids_in(_stated_ends(checkpoint.found), checkpoint.path)
        or token_ids_in(tokenizer.eos_token_id, checkpoint.path)
    )
    template = str(tokenizer.chat_template or "")
    vocabulary = tokenizer.get_vocab()
    spellings = {index: token for token, index in vocabulary.items() if index in ids}
    if any(token in template for token in spellings.values()):
        return ids
    return ids | {vocabulary[end] for end in TURN_ENDS if end in template and end in vocabulary}


def token_ids_in(stated: object, path: Path) -> frozenset[int]:
    """Returns the token ids that a config states: none, one or a list of them.

    Args:
        stated: what the config states.
        path: of the config or its model, for messages.

    Raises:
        LoadError: if it states something else.
    """
    listed: list[Any] = stated if isinstance(stated, list) else [] if stated is None else [stated]
    if not all(type(index) is int for index in listed):
        raise LoadError(
            f"{path} names {stated!r:.60} as the token that ends a text; token ids are whole "
            "numbers: correct its eos_token_id"
        )
    return frozenset(listed)


def _open_state_space(found: FoundModel, *, trust_remote_code: bool) -> Checkpoint:
    weights = open_tensors(found.path)
    check_sizes(found.fields, weights, str(found.path))
    sizes = parse_config(found.fields, found.path / CONFIG_FILE)
    stated = found.fields if "model_type" in found.fields else {}
    fields = {**hugging_face_fields(sizes), **stated}
    config = _read_config(found, lambda: file_config(fields["model_type"], fields))
    generation_config = _read_generation_config(found, config)
    return Checkpoint(found, config, generation_config, weights, trust_remote_code)


def _open_folder(found: FoundModel, *, trust_remote_code: bool) -> Checkpoint:
    _check_weights(found.path)
    _check_model_type(found, trust_remote_code)
    weights = open_weights(found.path)
    check_sizes(found.fields, weights, str(found.path))
    config = _read_config(
        found,
        lambda: transformers.AutoConfig.from_pretrained(
            found.path, trust_remote_code=trust_remote_code
        ),
    )
    generation_config = _read_generation_config(found, config)
    return Checkpoint(found, config, generation_config, weights, trust_remote_code)


def _open_gguf(found: FoundModel, *, trust_remote_code: bool) -> Checkpoint:
    file = GgufFile(found.path)
    config = read_gguf_config(file, trust_remote_code=trust_remote_code)
    generation_config = GenerationConfig.from_model_config(config)
    generation_config.eos_token_id = sorted(gguf_end_ids(file)) or None
    weights = file
    if file.metadata["general.architecture"] in FAMILIES:
        weights = hugging_face_tensors(file, config)
        trust_remote_code = False  # there is no code in a file
    return Checkpoint(found, config, generation_config, weights, trust_remote_code, file)


def _open_graft(found: FoundModel, *, trust_remote_code: bool) -> Checkpoint:
    name = found.fields[GRAFTED_ONTO]
    if name != DEFAULT_MODEL:
        raise LoadError(
            f"{found.path} is grafted onto {name!r:.60}, and only {DEFAULT_MODEL!r} can be grafted "
            f"onto; correct {GRAFTED_ONTO!r} in its {CONFIG_FILE}"
        )
    base = open_checkpoint(identify(name, PACKAGED_MODELS[name]()))
    assert isinstance(base.weights, Weights)
    where = str(found.path)
    _check_weights(found.path)
    own = unrounded(open_weights(found.path), where)
    weights = grafted_weights(found.fields, own, base.weights, where)
    check_sizes(found.fields, weights, where)
    config = _read_config(
        found, lambda: transformers.AutoConfig.from_pretrained(found.path, trust_remote_code=False)
    )
    del trust_remote_code  # there is no code in mixers
    return Checkpoint(found, config, base.generation_config, weights, False, base=base)


def _read_config(found: FoundModel, read: Callable[[], PreTrainedConfig]) -> PreTrainedConfig:
    """Reads a config whose part for text is a config, too."""
    try:
        config = read()
        if not isinstance(config.get_text_config(), PreTrainedConfig):
            raise LoadError("its text_config is none of a model that it knows; take it out")
    except Exception as error:
        raise LoadError(
            f"the config of {_where(found)} cannot be read: {reason_of(error)}"
        ) from error
    return config


def _check_kind(path: Path) -> None:
    """Refuses what is neither a folder nor a GGUF file, whatever the name says."""
    if path.is_dir():
        return
    if not path.exists():
        link = f": it is a link to {path.readlink()}" if path.is_symlink() else ""
        raise LoadError(f"there is no file or folder {path}{link}")
    if not path.is_file():
        raise LoadError(f"{path} is a device, a pipe or a socket; name the folder of a model")
    if not path.name.lower().endswith(GGUF_SUFFIX) and not is_gguf(path):
        check_no_pointer(path)
        raise LoadError(f"{path} is a file; name the folder of a model, a GGUF file or a hub model")


def _check_weights(folder: Path) -> None:
    names = file_names(folder)
    if SINGLE_FILE in names or INDEX_FILE in names:
        return
    pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    if pickles:
        raise LoadError(
            f"the weights in {folder} are pickled ({pickles[0]}), and a pickle can run any code; "
            "save them as safetensors with transformers' save_pretrained, if you trust them"
        )
    hint = without_index(folder) or f"; it holds {names_in(folder)}"
    raise LoadError(f"{folder} has no {SINGLE_FILE}, and no other format is loaded{hint}")


def _check_model_type(found: FoundModel, trust_remote_code: bool) -> None:
    model_type = found.fields.get("model_type")
    if trust_remote_code or model_type in transformers.CONFIG_MAPPING:
        return
    if "auto_map" in found.fields:
        raise LoadError(
            f"{found.path} runs only with the code that it brings along; read that code, and pass "
            "trust_remote_code=True if you trust it"
        )
    raise LoadError(
        f"{found.path} has the model type {model_type!r}, which this version of transformers does "
        "not know; upgrade transformers, or choose another model"
    )


def _where(found: FoundModel) -> str:
    is_path = found.name == str(found.path)
    return found.name if is_path else f"{found.name} in {found.path}"


def _read_tokenizer(folder: Path, **arguments: Any) -> PreTrainedTokenizerBase:
    _check_tokenizer_files(folder)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, **arguments)
    if tokenizer.get_vocab().keys() <= set(tokenizer.all_special_tokens):
        # Transformers makes some tokenizers out of nothing.
        raise LoadError("it knows special tokens only; its files are missing")
    path = folder / PROCESSOR_TEMPLATE_FILE
    if path.exists():
        tokenizer.chat_template = _template_in(path)
    return tokenizer


def _template_in(path: Path) -> str:
    """Returns the chat template that models with images keep in a file of its own."""
    template = read_json_object(path).get("chat_template")
    if not isinstance(template, str):
        raise LoadError(f"{path.name} has no chat_template that is a text; fetch it again")
    return template


def _check_tokenizer_json(folder: Path) -> None:
    """Says what is wrong with the file that most tokenizers are; transformers says less."""
    path = folder / TOKENIZER_FILE
    if os.path.lexists(path):
        read_json_object(path)


def _check_tokenizer_files(folder: Path) -> None:
    """Refuses settings of wrong types, which would surface when the first text is encoded."""
    for name in TOKENIZER_SETTINGS:
        path = folder / name
        fields = read_json_object(path) if path.exists() else {}
        for key, types in TOKENIZER_FIELDS.items():
            value = fields.get(key)
            if value is not None and type(value) not in types:
                raise LoadError(
                    f"{path.name} has {key} = {value!r:.60}, which should be of type "
                    f"{' or '.join(each.__name__ for each in types)}"
                )


def _read_generation_config(found: FoundModel, config: PreTrainedConfig) -> GenerationConfig:
    """Reads generation_config.json; one that is broken is left out with a warning.

    So does transformers. What is JSON and makes no sense is refused there and here.
    """
    path = found.path / GENERATION_CONFIG_FILE
    try:
        fields = read_json_object(path) if path.exists() else None
    except LoadError as error:
        warnings.warn(f"{error}: it is left out, and the config used instead", stacklevel=2)
        fields = None
    if fields is None:
        generation_config = GenerationConfig.from_model_config(config)
        generation_config.eos_token_id = _stated_ends(found)  # not what a class fills in
        return generation_config
    token_ids_in(fields.get("eos_token_id"), path)
    try:
        return GenerationConfig.from_dict(fields)
    except Exception as error:
        raise LoadError(f"{path} cannot be used: {reason_of(error)}") from error


def _stated_ends(found: FoundModel) -> Any:
    """Returns the end tokens in config.json, of the model or of its part that reads text."""
    text_fields = found.fields.get("text_config")
    stated = found.fields.get("eos_token_id")
    if stated is None and isinstance(text_fields, Mapping):
        return text_fields.get("eos_token_id")
    return stated


def _looks_like_path(name: str) -> bool:
    if name.startswith((".", "/", "~")) or "\\" in name:
        return True
    is_in_depth = name.count("/") > 1 or name.lower().endswith(GGUF_SUFFIX)
    return is_in_depth and not HUB_FILE.fullmatch(name)

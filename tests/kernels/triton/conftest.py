"""Triton kernels run on a GPU where there is one, and under Triton's interpreter elsewhere.

Triton decides when it is imported whether it interprets, so the interpreter has a process of its
own: see `tests/kernels/test_triton.py`.
"""

import importlib
import os
from types import ModuleType

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"

collect_ignore_glob = [] if HAS_GPU or INTERPRETS else ["test_*.py"]


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if HAS_GPU and not INTERPRETS else "cpu")


@pytest.fixture(scope="session")
def conv() -> ModuleType:
    return importlib.import_module("treesnake.kernels.triton.conv")

"""What holds for every test: no network, one thread, shapes and types checked on every call."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

import importlib.util
import pkgutil

import pytest
import torch
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

NOT_CHECKED = {"decoder", "kernels", "testing"}
"""Compilers read the source of kernels, and would find what the hook made of it; the other two name
protocols that are not runtime_checkable yet."""


def install_shape_checks() -> None:
    """Checks the annotations of all functions and dataclasses of treesnake when they are used.

    An int may stand for a float, as type checkers have it (the numeric tower of PEP 484).
    """
    package = importlib.util.find_spec("treesnake")
    assert package is not None
    assert package.submodule_search_locations is not None
    children = {child.name for child in pkgutil.iter_modules(package.submodule_search_locations)}
    install_import_hook(
        [f"treesnake.{child}" for child in sorted(children - NOT_CHECKED)],
        "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
    )


install_shape_checks()
torch.set_num_threads(1)
settings.register_profile(
    "treesnake",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("treesnake")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs an accelerator where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="there is no accelerator"))

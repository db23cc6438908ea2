"""What holds for every test: no network, one thread, shapes and types checked on every call."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

import importlib.util
import pkgutil
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import wraps
from typing import Any

import jaxtyping
import pytest
import torch
from hypothesis import HealthCheck, settings
from jaxtyping import TypeCheckError, jaxtyped
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

# autograd counts devices once, and a process that has any cannot train in forked children. So it
# counts before a test pretends that there is a GPU.
torch.zeros((), requires_grad=True).backward()

NOT_CHECKED = {"kernels"}
"""Compilers read the source of kernels, and would find what the hook made of it."""

OPTIONAL_TYPES = {"Image", "LLMatcher", "LLTokenizer"}
"""Annotations that name classes of packages which may not be there; such functions go unchecked."""

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 96,
    "sliding_window": 5,
    "attention_chunk_size": 6,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
"""Of tiny transformers models, large enough for errors to show."""

TinyModel = Callable[..., PreTrainedModel]


def checks(check_types: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Returns a decorator of functions and dataclasses that checks types, and the axes of arrays.

    That of jaxtyping does so, too, and takes three times as long: it binds all arguments first, and
    checks them twice.
    """

    def checked(thing: Any) -> Any:
        if isinstance(thing, type):
            if is_dataclass(thing) and "__init__" in vars(thing):
                setattr(thing, "__init__", checked(vars(thing)["__init__"]))  # noqa: B010
            return thing
        annotations = getattr(thing, "__annotations__", {})
        if any(each in OPTIONAL_TYPES for each in annotations.values() if isinstance(each, str)):
            return thing
        function = check_types(thing)
        has_axes = "jaxtyping." in repr(annotations)

        @wraps(thing)
        def call(*args: Any, **kwargs: Any) -> Any:
            if jaxtyping.config.jaxtyping_disable:
                return thing(*args, **kwargs)
            if not has_axes:
                return function(*args, **kwargs)
            with jaxtyped("context"):  # an axis of one name is equally long in one call
                return function(*args, **kwargs)

        return call

    return checked


def install_shape_checks() -> None:
    """Checks the annotations of all functions and dataclasses of treesnake when they are used.

    An int may stand for a float, as type checkers have it (the numeric tower of PEP 484).
    """
    package = importlib.util.find_spec("treesnake")
    assert package is not None
    assert package.submodule_search_locations is not None
    children = {child.name for child in pkgutil.iter_modules(package.submodule_search_locations)}
    if importlib.util.find_spec("beartype") is None:
        return  # machines with a GPU may have no more than PyTorch and pytest
    from beartype import BeartypeConf, beartype  # noqa: PLC0415 - where it is there

    conf = BeartypeConf(is_pep484_tower=True, violation_type=TypeCheckError)
    jaxtyping.jaxtyped = lambda *, typechecker: checks(beartype(conf=conf))
    jaxtyping.install_import_hook(
        [f"treesnake.{child}" for child in sorted(children - NOT_CHECKED)], None
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


def tiny_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    default: Any = CONFIG_MAPPING[model_type]()
    names = {*default.to_dict(), *default.attribute_map}
    sizes = {name: size for name, size in SIZES.items() if name in names}
    return type(default)(**(sizes | changes))


@pytest.fixture(scope="session")
def tiny_model() -> TinyModel:
    """Builds a model of a family; matrices are drawn ten times as wide as usual."""
    from treesnake.testing.wide_matrices import with_wide_matrices  # noqa: PLC0415 - behind the hook

    def build(
        model_type: str, *, attention: str | None = None, seed: int = 0, **changes: Any
    ) -> PreTrainedModel:
        config = tiny_config(model_type, **changes)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        return with_wide_matrices(model, seed=seed)

    return build

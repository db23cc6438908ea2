"""Options are checked when they are made, before a model is looked for."""

from dataclasses import FrozenInstanceError
from typing import Any

import jaxtyping
import pytest

from treesnake.errors import InvalidInputError, LoadError
from treesnake.loading import options as module
from treesnake.loading.options import DEFAULT_OPTIONS, LoadOptions


def test_the_defaults_choose_for_themselves() -> None:
    assert (
        LoadOptions() == DEFAULT_OPTIONS == LoadOptions("auto", "auto", "auto", None, None, False)
    )


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"dtype": "float12"}, "unknown dtype 'float12'; choose one of auto"),
        ({"engine": "steam"}, "unknown engine 'steam'; choose one of auto, native, generic"),
        (
            {"engine": "generic", "dtype": "int4"},
            "int4 weights are for the native engine; leave the engine at auto",
        ),
        ({"device": "cpu", "device_map": "auto"}, "device and device_map exclude each other"),
    ],
)
def test_what_does_not_exist_or_contradicts_itself_is_refused(
    chosen: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no such checks
    with pytest.raises(InvalidInputError, match=message):
        LoadOptions(**chosen)


def test_a_device_map_without_accelerate_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _name: None)
    with pytest.raises(LoadError, match=r"accelerate; install treesnake\[multi-gpu\]"):
        LoadOptions(device_map="auto")


def test_options_stay_as_they_were_checked() -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(LoadOptions(), "dtype", "float12")  # noqa: B010

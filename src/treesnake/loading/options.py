"""How a model is loaded: one value, which is checked once and handed on whole."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, get_args

from treesnake.errors import InvalidInputError, LoadError

DtypeName = Literal["auto", "float32", "float16", "bfloat16", "int8", "int4", "stored"]
INTEGER_DTYPES = ("int8", "int4")
"""The dtypes whose products are made in integers, by the native engine on a CPU."""

OWN_DTYPES = ("auto", "stored")
"""The dtypes that are the checkpoint's own, the first with exceptions."""

EngineName = Literal["auto", "native", "generic"]
DeviceMap = str | dict[str, int | str]


@dataclass(frozen=True)
class LoadOptions:
    """How a model is found and what runs it.

    Attributes:
        dtype: of the weights. "auto" is the checkpoint's own, with two exceptions. The generic
            engine computes in float32 on a CPU, where it is slow in half precision. A Mamba that
            drafts on a CPU has int8. "stored" is the checkpoint's own without exception. The
            integers that a GGUF file holds stay what they are with both, where it runs in the
            native engine on a CPU; activations are rounded to 8 bits. int8 and int4 round weights
            in groups of 32 numbers to so many bits, and activations to 8 bits; they need the native
            engine on a CPU.
        device: "cpu", "cuda", "cuda:1", "mps" or "auto" for the best there is.
        engine: "auto" is native for every Mamba and Mamba-2, and on a CPU and on CUDA for the other
            families that it knows, else generic.
        device_map: spreads the layers over several devices with accelerate; the engine is generic.
        revision: of a model at the hub.
        trust_remote_code: runs code that comes with the model; no Transformer is native then.

    Raises:
        InvalidInputError: for options that do not exist or contradict each other.
        LoadError: if a package is missing.
    """

    dtype: DtypeName = "auto"
    device: str = "auto"
    engine: EngineName = "auto"
    device_map: DeviceMap | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        _check_choice("engine", self.engine, EngineName)
        _check_choice("dtype", self.dtype, DtypeName)
        if not isinstance(self.device, str) or not isinstance(self.trust_remote_code, bool):
            raise InvalidInputError(
                "device is a name such as cpu, and trust_remote_code is True or False, got "
                f"{self.device!r} and {self.trust_remote_code!r}"
            )
        if self.engine == "generic" and self.dtype in INTEGER_DTYPES:
            raise InvalidInputError(
                f"{self.dtype} weights are for the native engine; leave the engine at auto"
            )
        if self.device_map is None:
            return
        if self.device != "auto":
            raise InvalidInputError("device and device_map exclude each other; give one of them")
        if not has_accelerate():
            raise LoadError("device_map needs the package accelerate; install treesnake[multi-gpu]")


def has_accelerate() -> bool:
    """Tells whether models can be spread over devices, or loaded straight to one."""
    return find_spec("accelerate") is not None


def _check_choice(what: str, chosen: str, names: Any) -> None:
    if chosen not in get_args(names):
        raise InvalidInputError(
            f"unknown {what} {chosen!r}; choose one of {', '.join(get_args(names))}"
        )


DEFAULT_OPTIONS = LoadOptions()
"""Everything chosen for the model and the machine."""

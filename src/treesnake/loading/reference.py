"""Compares an engine's logits with those of transformers' own model, once, on a real text.

Plain and speculative decoding agree with each other whatever the weights are. So a fault of loading
does not show there; it shows here. Transformers finds and reads the files by itself.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.errors import LoadError, TreesnakeError
from treesnake.loading.architecture import Architecture
from treesnake.loading.checkpoint import Checkpoint, find_checkpoint
from treesnake.loading.gguf_models import scale_rotary_pairs
from treesnake.loading.memory import check_memory
from treesnake.loading.networks import STORED_INTEGERS, keeps_integers
from treesnake.loading.options import INTEGER_DTYPES, OWN_DTYPES, LoadOptions
from treesnake.loading.pretrained import find_model_class, resolve_device, resolve_dtype
from treesnake.loading.state_space import stored_dtype
from treesnake.models.tree_network import TreeNetwork
from treesnake.prompt import Prompt

TEXT = (
    "The heron stood in the shallow water and waited. It had waited since dawn, without moving, "
    "while the mist rose from the river and the first boats went by. People on the bridge stopped "
    "to look at it; a child asked whether it was real. Around noon the wind turned, and small "
    "waves ran over the stones. Then, faster than anyone could see, the bird bent its neck, and "
    'when it stood straight again there was a fish in its beak. "Patience," said the child\'s '
    'mother, "is also a way of hunting." By 4 o\'clock the heron had caught three more, and the '
    "bridge was empty. Nobody had seen where it came from, and nobody saw it leave; in the evening "
    "there was only the river, the stones and a grey feather that turned slowly in the current."
)
MOST_TOKENS = 160
NUM_POSITIONS = 8

TOLERANCES = {
    "float32": 1e-3,
    "float16": 0.1,
    "bfloat16": 0.1,
    "int8": 0.5,
    "int4": 0.7,
    STORED_INTEGERS: 0.15,
}
"""The error that rounding explains, by the dtype of the weights; other weights cost 1 or more."""


@dataclass(frozen=True)
class LogitsComparison:
    """How far an engine's logits are from those of transformers.

    Attributes:
        num_positions: of how many positions logits were compared.
        error: the distance of logits from transformers', divided by their spread: the largest one
            of the positions with float32 weights, else the median, for rounding may change what
            an expert or a window sees at some of them.
        tolerance: what rounding explains.
        reason: why nothing was compared, or None.
    """

    num_positions: int = 0
    error: float = 0.0
    tolerance: float = 0.0
    reason: str | None = None

    @property
    def is_passed(self) -> bool:
        """Whether nothing but rounding was found, or nothing could be compared."""
        return self.reason is not None or self.error <= self.tolerance

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        if self.reason is not None:
            return f"The logits were not compared with transformers': {self.reason}."
        found = (
            f"At {self.num_positions} positions of a text, the logits differ from those of "
            f"transformers' own model by {self.error:.2g} of their spread; rounding explains "
            f"{self.tolerance:g}."
        )
        if self.is_passed:
            return found
        return f"{found} The model was not loaded as transformers loads it."

    def as_json(self) -> dict[str, Any]:
        """Returns everything as plain data, the verdict included."""
        return {"is_passed": self.is_passed, **asdict(self)}


@dataclass(frozen=True, eq=False)
class Reference:
    """Logits of transformers' own model, which is not kept.

    Attributes:
        token_ids: a text.
        lengths: of the beginnings of it that logits are known after.
        logits: after each of them.
        rounding: the dtype of the weights that are compared with it.
    """

    token_ids: Sequence[int]
    lengths: Sequence[int]
    logits: Float[Tensor, "lengths vocab"]
    rounding: str

    def compare(self, network: TreeNetwork) -> LogitsComparison:
        """Runs the same text in an engine."""
        errors = torch.stack(
            [
                _relative_error(ours, theirs)
                for ours, theirs in zip(self._run(network), self.logits, strict=True)
            ]
        )
        error = errors.max() if self.rounding == "float32" else errors.median()
        return LogitsComparison(len(errors), float(error), TOLERANCES[self.rounding])

    def _run(self, network: TreeNetwork) -> list[Float[Tensor, " vocab"]]:
        state = network.new_state()
        rows: list[Float[Tensor, " vocab"]] = []
        for length in self.lengths:
            state.prefill(Prompt.of(self.token_ids[:length]))
            rows.append(state.extend([self.token_ids[length - 1]], [-1])[0].float().cpu())
            state.commit(())
        return rows


@dataclass(frozen=True)
class MissingReference:
    """Takes the place of a reference that cannot be had."""

    reason: str

    def compare(self, network: TreeNetwork) -> LogitsComparison:
        """Says why nothing is compared."""
        return LogitsComparison(reason=self.reason)


def find_reference(name: str, options: LoadOptions) -> Reference | MissingReference:
    """Loads a model by transformers alone, keeps some of its logits and lets the model go.

    Best called before the model is loaded by treesnake, so that both are not in memory at once.

    Args:
        name: as for `find_checkpoint`.
        options: where it runs, and whether code that it brings along may run.
    """
    try:
        return _read_reference(find_checkpoint(name, options), options)
    except TreesnakeError as error:
        return MissingReference(str(error))


def _read_reference(checkpoint: Checkpoint, options: LoadOptions) -> Reference:
    if checkpoint.found.architecture is Architecture.STATE_SPACE:
        _check_layout(checkpoint)
    if checkpoint.base is not None:
        raise LoadError(
            f"{checkpoint.name} is put together here, and transformers does not do that"
        )
    device = resolve_device(options.device)
    dtype = torch.float32
    in_integers = options.dtype in INTEGER_DTYPES or checkpoint.is_packed
    if device.type != "cpu" and not in_integers:
        dtype = resolve_dtype(options.dtype, checkpoint, device)
    check_memory(checkpoint, dtype, device)
    checkpoint = checkpoint.for_transformers
    model_class = find_model_class(checkpoint)
    gguf, folder = checkpoint.gguf, checkpoint.path
    source: dict[str, Any] = {}
    if gguf is not None:
        folder = gguf.path.parent
        source = {"gguf_file": gguf.path.name, "config": checkpoint.config}
    try:
        model = model_class.from_pretrained(
            folder,
            dtype=dtype,
            trust_remote_code=checkpoint.trust_remote_code,
            **source,
        )
        if gguf is not None:
            scale_rotary_pairs(model, gguf)
        return _logits_of(model.to(device).eval(), checkpoint, _rounding(checkpoint, options))
    except TreesnakeError:
        raise
    except Exception as error:
        raise LoadError(f"transformers cannot run {checkpoint.name}: {error}") from error


@torch.no_grad()
def _logits_of(model: Any, checkpoint: Checkpoint, rounding: str) -> Reference:
    config = checkpoint.config.get_text_config(decoder=True)
    context = getattr(config, "max_position_embeddings", None) or MOST_TOKENS
    encoded = checkpoint.tokenizer.encode(TEXT)
    token_ids = [token for token in encoded if token < config.vocab_size]
    token_ids = token_ids[: min(MOST_TOKENS, context - 1)]
    lengths = sorted(
        {max(len(token_ids) * number // NUM_POSITIONS, 1) for number in range(1, NUM_POSITIONS + 1)}
    )
    inputs = torch.tensor([token_ids], device=model.device)
    logits = model(input_ids=inputs, use_cache=False).logits[0]
    kept = logits[[length - 1 for length in lengths]].float().cpu()
    return Reference(tuple(token_ids), tuple(lengths), kept, rounding)


def _rounding(checkpoint: Checkpoint, options: LoadOptions) -> str:
    """Returns the coarsest dtype that weights and cache have."""
    if options.dtype not in OWN_DTYPES:
        return options.dtype
    device = resolve_device(options.device)
    if keeps_integers(checkpoint, options, device):
        return STORED_INTEGERS
    is_generic = options.engine == "generic"
    dtype = (
        resolve_dtype(options.dtype, checkpoint, device) if is_generic else stored_dtype(checkpoint)
    )
    name = str(dtype).removeprefix("torch.")
    return name if name in TOLERANCES else "float32"


def _check_layout(checkpoint: Checkpoint) -> None:
    if "model_type" not in checkpoint.found.fields:
        raise LoadError(
            f"{checkpoint.name} has the layout of state-spaces, which transformers does not read"
        )


def _relative_error(
    ours: Float[Tensor, " some_vocab"], theirs: Float[Tensor, " vocab"]
) -> Float[Tensor, ""]:
    if ours.shape != theirs.shape:
        return torch.tensor(float("inf"))
    return (ours - theirs).norm() / (theirs - theirs.mean()).norm()

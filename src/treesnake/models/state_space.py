"""What Mamba and Mamba-2 share: a residual stack of mixers between embeddings and output layer.

A mixer projects, convolves, runs a recurrence and projects back. The architectures differ in what
is projected and in the recurrence; how a text or a tree goes through the stack is the same.
Parameters have the names of the Hugging Face checkpoints.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from time import perf_counter
from typing import Any, Generic, TypeVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from treesnake.clock import book_wait
from treesnake.errors import BrokenModelError, InvalidInputError
from treesnake.kernels.dispatch import SsmKernels, conv_kernels
from treesnake.kernels.reference.conv import next_history
from treesnake.kernels.tree_rows import TreeRows
from treesnake.models.cuda_graphs import LARGEST_GRAPH
from treesnake.models.fixed_growth import levels_of
from treesnake.models.state_space_banks import StateSpaceBanks
from treesnake.models.state_space_inputs import TreeInputs
from treesnake.models.state_space_state import StateSpaceState, extend_states, grown_tree
from treesnake.models.tree_network import Part, check_tokens, own_states
from treesnake.pauses import pause
from treesnake.shape import FixedTree
from treesnake.states.branching import BranchingKind, Selected, StateShape, write_rows
from treesnake.states.ssm import SsmBank, SsmState, commit_in_torch
from treesnake.waiting_times import Noise

PREFILL_CHUNK = 512
"""Tokens of a prompt that are run at once: enough for matrix products, little memory."""


@dataclass(frozen=True, kw_only=True)
class StateSpaceConfig(ABC):
    """The sizes that both architectures have; the defaults are those of the 130M networks.

    Attributes:
        vocab_size: rows of the embeddings, padding included.
        use_bias: whether the first and last projection of a layer have biases.
        use_conv_bias: whether the convolution has biases.
        tie_embeddings: whether the output layer's weight is the embeddings'.
        eos_token_id: one token or several that end a text.
    """

    vocab_size: int = 50280
    hidden_size: int = 768
    num_layers: int = 24
    conv_width: int = 4
    use_bias: bool = False
    use_conv_bias: bool = True
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    bos_token_id: int | None = 0
    eos_token_id: int | tuple[int, ...] | None = 0
    pad_token_id: int | None = 0

    @property
    @abstractmethod
    def state_shape(self) -> StateShape:
        """What a sequence's state is made of."""


Config = TypeVar("Config", bound=StateSpaceConfig)


@dataclass(frozen=True)
class Projected:
    """A layer's inputs after the first projection; `dt` is None where it is projected later."""

    conv_inputs: Float[Tensor, "*batch tokens conv_channels"]
    gate: Float[Tensor, "*batch tokens channels"]
    dt: Float[Tensor, "*batch tokens heads"] | None


class RmsNorm(nn.Module):
    """Divides by the root of the mean square, in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, rows: Float[Tensor, "*rows size"]) -> Float[Tensor, "*rows size"]:
        """Returns the normed rows in the dtype of the weight."""
        rows = rows.float()
        normed = rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(self.weight.dtype)


class Mixer(nn.Module, ABC):
    """One layer's mixing of tokens: projection, convolution, recurrence, projection."""

    step_limit: tuple[float, float] = (0.0, float("inf"))
    """Bounds of dt over a text. Within a tree it is not bounded: transformers does not either."""

    A_log: nn.Parameter
    D: nn.Parameter

    def __init__(self, config: StateSpaceConfig) -> None:
        super().__init__()
        channels = config.state_shape.conv_channels
        self.conv1d = nn.Conv1d(
            channels, channels, config.conv_width, groups=channels, bias=config.use_conv_bias
        )

    @staticmethod
    @abstractmethod
    def kernels(device: torch.device) -> SsmKernels:
        """Returns the recurrence for a device."""

    @abstractmethod
    def project(self, hidden: Float[Tensor, "*batch tokens hidden"]) -> Projected:
        """Projects a layer's input to what is convolved and what is not."""

    @abstractmethod
    def select(
        self,
        convolved: Float[Tensor, "*batch tokens conv_channels"],
        dt: Float[Tensor, "*batch tokens heads"] | None,
    ) -> Selected:
        """Makes the recurrence's inputs, step sizes and directions of what was convolved."""

    @abstractmethod
    def finish(
        self,
        y: Float[Tensor, "*batch_tokens_x"],
        gate: Float[Tensor, "*batch tokens channels"],
    ) -> Float[Tensor, "*batch tokens hidden"]:
        """Gates the recurrence's outputs and projects them back."""

    @property
    def rates(self) -> Float[Tensor, "*a_axes"]:
        """A, in float32."""
        return -torch.exp(self.A_log.float())

    def run_text(
        self,
        hidden: Float[Tensor, "*batch tokens hidden"],
        history: Float[Tensor, "*batch history conv_channels"],
        state: Float[Tensor, "*batch_state"],
    ) -> tuple[
        Float[Tensor, "*batch tokens hidden"],
        Float[Tensor, "*batch history conv_channels"],
        Float[Tensor, "*batch_state"],
    ]:
        """Returns the outputs of a text, and the history and the state after it."""
        projected = self.project(hidden)
        conv_inputs = projected.conv_inputs
        convolved = conv_kernels(hidden.device).causal_conv(
            conv_inputs, self.conv1d.weight.squeeze(1), self.conv1d.bias, history
        )
        selected = self.select(convolved.to(conv_inputs.dtype), projected.dt)
        y, state = self.kernels(hidden.device).scan(
            selected.x,
            selected.dt.clamp(*self.step_limit),
            selected.A,
            selected.B,
            selected.C,
            selected.D,
            state,
        )
        return self.finish(y, projected.gate), next_history(conv_inputs, history), state

    def run_nodes(
        self,
        hidden: Float[Tensor, "trees new hidden"],
        new: TreeRows,
        bank: SsmBank,
        layer: int,
    ) -> Float[Tensor, "trees new hidden"]:
        """Returns the outputs of the new nodes of some trees and keeps what their children need."""
        projected = self.project(hidden)
        write_rows(bank.conv_inputs[layer], new, projected.conv_inputs)
        convolved = conv_kernels(hidden.device).tree_conv(
            bank.conv_inputs[layer],
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            bank.history[layer],
            new,
        )
        selected = self.select(convolved.to(projected.conv_inputs.dtype), projected.dt)
        kernels = self.kernels(hidden.device)
        y = bank.branching.extend(kernels, layer, selected, bank.recurrent[layer], new)
        return self.finish(y, projected.gate)


class Block(nn.Module):
    """A mixer with its norm."""

    def __init__(self, config: StateSpaceConfig, mixer: Mixer) -> None:
        super().__init__()
        self.norm = RmsNorm(config.hidden_size, config.norm_eps)
        self.mixer = mixer


class Backbone(nn.Module):
    """Embeddings, blocks and the last norm."""

    def __init__(self, config: StateSpaceConfig, mixers: Sequence[Mixer]) -> None:
        super().__init__()
        weight = torch.empty(config.vocab_size, config.hidden_size)
        self.embeddings = nn.Embedding.from_pretrained(weight, freeze=False)
        self.layers = nn.ModuleList(Block(config, mixer) for mixer in mixers)
        self.norm_f = RmsNorm(config.hidden_size, config.norm_eps)

    @property
    def blocks(self) -> list[Block]:
        """The layers, typed."""
        return cast("list[Block]", list(self.layers))


class StateSpaceNetwork(nn.Module, ABC, Generic[Config]):
    """A language model of mixers: trained on batches of texts, run on one text and its trees.

    Args:
        config: the network's sizes.
        mixers: one a layer.
        branching: how states branch unless `new_state` is given another way.
    """

    context_length: int | None = None
    """None: the memory of a text has one size, however long the text."""

    def __init__(self, config: Config, mixers: Sequence[Mixer], branching: BranchingKind) -> None:
        super().__init__()
        self.config: Config = config
        self.backbone = Backbone(config, mixers)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._branching = branching
        self._shape = config.state_shape
        self._output_rows: Float[Tensor, "kept hidden"] | None = None
        self._output_ids: Int[Tensor, " kept"] | None = None
        self.banks = StateSpaceBanks(self._shape)
        if not self.backbone.embeddings.weight.is_meta:
            nn.init.normal_(self.backbone.embeddings.weight, std=0.02)
        if config.tie_embeddings:
            self.tie_embeddings()

    @property
    def vocab_size(self) -> int:
        """The number of tokens that it reads."""
        return self.config.vocab_size

    def tie_embeddings(self) -> None:
        """Makes the output layer's weight the embeddings' own."""
        self.lm_head.weight = self.backbone.embeddings.weight

    def forward(
        self, token_ids: Int[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens vocab"]:
        """Returns the logits after each token of some texts, each from its start; for training."""
        return self.lm_head(self.features(token_ids)).float()

    def features(
        self, token_ids: Int[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens hidden"]:
        """Returns what the output layer sees, for a loss that makes its logits a part at a time."""
        batch, shape = token_ids.shape[0], self._shape
        device = token_ids.device
        history = torch.zeros(batch, shape.conv_width - 1, shape.conv_channels, device=device)
        state = torch.zeros(batch, *shape.state, device=device)
        hidden = self.backbone.embeddings(token_ids).float()
        for block in self.backbone.blocks:
            hidden = hidden + block.mixer.run_text(block.norm(hidden), history, state)[0]
        return self.backbone.norm_f(hidden)

    def restrict_output(self, token_ids: Int[Tensor, " kept"] | None) -> None:
        """Makes trees give logits of these tokens only, in this order; None: of all again.

        Costs a copy of their rows of the output layer. Training is not touched.

        Raises:
            InvalidInputError: if a token is not in the vocabulary.
        """
        weight = self.lm_head.weight.detach()
        if token_ids is not None:
            check_vocabulary(token_ids, len(weight))
        self._output_ids = None if token_ids is None else token_ids.to(weight.device)
        self._output_rows = None if self._output_ids is None else weight[self._output_ids]
        self.banks.forget_graphs()

    @torch.no_grad()
    def hidden_states(self, token_ids: Sequence[int]) -> Iterator[Float[Tensor, "_ hidden"]]:
        """Yields what the output layer sees behind each token of a text, all at once."""
        yield self.features(self._tokens(token_ids)[None])[0].float().cpu()

    def output_weight(self) -> Float[Tensor, "outputs hidden"]:
        """Returns a copy of the output layer in float32."""
        return self._output.detach().to("cpu", torch.float32, copy=True)

    @torch.no_grad()
    def replace_output(self, weight: Float[Tensor, "outputs hidden"]) -> None:
        """Exchanges the output layer that trees have; training is not touched."""
        if self._output_rows is None:
            self._output_rows = weight.to(self.lm_head.weight)
            self.banks.forget_graphs()
        else:
            self._output_rows.copy_(weight)  # where graphs read it

    def new_state(self, branching: BranchingKind | None = None) -> StateSpaceState[SsmState]:
        """Returns the state of an empty text.

        Args:
            branching: how it branches; by default what is fastest for the architecture.
        """
        return StateSpaceState(self, self._new_memory(branching or self._branching))

    @torch.no_grad()
    def extend_all(self, parts: Sequence[Part]) -> list[Float[Tensor, "_ vocab"]]:
        """Appends nodes to the trees of several texts in one pass over the weights.

        Returns the logits after each node, in float32.

        Raises:
            InvalidInputError: if a tree cannot grow so, or two parts have one state.
        """
        return extend_states(parts, self, partial(self.banks.run, self._run_nodes))

    def can_grow_fixed(self, shape: FixedTree) -> bool:
        """Tells whether a tree is grown in one pass: on a device where passes are captured."""
        widest, head = max(map(len, shape.children)), self._output
        is_small = widest <= len(head) and shape.num_drafted < LARGEST_GRAPH
        return is_small and self.banks.captures(head.device)

    @torch.no_grad()
    def grow_fixed(self, part: Part, shape: FixedTree, noise: Noise | None = None) -> list[int]:
        """Appends nodes below each other, and below the last a fixed tree of the best tokens.

        Returns the columns of the tokens that were chosen. Nodes without children are not appended.

        Raises:
            InvalidInputError: if the tree cannot grow so, or a token does not exist.
        """
        (state,) = own_states([part], StateSpaceState, self)
        state.held.check_growth(part.token_ids, part.parents)
        check_tokens(part.token_ids, self.vocab_size)
        tree = grown_tree(state, part)
        columns, tokens = self.banks.grow(
            self._run_nodes, part.token_ids, tree, shape, self._output_ids, noise
        )
        state.held.append(part.token_ids, part.parents)
        anchor = len(part.token_ids) - 1
        begin = 0
        for level in levels_of(shape):
            chosen = [tokens[begin + index] for index in level.expanded]
            state.held.append(chosen, [anchor + parent for parent in level.parents])
            begin += len(level.children)
        return columns

    @torch.no_grad()
    def run_text(
        self, token_ids: Sequence[int], memory: SsmState, chunk: int = PREFILL_CHUNK
    ) -> None:
        """Moves the text's part of a memory along some tokens, `chunk` of them at a time."""
        for part in self._tokens(token_ids).split(chunk):
            pause()
            hidden = self.backbone.embeddings(part).float()
            asked = perf_counter()
            with memory.bank.lock:
                book_wait(asked)
                for layer, block in enumerate(self.backbone.blocks):
                    hidden = hidden + self._mix_text(block, hidden, memory, layer)

    def broken_model_error(self, token_ids: Sequence[int]) -> BrokenModelError:
        """Returns the error for logits that are no numbers, naming the first layer."""
        return BrokenModelError.in_layer(self.find_broken_layer(token_ids))

    @torch.no_grad()
    def find_broken_layer(self, token_ids: Sequence[int]) -> str | None:
        """Names the first part of the network whose output for a text is not finite, or None."""
        memory = self._new_memory(self._branching)
        hidden = self.backbone.embeddings(self._tokens(token_ids)).float()
        if not hidden.isfinite().all():
            return "the embedding"
        for layer, block in enumerate(self.backbone.blocks):
            hidden = hidden + self._mix_text(block, hidden, memory, layer)
            if not hidden.isfinite().all():
                return f"layer {layer}"
        return None if self._logits(hidden).isfinite().all() else "the output layer"

    def _run_nodes(self, inputs: TreeInputs, bank: SsmBank) -> Float[Tensor, "trees new vocab"]:
        """Runs new nodes of some trees, on tensors alone and without waiting for the device."""
        fused = self._fused(bank)
        if fused is not None:
            return fused.run_fused(self.backbone, self._output, inputs, bank)
        hidden = self.backbone.embeddings(inputs.token_ids).float()
        for layer, block in enumerate(self.backbone.blocks):
            hidden = hidden + block.mixer.run_nodes(block.norm(hidden), inputs.rows, bank, layer)
        return self._logits(hidden)

    def _fused(self, bank: SsmBank) -> Any:
        """Returns the module that runs the layers in fused kernels, if it can; else None."""
        device = bank.recurrent.device
        if device.type != "cuda" or find_spec("triton") is None:
            return None
        fused = import_module("treesnake.models.state_space_fused")
        return fused if fused.can_fuse(self.backbone.blocks, bank) else None

    def _mix_text(
        self, block: Block, hidden: Float[Tensor, "tokens hidden"], memory: SsmState, layer: int
    ) -> Float[Tensor, "tokens hidden"]:
        mixed, memory.history[layer], memory.recurrent[layer] = block.mixer.run_text(
            block.norm(hidden), memory.history[layer], memory.recurrent[layer]
        )
        return mixed

    def _logits(self, hidden: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows vocab"]:
        return F.linear(self.backbone.norm_f(hidden), self._output).float()

    @property
    def _output(self) -> Float[Tensor, "outputs hidden"]:
        """The rows of the output layer that trees give logits of."""
        return self.lm_head.weight if self._output_rows is None else self._output_rows

    def _new_memory(self, branching: BranchingKind) -> SsmState:
        mixers = [block.mixer for block in self.backbone.blocks]
        A = torch.stack([mixer.rates.detach() for mixer in mixers])
        kernels = mixers[0].kernels(A.device)

        def commit_sums(x: Tensor, dt: Tensor, B: Tensor, committed: Tensor) -> None:
            kernels.commit_sums(x, dt, A, B, committed)

        return self.banks.bank(branching, A.device).new_state(commit_in_torch(commit_sums))

    def _tokens(self, token_ids: Sequence[int]) -> Int[Tensor, " tokens"]:
        return torch.tensor(token_ids, dtype=torch.int64, device=self.lm_head.weight.device)


def check_vocabulary(draft_vocab: Int[Tensor, " kept"], vocab_size: int) -> None:
    """Raises InvalidInputError unless all tokens of a draft vocabulary exist."""
    low, high = int(draft_vocab.min()), int(draft_vocab.max())
    if low < 0 or high >= vocab_size:
        raise InvalidInputError(
            f"a draft vocabulary must lie within the network's {vocab_size} tokens, got ids from "
            f"{low} to {high}"
        )

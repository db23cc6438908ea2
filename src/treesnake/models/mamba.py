"""Mamba (Gu and Dao 2023): a language model whose memory of a text is a state of fixed size.

Glossary (paper symbol, name here): D or d_model `hidden_size`; E D or d_inner `num_channels`; N or
d_state `state_dim`; d_conv `conv_width`; dt_rank `time_step_rank`; x, Delta, A, B, C, D as in
`treesnake.kernels.reference.ssm`.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from treesnake.kernels.dispatch import ssm_kernels
from treesnake.models.state_space import Mixer, Projected, StateSpaceConfig, StateSpaceNetwork
from treesnake.states.branching import Selected, StateCopies, StateShape

MIN_STEP, MAX_STEP, STEP_FLOOR = 1e-3, 1e-1, 1e-4
"""Range of the step sizes that a network is initialised with."""


@dataclass(frozen=True, kw_only=True)
class MambaConfig(StateSpaceConfig):
    """The sizes of a Mamba; the defaults are those of state-spaces/mamba-130m.

    Attributes:
        expand: channels of the recurrence for each one of `hidden_size`.
        intermediate_size: channels of the recurrence, if they are not `expand` times `hidden_size`.
        time_step_rank: None for a sixteenth of `hidden_size`, rounded up.
    """

    state_dim: int = 16
    expand: int = 2
    intermediate_size: int | None = None
    time_step_rank: int | None = None

    @property
    def num_channels(self) -> int:
        """The channels of a layer's recurrence, each with a state of its own."""
        return self.intermediate_size or self.expand * self.hidden_size

    @property
    def rank(self) -> int:
        """The numbers of which a layer's step sizes are made."""
        return self.time_step_rank or math.ceil(self.hidden_size / 16)

    @property
    def state_shape(self) -> StateShape:
        """What a sequence's state is made of."""
        return StateShape(
            num_layers=self.num_layers,
            conv_width=self.conv_width,
            conv_channels=self.num_channels,
            state=(self.num_channels, self.state_dim),
            x=(self.num_channels,),
            dt=(self.num_channels,),
            B=(self.state_dim,),
        )


class MambaMixer(Mixer):
    """A layer whose channels decay at rates of their own in every dimension of the state."""

    kernels = staticmethod(ssm_kernels)

    def __init__(self, config: MambaConfig) -> None:
        super().__init__(config)
        self.sizes = [config.rank, config.state_dim, config.state_dim]
        channels = config.num_channels
        self.in_proj = nn.Linear(config.hidden_size, 2 * channels, bias=config.use_bias)
        self.x_proj = nn.Linear(channels, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(config.rank, channels)
        self.out_proj = nn.Linear(channels, config.hidden_size, bias=config.use_bias)
        rates = [math.log(number) for number in range(1, config.state_dim + 1)]
        self.A_log = nn.Parameter(torch.tensor(rates).repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))
        nn.init.uniform_(self.dt_proj.weight, -(config.rank**-0.5), config.rank**-0.5)
        self.dt_proj.bias = nn.Parameter(initial_step_bias(channels))
        scale_output(self.out_proj, config.num_layers)

    def project(self, hidden: Float[Tensor, "*batch tokens hidden"]) -> Projected:
        """Projects a layer's input to what is convolved and to the gate."""
        conv_inputs, gate = self.in_proj(hidden).chunk(2, dim=-1)
        return Projected(conv_inputs, gate, dt=None)

    def select(
        self,
        convolved: Float[Tensor, "*batch tokens channels"],
        dt: Float[Tensor, "*batch tokens channels"] | None,
    ) -> Selected:
        """Makes step sizes and directions of the convolved inputs."""
        low_rank, B, C = self.x_proj(convolved).split(self.sizes, dim=-1)
        dt = F.linear(low_rank, self.dt_proj.weight).float() + self.dt_proj.bias.float()
        return Selected(convolved, F.softplus(dt), self.rates, B, C, self.D)

    def finish(
        self,
        y: Float[Tensor, "*batch tokens channels"],
        gate: Float[Tensor, "*batch tokens channels"],
    ) -> Float[Tensor, "*batch tokens hidden"]:
        """Gates the recurrence's outputs and projects them back."""
        return self.out_proj(y * F.silu(gate))


class Mamba(StateSpaceNetwork[MambaConfig]):
    """Mamba as a language model; equal to transformers' `MambaForCausalLM`.

    Unlike that one it continues an existing state by several tokens as by one at a time.
    """

    def __init__(self, config: MambaConfig) -> None:
        mixers = [MambaMixer(config) for _ in range(config.num_layers)]
        super().__init__(config, mixers, branching=StateCopies)


def scale_output(projection: nn.Linear, num_layers: int) -> None:
    """Lets the residual stream keep its scale however many layers add to it, as in GPT-2."""
    if not projection.weight.is_meta:  # see `initial_step_bias`
        with torch.no_grad():
            projection.weight /= math.sqrt(num_layers)


def initial_step_bias(size: int) -> Float[Tensor, " size"]:
    """Draws biases whose softplus is a step size between `MIN_STEP` and `MAX_STEP`, log-uniform.

    On the meta device there are no numbers, and even so arithmetic would import torch's compiler,
    which takes longer than reading a small model.
    """
    draws = torch.rand(size)
    if draws.is_meta:
        return draws
    low, high = math.log(MIN_STEP), math.log(MAX_STEP)
    steps = torch.exp(draws * (high - low) + low).clamp(min=STEP_FLOOR)
    return steps + torch.log(-torch.expm1(-steps))

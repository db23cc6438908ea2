"""Mamba-2 (Dao and Gu 2024): Mamba with one decay a head, so that texts are matrix products.

Glossary (paper symbol, name here): D or d_model `hidden_size`; E D or d_inner `num_channels`, which
is H `num_heads` times P `head_dim`; N or d_state `state_dim`; G `num_groups`; d_conv `conv_width`;
X, Delta, A, B, C, D as in `treesnake.kernels.reference.ssd`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from treesnake.errors import InvalidInputError
from treesnake.kernels.dispatch import ssd_kernels
from treesnake.models.mamba import initial_step_bias, scale_output
from treesnake.models.state_space import Mixer, Projected, StateSpaceConfig, StateSpaceNetwork
from treesnake.states.branching import PathSums, Selected, StateShape

MAX_INITIAL_RATE = 16.0
"""Heads start with decay rates spread uniformly from 1 to this."""


@dataclass(frozen=True, kw_only=True)
class Mamba2Config(StateSpaceConfig):
    """The sizes of a Mamba-2; the defaults are those of state-spaces/mamba2-130m.

    Attributes:
        num_groups: groups of heads that share B and C.
        time_step_limit: bounds of dt over a text. Within a tree dt is not bounded, as in
            transformers, where stepping ignores this too.
    """

    vocab_size: int = 50288
    num_heads: int = 24
    head_dim: int = 64
    num_groups: int = 1
    state_dim: int = 128
    time_step_limit: tuple[float, float] = (0.0, float("inf"))

    def __post_init__(self) -> None:
        if self.num_heads % self.num_groups:
            raise InvalidInputError(
                f"{self.num_heads} heads cannot be split into {self.num_groups} equal groups"
            )
        if self.num_channels % self.hidden_size:
            raise InvalidInputError(
                f"{self.num_heads} heads of {self.head_dim} channels are not a multiple of the "
                f"hidden size {self.hidden_size}"
            )

    @property
    def expand(self) -> int:
        """Channels of the recurrence for each one of `hidden_size`."""
        return self.num_channels // self.hidden_size

    @property
    def num_channels(self) -> int:
        """The channels of a layer's recurrence, `head_dim` for each head."""
        return self.num_heads * self.head_dim

    @property
    def direction_size(self) -> int:
        """The numbers in all groups' B, or C."""
        return self.num_groups * self.state_dim

    @property
    def conv_channels(self) -> int:
        """The channels of a layer's convolution: x, B and C."""
        return self.num_channels + 2 * self.direction_size

    @property
    def state_shape(self) -> StateShape:
        """What a sequence's state is made of."""
        return StateShape(
            num_layers=self.num_layers,
            conv_width=self.conv_width,
            conv_channels=self.conv_channels,
            state=(self.num_heads, self.head_dim, self.state_dim),
            x=(self.num_heads, self.head_dim),
            dt=(self.num_heads,),
            B=(self.num_groups, self.state_dim),
        )


class GatedRmsNorm(nn.Module):
    """Gates by SiLU, then divides by the root of the mean square of each group, in float32."""

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.num_channels))
        self.eps = config.norm_eps
        self.num_groups = config.num_groups

    def forward(
        self, rows: Float[Tensor, "*rows channels"], gate: Float[Tensor, "*rows channels"]
    ) -> Float[Tensor, "*rows channels"]:
        """Returns the gated and normed rows in the dtype of the weight."""
        gated = rows.float() * F.silu(gate.float())
        grouped = gated.unflatten(-1, (self.num_groups, -1))
        normed = grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.flatten(-2).to(self.weight.dtype)


def _initial_log_rates(size: int) -> Float[Tensor, " size"]:
    """Draws logarithms of rates between 1 and `MAX_INITIAL_RATE`; see `initial_step_bias`."""
    draws = torch.rand(size)
    return draws if draws.is_meta else (draws * (MAX_INITIAL_RATE - 1) + 1).log()


class Mamba2Mixer(Mixer):
    """A layer of heads that each decay at one rate."""

    kernels = staticmethod(ssd_kernels)

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__(config)
        self.step_limit = config.time_step_limit
        channels = config.num_channels
        self._projected_sizes = [channels, config.conv_channels, config.num_heads]
        self._selected_sizes = [channels, config.direction_size, config.direction_size]
        self._head_axes = (config.num_heads, config.head_dim)
        self._group_axes = (config.num_groups, config.state_dim)
        self.in_proj = nn.Linear(
            config.hidden_size, sum(self._projected_sizes), bias=config.use_bias
        )
        self.norm = GatedRmsNorm(config)
        self.out_proj = nn.Linear(channels, config.hidden_size, bias=config.use_bias)
        self.A_log = nn.Parameter(_initial_log_rates(config.num_heads))
        self.D = nn.Parameter(torch.ones(config.num_heads))
        self.dt_bias = nn.Parameter(initial_step_bias(config.num_heads))
        scale_output(self.out_proj, config.num_layers)

    def project(self, hidden: Float[Tensor, "*batch tokens hidden"]) -> Projected:
        """Projects a layer's input to the gate, what is convolved, and step sizes."""
        gate, conv_inputs, dt = self.in_proj(hidden).split(self._projected_sizes, dim=-1)
        return Projected(conv_inputs, gate, dt)

    def select(
        self,
        convolved: Float[Tensor, "*batch tokens conv_channels"],
        dt: Float[Tensor, "*batch tokens heads"] | None,
    ) -> Selected:
        """Splits the convolved inputs; the step sizes were projected with them."""
        assert dt is not None
        x, B, C = convolved.split(self._selected_sizes, dim=-1)
        return Selected(
            x.unflatten(-1, self._head_axes),
            F.softplus(dt.float() + self.dt_bias.float()),
            self.rates,
            B.unflatten(-1, self._group_axes),
            C.unflatten(-1, self._group_axes),
            self.D,
        )

    def finish(
        self,
        y: Float[Tensor, "*batch tokens heads head_dim"],
        gate: Float[Tensor, "*batch tokens channels"],
    ) -> Float[Tensor, "*batch tokens hidden"]:
        """Gates and norms the recurrence's outputs and projects them back."""
        return self.out_proj(self.norm(y.flatten(-2), gate))


class Mamba2(StateSpaceNetwork[Mamba2Config]):
    """Mamba-2 as a language model; equal to transformers' `Mamba2ForCausalLM`."""

    def __init__(self, config: Mamba2Config) -> None:
        mixers = [Mamba2Mixer(config) for _ in range(config.num_layers)]
        super().__init__(config, mixers, branching=PathSums)

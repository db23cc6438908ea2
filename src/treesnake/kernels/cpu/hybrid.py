"""A whole hybrid in one compiled call: layers of attention or of a Mamba-2 mixer, each with an MLP.

Attention, MLP and both ends are those of `transformer`, and mixers those of `mamba2`. What flows
between them is one residual stream, which both workspaces share. So here, too, a node's bits depend
on nothing but its path.
"""

from typing import NamedTuple

import numpy as np

from treesnake.kernels.cpu import mamba2, transformer
from treesnake.kernels.cpu.mamba2 import run_mixer
from treesnake.kernels.cpu.state_space import StateSpaceRun
from treesnake.kernels.cpu.team import enter, together
from treesnake.kernels.cpu.transformer import (
    TransformerRun,
    embed_nodes,
    run_attention,
    run_mlp,
    write_logits,
)


class HybridRun(NamedTuple):
    """All that one call reads and writes.

    Each of the two runs has the same rows and the same array as its residual stream. Attentions and
    mixers are counted each for itself; `attends` tells of each layer which of the two it has.
    """

    decoder: TransformerRun
    mixers: StateSpaceRun
    attends: np.ndarray


def count_steps(num_layers: int) -> int:
    """Returns how many steps `decode_hybrid` takes at most."""
    return transformer.count_steps(num_layers) + mamba2.count_steps(num_layers)


@together
def decode_hybrid(barrier, run):
    """Runs the rows: changes what is remembered, and writes the logits that are wanted."""
    decoder, mixers = run.decoder, run.mixers
    thread = enter(barrier)
    step = embed_nodes(barrier, 0, decoder)
    num_attentions = 0
    for layer in range(run.attends.shape[0]):
        if run.attends[layer]:
            step = run_attention(barrier, step, decoder, num_attentions, thread)
            num_attentions += 1
        else:
            step = run_mixer(barrier, step, mixers, layer - num_attentions, thread)
        step = run_mlp(barrier, step, decoder, layer)
    write_logits(barrier, step, decoder)

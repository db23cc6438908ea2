"""The drafter speaks, to learn what the target would have said after its words.

A model that learns from another's text alone never sees its own mistakes, though it goes on from
them (Agarwal et al. 2024; Zhou et al. 2024). Lossless decoding throws away what follows a mistake,
so a drafter has no need of it; a model whose own text is used has.
"""

import torch
import torch.nn.functional as F

from treesnake.training.answering import draw
from treesnake.training.distillation_loss import DistillationLoss
from treesnake.training.texts import Batch


@torch.no_grad()
def roll_out(
    loss_module: DistillationLoss, batch: Batch, num_tokens: int, generator: torch.Generator
) -> Batch:
    """Returns each text up to a position drawn by chance, and the drafter's own tokens behind it.

    All positions from there on are learned; what is said there only the target can tell, so labels
    are zeros. Costs a forward pass for each token.

    Args:
        loss_module: whose learner draws the tokens.
        batch: of texts that have positions.
        num_tokens: that are drawn.
        generator: on a CPU.
    """
    num_texts, width = batch.tokens.shape
    counts = torch.bincount(batch.positions.cpu() // width, minlength=num_texts)
    chosen = (torch.rand(num_texts, generator=generator) * counts).long()
    starts = counts.cumsum(0) - counts
    ends = batch.positions.cpu()[starts + chosen] % width
    device = batch.tokens.device
    ends, rows = ends.to(device), torch.arange(num_texts, device=device)
    tokens = F.pad(batch.tokens, (0, num_tokens))
    tokens = tokens.masked_fill(torch.arange(tokens.shape[1], device=device) > ends[:, None], 0)
    for index in range(num_tokens):
        probs = loss_module.next_probs(tokens[:, : int(ends.max()) + index + 1], ends + index)
        tokens[rows, ends + index + 1] = loss_module.drafted[draw(probs, generator)]
    positions = (rows * tokens.shape[1] + ends)[:, None] + torch.arange(
        num_tokens + 1, device=device
    )
    return Batch.certain(tokens, positions.flatten(), torch.zeros_like(positions.flatten()))

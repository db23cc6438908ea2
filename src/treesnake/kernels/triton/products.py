"""How exactly products of floats are made, on either kind of device."""

import torch

PRECISION_ON_AMD = "ieee"
PRECISION = "tf32x3" if torch.version.hip is None else PRECISION_ON_AMD
"""Of `tl.dot` with float32; other types have one way only."""

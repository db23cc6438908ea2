"""The selective state space of Mamba-1 for torch modules on a CPU.

Texts, which such modules are trained on, are scanned by compiled code. Trees have the readable
form: whoever drafts on a CPU packs the network (`treesnake.models.state_space_cpu`).
"""

from treesnake.kernels.cpu.ssm_scan import scan
from treesnake.kernels.reference.ssm import commit_sums, extend_copies, extend_sums

__all__ = ["commit_sums", "extend_copies", "extend_sums", "scan"]

"""Machines to replay on: tables of costs for those that are not at hand.

The two GPUs are sketches, stated as such wherever they are used: a target of some billion weights
whose pass takes what reading the weights takes, until the nodes outgrow the free arithmetic; and a
drafter of some hundred million weights that steps by captured graphs.
"""

from treesnake.search.costs import CostTable

CPU = CostTable(
    score_s={
        64: {
            1: 0.0125,
            2: 0.0126,
            4: 0.0140,
            8: 0.0179,
            16: 0.0306,
            32: 0.0590,
            64: 0.1155,
        }
    },
    draft_s={64: {1: 0.0025, 2: 0.0027, 4: 0.0031, 8: 0.0042, 16: 0.0075, 32: 0.0140}},
)
"""Two cores of a server: SmolLM2-135M in int8 as in results/plain_decoding.json, and a Mamba of a
fifth of its size."""

MID_GPU = CostTable(
    score_s={64: {1: 0.0200, 8: 0.0204, 16: 0.0212, 32: 0.0236, 64: 0.0300, 128: 0.0460}},
    draft_s={64: {1: 0.0016, 8: 0.0017, 16: 0.0019, 32: 0.0023}},
)
"""A sketch of a GPU with 1 TB/s: a target of 7 billion weights takes 20 ms, 64 nodes half more."""

BIG_GPU = CostTable(
    score_s={64: {1: 0.0060, 16: 0.0060, 64: 0.0063, 128: 0.0070}},
    draft_s={64: {1: 0.0006, 16: 0.00062, 32: 0.00066}},
)
"""A sketch of a GPU with 3 TB/s and much arithmetic: 64 nodes cost what 1 costs."""

MACHINES = {"cpu": CPU, "mid gpu": MID_GPU, "big gpu": BIG_GPU}

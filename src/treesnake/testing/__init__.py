"""For people who add targets, drafters or rules: toy models, and what each role must satisfy."""

from treesnake.testing.conformance import check_drafter, check_rule, check_target
from treesnake.testing.enumeration import enumerate_outcomes
from treesnake.testing.networks import check_network
from treesnake.testing.tiny import (
    AttentionModel,
    RecurrentModel,
    TableModel,
    TinyModel,
    TinyNetwork,
)

__all__ = [
    "AttentionModel",
    "RecurrentModel",
    "TableModel",
    "TinyModel",
    "TinyNetwork",
    "check_drafter",
    "check_network",
    "check_rule",
    "check_target",
    "enumerate_outcomes",
]

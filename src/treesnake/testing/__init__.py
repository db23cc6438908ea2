"""For people who add targets, drafters or rules: toy models, and what each role must satisfy."""

from treesnake.testing.conformance import check_drafter, check_rule, check_target
from treesnake.testing.enumeration import enumerate_outcomes
from treesnake.testing.tiny import (
    AttentionModel,
    RecurrentModel,
    TableModel,
    TinyDrafterModel,
    TinyModel,
    TinyTargetModel,
)

__all__ = [
    "AttentionModel",
    "RecurrentModel",
    "TableModel",
    "TinyDrafterModel",
    "TinyModel",
    "TinyTargetModel",
    "check_drafter",
    "check_rule",
    "check_target",
    "enumerate_outcomes",
]

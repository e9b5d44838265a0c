"""Attacks: from what the server observes to the labels of the batch."""

# Importing an attack enters it in the table.
from labelleak.attacks import (  # noqa: F401
    exact,
    likelihood,
    mbi,
    mean_prediction,
    published,
    virtual,
)
from labelleak.attacks.dice import dice_share
from labelleak.attacks.dispatch import restore
from labelleak.attacks.ordinal_levels import LevelCounts, level_counts
from labelleak.attacks.registry import (
    Attack,
    Gives,
    Need,
    find_attack,
    list_attacks,
    register,
)
from labelleak.attacks.regression_targets import mean_targets
from labelleak.attacks.rounds_together import combine

__all__ = [
    "Attack",
    "Gives",
    "LevelCounts",
    "Need",
    "combine",
    "dice_share",
    "find_attack",
    "level_counts",
    "list_attacks",
    "mean_targets",
    "register",
    "restore",
]

"""The lab: experiments on simulated clients, their networks and data sets, and the demo.

Define, run, read::

    from labelleak import lab

    experiments = lab.read_grid("grid.toml")            # or a list of lab.Experiment
    results = lab.run_all(experiments, "runs/mine", workers=2)
    results.to_pandas().groupby(["experiment", "attack"])["accuracy"].mean()

Names are loaded on first use: data sets and the demo need none of the packages that experiments do.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labelleak.lab.definition import (
        AttackSetting,
        Batch,
        DefenseSetting,
        Experiment,
        InversionSetting,
        Local,
        Network,
        Training,
    )
    from labelleak.lab.experiment_grid import read_grid
    from labelleak.lab.results import Results, read_results, run_all

__all__ = [
    "AttackSetting",
    "Batch",
    "DefenseSetting",
    "Experiment",
    "InversionSetting",
    "Local",
    "Network",
    "Results",
    "Training",
    "read_grid",
    "read_results",
    "run_all",
]

_MODULES = {
    "definition": (
        "AttackSetting",
        "Batch",
        "DefenseSetting",
        "Experiment",
        "InversionSetting",
        "Local",
        "Network",
        "Training",
    ),
    "experiment_grid": ("read_grid",),
    "results": ("Results", "read_results", "run_all"),
}


def __getattr__(name: str) -> object:
    """Load a public name on first use (PEP 562)."""
    for module, names in _MODULES.items():
        if name in names:
            value = getattr(import_module(f"labelleak.lab.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'labelleak.lab' has no attribute {name!r}")

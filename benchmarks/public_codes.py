"""The public codes that `peers.py` runs, from checkouts that its user names.

Nothing of them is in this repository. Each is entered by the least that its label step needs, as
its packages import training code, configuration and plotting, too. What stands around that step in
their scripts is done here with the same formulas: iLRG's forward pass of the class embeddings, and
RLU's order of its three functions. Attacks get what the server has (`labelleak.Observation`).
"""

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from labelleak import Observation
from labelleak.metrics import counts_of

Attack = Callable[[Observation], Tensor]
"""Gives counts (int64) or a set (bool), shape (classes,)."""


class PublicCode(NamedTuple):
    """A public repository with attacks on labels.

    Attributes:
        title: Its name, for the reader.
        address: Where it is from.
        file: A file of every checkout.
        counterparts: Its attacks, and our attack of the same paper; None where we have none.
        slow: Those that take many minutes for 1000 classes.
        enter: Imports it from a checkout, and gives its attacks by name.
    """

    title: str
    address: str
    file: str
    counterparts: dict[str, str | None]
    slow: frozenset[str]
    enter: Callable[[Path], dict[str, Attack]]


def version(folder: Path) -> dict[str, Any]:
    """The commit of a checkout, None without git, and whether Python files were changed since."""

    def git(*arguments: str) -> str | None:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else None

    return {
        "commit": git("rev-parse", "HEAD"),
        "changed": bool(git("status", "--porcelain", "--untracked-files=no", "--", "*.py")),
    }


def _bare(name: str, folder: Path | None = None, **members: object) -> None:
    """A module that runs no file: a package entered without its ``__init__``, or a stand-in."""
    module = ModuleType(name)
    if folder is not None:
        module.__path__ = [str(folder.joinpath(*name.split(".")))]
    vars(module).update(members)
    sys.modules[name] = module


def _layers(seen: Observation) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight and bias of the head, then their gradients."""
    assert seen.head.bias is not None, "every head here has a bias"
    assert seen.gradient.bias is not None, "and its gradient"
    return seen.head.weight, seen.head.bias, seen.gradient.weight, seen.gradient.bias


def _present(classes: int, labels: Iterable[int]) -> Tensor:
    found = torch.zeros(classes, dtype=torch.bool)
    found[torch.tensor([int(label) for label in labels], dtype=torch.int64)] = True
    return found


def _enter_ilrg(folder: Path) -> dict[str, Attack]:
    sys.path.insert(0, str(folder))
    methods = importlib.import_module("methods")

    def counts(seen: Observation) -> Tensor:
        weight, bias, by_weight, by_bias = _layers(seen)
        pairs = zip(by_weight, by_bias, strict=True)
        embeddings = (methods.get_emb(row, entry) for row, entry in pairs)
        predictions = [
            torch.softmax(nn.functional.linear(one, weight, bias), dim=-1) for one in embeddings
        ]
        # The first is what their scores are of; the second has its sum repaired.
        found, _ = methods.iLRG(predictions, by_bias, seen.classes, seen.batch_size)
        return torch.from_numpy(found)

    def by_rank(seen: Observation) -> Tensor:
        columns = seen.gradient.weight.T.numpy()
        found = methods.svd_infer(
            columns, num_classes=seen.classes, gt_k=seen.batch_size, epsilon=1e-10
        )
        return _present(seen.classes, found)

    def by_columns(infer: Callable[[Tensor], Any]) -> Attack:
        return lambda seen: _present(
            seen.classes, np.atleast_1d(np.asarray(infer(seen.gradient.weight.T))).flat
        )

    return {
        "iLRG": counts,
        "iDLG": by_columns(methods.idlg_infer),
        "GI": by_columns(methods.gi_infer),
        "RLG": by_rank,
    }


def _label_strategy(attacker: Callable[..., Any], name: str, **settings: object) -> Attack:
    """One of the label strategies of breaching's attackers, of which LLBG's is a descendant."""

    def counts(seen: Observation) -> Tensor:
        _, _, by_weight, by_bias = _layers(seen)
        config = SimpleNamespace(
            impl=SimpleNamespace(mixed_precision=False, dtype="float"),
            label_strategy=name,
            # LLBG's defaults.
            use_aux_data=False,
            approx_avg_conf=0.0,
        )
        named = {key: value(seen) if callable(value) else value for key, value in settings.items()}
        machine = attacker(nn.Identity(), nn.CrossEntropyLoss(), config, **named)
        metadata = {"num_data_points": seen.batch_size, "local_hyperparams": None}
        update = {"metadata": metadata, "gradients": [by_weight, by_bias]}
        return counts_of(machine._recover_label_information([update], None, None), seen.classes)

    return counts


def _enter_breaching(folder: Path) -> dict[str, Attack]:
    for name in ("", ".attacks", ".cases", ".cases.models"):
        _bare(f"breaching{name}", folder)
    attacker = importlib.import_module("breaching.attacks.base_attack")._BaseAttacker
    return {name: _label_strategy(attacker, name) for name in BREACHING.counterparts}


def _enter_llbg(folder: Path) -> dict[str, Attack]:
    for name in ("", ".attacks"):
        _bare(f"src{name}", folder)
    attacker = importlib.import_module("src.attacks.base_attack")._BaseAttacker

    def dataset(seen: Observation) -> str:
        # It takes 1000 classes for the one and 100 otherwise, for an offset that all classes share.
        return "imagenet" if seen.classes == 1000 else "cifar100"

    return {
        name: _label_strategy(attacker, name, model_name="", ds_name=dataset)
        for name in LLBG.counterparts
    }


class _WithEmbedding(nn.Module):
    """A model as RLU's code calls it: it gives logits and embedding, and drops the latter."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> tuple[Tensor, None]:
        return self.model(inputs), None


def _enter_rlu(folder: Path) -> dict[str, Attack]:
    # Of these two it needs names alone; they import torchvision and scikit-learn.
    unused = ("get_label_stats", "get_emb", "post_process_emb", "get_irlg_res")
    _bare("DataSampling", LocalDataset=None)
    _bare("llg", **dict.fromkeys(unused))
    _bare("client", folder)
    steps = importlib.import_module("client.client_utils")
    # Its functions move every batch to the GPU, also where there is none.
    here: Any = lambda tensor, *_, **__: tensor  # noqa: E731
    torch.Tensor.cuda = here  # type: ignore[method-assign]

    def counts(seen: Observation) -> Tensor:
        _, _, by_weight, by_bias = _layers(seen)
        assert seen.auxiliary is not None, "the caller has asked for it"
        assert seen.model is not None, "it comes with auxiliary data"
        options = SimpleNamespace(
            n_classes=seen.classes, batch_size=seen.batch_size, local_epochs=1
        )
        held = TensorDataset(seen.auxiliary.inputs, seen.auxiliary.labels)
        with torch.no_grad():
            logits, _ = steps.estimate_static_RLU(options, _WithEmbedding(seen.model), held)
        gradient, total = by_bias.tolist(), seen.batch_size
        embedding = (by_weight / by_bias[:, None]).mean(dim=0)
        first = steps.estimated_entropy_from_grad(options, softmax(logits), gradient, total)
        # After one step the logits of the client's model correct nothing: its own are given again.
        shift = steps.estimate_static_RLU_with_posterior(options, first, logits, logits, embedding)
        return torch.tensor(steps.estimated_entropy_from_grad(options, shift, gradient, total))

    return {"RLU": counts}


ILRG = PublicCode(
    "iLRG (Ma et al., ICLR 2023)",
    "https://github.com/BUAA-CST/iLRG",
    "methods.py",
    {"iLRG": "ilrg", "iDLG": "idlg", "GI": "gradinversion", "RLG": "rlg"},
    frozenset({"RLG"}),
    _enter_ilrg,
)
BREACHING = PublicCode(
    "breaching (Geiping et al.)",
    "https://github.com/JonasGeiping/breaching",
    "breaching/attacks/base_attack.py",
    {
        "iDLG": "idlg",
        "analytic": None,
        "yin": "gradinversion",
        "wainakh-simple": "llg",
        "bias-corrected": "ebi",
    },
    frozenset(),
    _enter_breaching,
)
LLBG = PublicCode(
    "LLBG (Gat and Sharif, 2024)",
    "https://github.com/nadbag98/LLBG",
    "src/attacks/base_attack.py",
    {"llbg": "llbg", "ebi": "ebi"},
    frozenset(),
    _enter_llbg,
)
RLU = PublicCode(
    "RLU (Chen and Vikalo, ICML 2024)",
    "https://github.com/CityChan/Recovering-Label-from-Update",
    "client/client_utils.py",
    {"RLU": "rlu"},
    frozenset({"RLU"}),
    _enter_rlu,
)
PUBLIC_CODES = {"ilrg": ILRG, "breaching": BREACHING, "llbg": LLBG, "rlu": RLU}
"""By the option that names a checkout."""

"""Audit of every DP-SGD step of an Opacus optimizer, with the epsilon spent so far beside it."""

import math
import warnings
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from opacus import PrivacyEngine
from opacus.accountants import RDPAccountant
from opacus.accountants.analysis import rdp as rdp_analysis
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from labelleak.federated.auditor import Auditor
from labelleak.federated.occasion import Decision, Occasion
from labelleak.federated.policy import Policy
from labelleak.metrics import counts_of
from labelleak.training import LocalTraining
from labelleak.updates.heads import strip_wrappers

FRAMEWORK = "opacus"


class LeakageAudit:
    """Audits what each DP-SGD step reveals: the clipped, noisy gradient that the step applies.

    It stands in the optimizer's step hook, behind the hook that was there (the accountant's), which
    goes on to run. The attack reads the gradient as a server does that knows how many samples were
    drawn, and how much clipping shortened their gradients on average: one number, which public
    samples would give about as well. Without it an audit would take shortened gradients for safe
    ones. Under a policy that refuses, a refused step changes no weight: its gradient is dropped.
    Nothing here raises during training.

    Attributes:
        decision: What became of the last step, None before the first.
    """

    def __init__(
        self,
        optimizer: DPOptimizer,
        module: nn.Module,
        policy: Policy | str | Path | None = None,
        *,
        client: str = "client",
        engine: PrivacyEngine | None = None,
        delta: float = 1e-5,
        **knowledge: Any,
    ) -> None:
        """Hook into the optimizer; attach other hooks before, because Opacus replaces them.

        Args:
            optimizer: As `PrivacyEngine.make_private` returned it.
            module: The network that it trains, wrapped or not.
            policy: The policy or its file; None for the default one, which records and warns.
            client: Name of the records.
            engine: The privacy engine, for epsilon; None to record none. Its RDP accountant is
                cheap to ask in every step, the PRV accountant takes about a second.
            delta: What epsilon is computed for, in (0, 1).
            **knowledge: Keyword arguments of `Auditor`, such as ``head``, ``loss``, or
                ``model`` (a copy of the network without Opacus' hooks).

        Raises:
            LabelLeakError: As `Auditor` raises.
            ValueError: Delta is no probability, or several processes train together: gradients are
                added up after the hook then.
        """
        if not 0.0 < delta < 1.0:
            raise ValueError(f"delta {delta}: it must be above 0 and below 1")
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            workers = distributed.get_world_size()
            if workers > 1:
                raise ValueError(
                    f"{workers} processes train together, and their gradients are added up after "
                    "the step hook: an audit there would see a part; train in one process"
                )
        self.decision: Decision | None = None
        self._auditor = Auditor(policy, **knowledge)
        self._module, self._client = module, client
        self._engine, self._delta = engine, delta
        self._labels: list[Tensor] = []
        self._steps = 0
        self._before_us = optimizer.step_hook
        optimizer.attach_step_hook(self._hook)

    def labels(self, targets: Tensor) -> None:
        """Say which labels the next step is made of, to score the attack by; it never sees them.

        Call it for every physical batch that the step adds up.

        Args:
            targets: Class indices, integers, shape (batch,).
        """
        self._labels.append(targets)

    def _hook(self, optimizer: DPOptimizer) -> None:
        if self._before_us is not None:
            self._before_us(optimizer)
        self._steps += 1
        labels, self._labels = self._labels, []
        occasion = Occasion(self._steps, self._client, framework=FRAMEWORK)
        try:
            decision = self._audit(optimizer, labels, occasion)
        except Exception as error:
            decision = self._auditor.failed(error, occasion)
        self.decision = decision
        if not decision.send:
            for parameter in optimizer.params:
                parameter.grad = None  # torch's optimizers leave such a parameter as it is

    def _audit(self, optimizer: DPOptimizer, labels: list[Tensor], occasion: Occasion) -> Decision:
        state = self._module.state_dict()
        before, bare = self._auditor.snapshot(state), strip_wrappers(list(state))
        targets = (
            torch.cat([_as_targets(part.detach().cpu()) for part in labels]) if labels else None
        )
        drawn, shares = _clipped(optimizer)
        if drawn is None:
            drawn = optimizer.expected_batch_size if targets is None else len(targets)
        if not drawn:
            raise ValueError("no sample was drawn: the gradient is noise alone")
        divisor = 1.0
        if optimizer.loss_reduction == "mean":
            divisor = optimizer.expected_batch_size * optimizer.accumulated_iterations
        gradients: dict[str, Tensor | None] = {}
        for name, parameter in self._module.named_parameters():
            gradient = parameter.grad
            # Only what the attack reads is put to scale: a copy of the rest would cost memory.
            if gradient is not None and bare.get(name) in before:
                gradient = gradient * (divisor / drawn / shares.get(parameter, 1.0))
            gradients[name] = gradient
        counts = None if targets is None else counts_of(targets, self._auditor.classes(before))
        return self._auditor.audit_gradients(
            before,
            gradients,
            LocalTraining(batch_size=drawn, steps=1),
            replace(
                occasion,
                epsilon=self._epsilon(),
                delta=None if self._engine is None else self._delta,
            ),
            instances=drawn,
            true_counts=counts,
        )

    def _epsilon(self) -> float | None:
        if self._engine is None:
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return _epsilon_of(self._engine.accountant, self._delta)
        except Exception:  # no figure is no reason to leave the update unaudited
            return None


def _as_targets(labels: Tensor) -> Tensor:
    """Class indices in a row, or zeros and ones for every label as whole numbers."""
    if labels.is_floating_point() and bool((labels == labels.round()).all()):
        labels = labels.long()  # as a loss with a sigmoid takes them
    return labels if labels.ndim == 2 else labels.reshape(-1)


def _clipped(optimizer: DPOptimizer) -> tuple[int | None, dict[Tensor, float]]:
    """How many samples the step adds up, and which share of each gradient clipping left.

    The share is the mean over the samples. Of a step in several physical batches only the last is
    still there: it stands for all, and the number is None.
    """
    norms = [(parameter, _norms_of(parameter)) for parameter in optimizer.params]
    known = {parameter: values for parameter, values in norms if values is not None}
    if len(known) < len(norms) or not known:
        return None, {}
    drawn = len(next(iter(known.values())))
    if drawn:
        bounds = getattr(optimizer, "max_grad_norms", None)  # one per parameter
        if bounds is None:
            whole = torch.stack([values.cpu() for values in known.values()]).norm(dim=0)
            known = dict.fromkeys(known, whole)
            bounds = [optimizer.max_grad_norm] * len(known)
        shares = {
            parameter: float((float(bound) / (values + 1e-6)).clamp(max=1.0).mean())
            for (parameter, values), bound in zip(known.items(), bounds, strict=True)
        }
    else:
        shares = {}
    return (None if optimizer._is_last_step_skipped else drawn), shares


def _norms_of(parameter: Tensor) -> Tensor | None:
    """Norm of each sample's gradient of a parameter, before clipping, as far as it is kept."""
    norms = getattr(parameter, "_norm_sample", None)  # ghost clipping keeps no gradients
    if norms is not None:
        kept: Tensor = norms.detach()
        return kept
    samples = getattr(parameter, "grad_sample", None)
    if samples is None:
        return None
    parts = samples if isinstance(samples, list) else [samples]
    rows = [part.reshape(len(part), math.prod(part.shape[1:])) for part in parts]
    return torch.cat([torch.linalg.vector_norm(row, dim=1) for row in rows])


def _epsilon_of(accountant: Any, delta: float) -> float:
    if not isinstance(accountant, RDPAccountant):
        return float(accountant.get_epsilon(delta))
    # As the accountant computes it, but for the part that is the same in every step.
    orders = tuple(RDPAccountant.DEFAULT_ALPHAS)
    spent = sum(
        steps * _rdp_of_one_step(noise, rate, orders) for noise, rate, steps in accountant.history
    )
    return float(rdp_analysis.get_privacy_spent(orders=orders, rdp=spent, delta=delta)[0])


@lru_cache(maxsize=4096)  # a schedule of the noise has a figure for every step
def _rdp_of_one_step(noise: float, rate: float, orders: tuple[float, ...]) -> Any:
    return rdp_analysis.compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=orders)

"""What ``labelleak audit`` is asked for, of one update or of each in a folder."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from labelleak.cli.audit_options import TrainingOptions, UpdateOptions, scored_by, told
from labelleak.cli.client_options import ClientOptions, network_at, read_samples
from labelleak.cli.loss_options import LossOptions
from labelleak.cli.rule_options import RuleOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from labelleak.audit.record import AuditRecord
    from labelleak.observation import Auxiliary, Observation


@dataclass(frozen=True)
class AuditRequest:
    """The options that hold for every update of a command; None where one was not given."""

    training: TrainingOptions
    loss: LossOptions
    attack: str
    time_limit: float | None
    rule: RuleOptions
    client: ClientOptions
    auxiliary: Path | None

    def check(self, labels: Path | None) -> None:
        """Check the options before a file is read.

        Raises:
            UsageError: An option is impossible, or goes without one that it needs.
        """
        self.training.check()
        self.rule.check(labels)
        if self.auxiliary is not None and self.client.model is None:
            raise click.UsageError("--auxiliary needs --model, the network that clients train")
        self.client.check(labels, needs_data=False)

    def inputs(self, update: UpdateOptions, labels: Path | None) -> list[Path]:
        """The files that are read."""
        others = (labels, self.rule.prior, self.client.data, self.auxiliary)
        return update.inputs(self.loss, *others)

    def code(self) -> list[str]:
        """Hashes of other people's code that an audit runs: attack, loss and network."""
        from labelleak.attacks import find_attack
        from labelleak.plugins import find_plugin

        plugins = []
        if self.attack != "auto":
            plugins.append(find_attack(self.attack).plugin)
        if self.loss.is_plugin:
            plugins.append(find_plugin("losses", str(self.loss.loss)))
        if self.client.model is not None:
            plugins.append(find_plugin("networks", self.client.model))
        return [plugin.code for plugin in plugins if plugin is not None]

    def source(self, update: UpdateOptions) -> dict[str, Any]:
        """What was told, for the record."""
        source = {**told(update), "kind": update.holds(self.training)}
        source |= {**told(self.training), **told(self.loss)}
        if self.client.model is not None:
            source["model"] = self.client.model
        if self.auxiliary is not None:
            source["auxiliary"] = str(self.auxiliary)
        return source

    def run(
        self,
        update: UpdateOptions,
        labels: Path | None,
        more: dict[str, Any] | None = None,
        **of_attack: Any,
    ) -> "AuditRecord":
        """Audit one update.

        Args:
            update: The update.
            labels: The file of its labels, or None.
            more: What else its record says of the source.
            **of_attack: Keyword arguments of the attack.

        Raises:
            LabelLeakError: A file cannot be read, or something is missing or impossible.
        """
        from labelleak.audit.running import audit_observation

        seen, true_counts = scored_by(labels, self._observed(update), self.training)
        ceiling = None
        if true_counts is not None:
            ceiling = self.client.ceiling(update.before, seen, true_counts)
        return audit_observation(
            seen,
            self.attack,
            true_counts=true_counts,
            ceiling=ceiling,
            **self.rule.make(),
            time_limit=self.time_limit,
            source={**self.source(update), **(more or {})},
            **of_attack,
        )

    def _observed(self, update: UpdateOptions) -> "Observation":
        """What the server sees: of the head, or of the whole model where it is named."""
        if self.client.model is None:
            return update.read(self.training, self.loss)
        from labelleak.updates import observe, observe_update

        model = self._model(update.before)
        more: dict[str, Any] = {
            "loss": self.loss.made,
            "training": self.training.make(),
            "instances": self.training.instances,
            "auxiliary": self._samples,
            "head": update.head,
        }
        sent, kind = whole_update(update.update, model), update.holds(self.training)
        if kind == "gradients":
            return observe(model, sent, **more)
        before = model.state_dict()
        if kind == "difference":
            sent = {name: before[name] + value.to(before[name]) for name, value in sent.items()}
        return observe_update(model, before, sent, **more)

    def _model(self, before: Path) -> "nn.Module":
        assert self.client.model is not None, "it was checked"
        return network_at(self.client.model, before)

    @cached_property
    def _samples(self) -> "Auxiliary | None":
        from labelleak.errors import InvalidObservation, UnreadableFile
        from labelleak.observation import Auxiliary

        if self.auxiliary is None:
            return None
        try:
            return Auxiliary(*read_samples(self.auxiliary))
        except InvalidObservation as error:
            raise UnreadableFile(f"{self.auxiliary}: {error}") from None


def whole_update(path: Path, model: "nn.Module") -> dict[str, "Tensor"]:
    """The floating-point tensors of an update that a model has, too, by its names.

    Raises:
        UnreadableFile: The file is damaged, or a tensor has another shape than the model's.
    """
    from labelleak.errors import UnreadableFile
    from labelleak.updates import open_tensors

    stored, found = open_tensors(path), {}
    for name, value in model.state_dict().items():
        if name not in stored.shapes or not value.is_floating_point():
            continue
        if stored.shapes[name] != tuple(value.shape):
            raise UnreadableFile(
                f"{path}: {name!r} has another shape than in the network of --model"
            )
        found[name] = stored.tensor(name)
    if not found:
        raise UnreadableFile(f"{path}: has no tensor of the network of --model")
    return found

"""Virtual clients: train the server's model by the client's recipe, on counts that are drawn."""

from collections.abc import Mapping
from concurrent.futures import CancelledError
from copy import deepcopy
from dataclasses import dataclass, field, fields
from hashlib import sha256
from threading import Event

import torch
from jaxtyping import Float
from torch import Tensor, nn

from labelleak.attacks.virtual.drawing import Drawn, batches_of
from labelleak.attacks.virtual.shown import (
    BEHAVIOR,
    behavior,
    changes_between,
    check_finite,
    first_line,
)
from labelleak.errors import InvalidObservation, MissingKnowledge
from labelleak.isolation import MODEL_ERRORS, plain_mode, undisturbed
from labelleak.local_steps import take_steps
from labelleak.observation import Observation


@dataclass(frozen=True, eq=False)
class Recipe:
    """What all virtual clients of one real client share.

    Attributes:
        model: A copy of the server's model in the mode that clients train it in; those of its
            parameters require a gradient that the client trained.
        changes: The real client's change of every trained tensor, flat, by name, and under
            `BEHAVIOR` what its model says of test inputs: what virtual clients are compared by.
        observation: Brings the recipe and the loss.
        tests: Inputs and labels that show the behavior of a model; None where there are none.
    """

    model: nn.Module
    changes: Mapping[str, Float[Tensor, " entries"]]
    observation: Observation
    tests: tuple[Tensor, Tensor] | None

    @property
    def scale_of_bias(self) -> float | None:
        """What the bias's change is divided by to be that of the mean loss's mean gradient.

        None where the recipe has no such number.
        """
        seen = self.observation
        told = seen.training.is_sgd and f"{seen.head.name}.bias" in self.changes
        reach = seen.training.reach
        return reach * seen.scale if told and reach and seen.loss.is_plain else None

    @property
    def fingerprint(self) -> str:
        """The same for recipes whose virtual clients can stand for each other."""
        seen = self.observation
        sent = sorted(seen.after or ())
        told = (seen.training, seen.num_instances, seen.input_shape, list(self.changes), sent)
        digest = sha256(repr(told).encode())
        weights = seen.loss.class_weights
        digest.update(repr((seen.loss, None if weights is None else weights.tolist())).encode())
        tensors = [*self.model.state_dict().values()]
        if seen.auxiliary is not None:
            tensors += [seen.auxiliary.inputs, seen.auxiliary.labels]
        digest.update(repr([module.training for module in self.model.modules()]).encode())
        for tensor in tensors:
            flat = tensor.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def device(self) -> torch.device:
        """Where virtual clients train."""
        return next(self.model.parameters()).device

    @property
    def names(self) -> list[str]:
        """Names of the tensors that the client trained."""
        return [name for name in self.changes if name != BEHAVIOR]

    def shown(self, after: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The `changes` of a virtual client with this state dict."""
        changes = changes_between(self.model, after, self.names)
        if self.tests is not None:
            changes[BEHAVIOR] = behavior(self.model, self._as_sent(after), self.tests)
        check_finite(changes.values())
        return changes

    def trained(self, drawn: Drawn) -> dict[str, Tensor]:
        """Train one virtual client, and return its state dict.

        Raises:
            InvalidObservation: The samples do not go through the model.
        """
        with undisturbed(self.device):
            torch.manual_seed(drawn.seed)
            return self._trained(drawn, None)

    def trained_beside(self, drawn: Drawn, stop: Event) -> dict[str, Tensor]:
        """As `trained`, on a thread beside others: of models that draw no random numbers.

        Args:
            drawn: What it trains on.
            stop: Set by another thread, it ends the training with the next step.

        Raises:
            InvalidObservation: The samples do not go through the model.
            CancelledError: It was stopped.
        """
        with plain_mode(self.device):
            return self._trained(drawn, stop)

    def _trained(self, drawn: Drawn, stop: Event | None) -> dict[str, Tensor]:
        inputs, labels, batches = self.prepared(drawn)
        local = deepcopy(self.model)
        training, loss = self.observation.training, self.observation.loss.value
        try:
            take_steps(local, inputs, labels, batches, training, loss, stop)
        except MODEL_ERRORS as error:
            raise InvalidObservation(
                f"a virtual client cannot train this model: {first_line(error)}"
            ) from None
        if stop is not None and stop.is_set():
            raise CancelledError
        return dict(local.state_dict())

    def prepared(self, drawn: Drawn) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Inputs and labels of a virtual client on its device, and the samples of every step."""
        generator = torch.Generator().manual_seed(drawn.seed)
        with torch.device("cpu"):
            inputs, labels = drawn.samples(drawn.counts, drawn.pool, generator)
            batches = batches_of(self.observation, labels.cpu(), generator)
        return self.placed(inputs), labels.to(self.device), batches

    def placed(self, inputs: Tensor) -> Tensor:
        """Inputs on the device of the model and, unless they are indices, in its format."""
        like = next(self.model.parameters())
        return inputs.to(like) if inputs.is_floating_point() else inputs.to(self.device)

    def _as_sent(self, after: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What of a state dict the real client sent of its own."""
        sent = self.observation.after or {}
        return {name: value for name, value in after.items() if name in sent}


@dataclass(eq=False)
class SharedClients:
    """Virtual clients of one recipe, in lists."""

    _of: str = field(default="", init=False)

    def are_of(self, recipe: Recipe) -> None:
        """Forget all that is of another recipe."""
        fingerprint = recipe.fingerprint
        if fingerprint == self._of:
            return
        self._of = fingerprint
        for one in fields(self):
            if one.init:
                setattr(self, one.name, [])


@dataclass(eq=False)
class Simulations(SharedClients):
    """Virtual clients that real clients of one round share, who have model and recipe in common.

    Pass the same object for every client. What was trained for another model, recipe, loss, number
    of samples or auxiliary data is forgotten.

    Attributes:
        changes: The `Recipe.changes` of every virtual client so far.
        shares: Shares of the classes that each was trained on, float64, shape (classes,).
        pools: The pool of each.
    """

    changes: list[dict[str, Tensor]] = field(default_factory=list)
    shares: list[Float[Tensor, " classes"]] = field(default_factory=list)
    pools: list[int] = field(default_factory=list)

    def add(self, changes: dict[str, Tensor], shares: Tensor, pool: int) -> None:
        """Enter one more."""
        self.changes.append(changes)
        self.shares.append(shares)
        self.pools.append(pool)


def recipe_of(observation: Observation, tests: tuple[Tensor, Tensor] | None) -> Recipe:
    """The recipe of an observation's client; arguments as the attributes of `Recipe`.

    Raises:
        MissingKnowledge: The model is not the one that the client started from, or the update has
            none of its parameters.
    """
    model, after = observation.model, observation.after
    assert model is not None, "a need of the attack"
    assert after is not None, "a need of the attack"
    with undisturbed():
        model = deepcopy(model)
    if any(value.dtype in (torch.float16, torch.bfloat16) for value in model.parameters()):
        model = model.float()
    _check_start(observation, model)
    names = []
    for name, value in model.named_parameters():
        sent = after.get(name)
        if sent is not None and sent.shape != value.shape:
            raise InvalidObservation(f"{name} has another shape in the client's model")
        # What a client left as it was, its recipe freezes.
        trained = sent is not None and not torch.equal(sent.to(value), value.detach())
        value.requires_grad_(trained)
        if trained:
            names.append(name)
    if not names:
        raise MissingKnowledge(
            "virtual clients need the client's whole model after training: no parameter of the "
            "server's model changed in it"
        )
    changes = changes_between(model, after, names)
    if tests is not None:
        with undisturbed(observation.head.weight.device):
            changes[BEHAVIOR] = behavior(model, after, tests)
    return Recipe(model, changes, observation, tests)


def _check_start(observation: Observation, model: nn.Module) -> None:
    name, head = observation.head.name, observation.head.weight
    held = None if name is None else dict(model.named_parameters()).get(f"{name}.weight")
    if held is None or held.shape != head.shape:
        return
    own = held.detach().to(head)
    if float((own - head).norm()) > 1e-2 * float(head.norm()):
        raise MissingKnowledge(
            "virtual clients need the model that the client started from: its final layer has "
            "other weights than those observed before training (model.load_state_dict(before))"
        )

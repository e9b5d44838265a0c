"""Virtual clients: train the server's model by the client's recipe, on counts that are drawn."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields
from hashlib import sha256

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from labelleak.attacks.probe import class_means
from labelleak.errors import InvalidObservation, MissingKnowledge
from labelleak.isolation import undisturbed
from labelleak.local_steps import take_steps
from labelleak.observation import Auxiliary, Observation

# A tensor with more entries is kept as a sketch of as many: a hundred updates of a large network
# would not fit into memory.
_MOST_ENTRIES = 1 << 15

# Test inputs of each class.
_TESTS = 40
# Inputs that go through a model at once.
_GROUP = 256

BEHAVIOR = "behavior"
"""Name, beside those of tensors, of what a model says of test inputs."""

Samples = Callable[[Int[Tensor, " classes"], int, torch.Generator], tuple[Tensor, Tensor]]
"""Draws inputs and labels with these counts, of one of two pools that share no sample."""


@dataclass(frozen=True, eq=False)
class Recipe:
    """What all virtual clients of one real client share.

    Attributes:
        model: A copy of the server's model in the mode that clients train it in; those of its
            parameters require a gradient that the client trained.
        changes: The real client's change of every trained tensor, flat, by name, and under
            `BEHAVIOR` what its model says of test inputs: what virtual clients are compared by.
        observation: Brings the recipe and the loss.
        samples: Where virtual clients have their samples from.
        tests: Inputs and labels that show the behavior of a model; None where there are none.
    """

    model: nn.Module
    changes: Mapping[str, Float[Tensor, " entries"]]
    observation: Observation
    samples: Samples
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
    def names(self) -> list[str]:
        """Names of the tensors that the client trained."""
        return [name for name in self.changes if name != BEHAVIOR]

    def run(self, counts: Int[Tensor, " classes"], pool: int, seed: int) -> dict[str, Tensor]:
        """Train one virtual client, and return its `changes`; arguments as of `trained`."""
        after = self.trained(counts, pool, seed)
        changes = changes_between(self.model, after, self.names)
        if self.tests is not None:
            changes[BEHAVIOR] = behavior(self.model, self._as_sent(after), self.tests)
        check_finite(changes.values())
        return changes

    def trained(self, counts: Int[Tensor, " classes"], pool: int, seed: int) -> dict[str, Tensor]:
        """Train one virtual client, and return its state dict.

        Args:
            counts: Number of its samples of each class.
            pool: Which of the two pools they are of, 0 or 1.
            seed: Of samples, order and dropout.

        Raises:
            InvalidObservation: The samples do not go through the model.
        """
        generator = torch.Generator().manual_seed(seed)
        device = next(self.model.parameters()).device
        with undisturbed(device):
            torch.manual_seed(seed)
            with torch.device("cpu"):
                inputs, labels = self.samples(counts, pool, generator)
                batches = _batches(self.observation, labels.cpu(), generator)
            local = deepcopy(self.model)
            like = next(local.parameters())
            inputs = inputs.to(like) if inputs.is_floating_point() else inputs.to(device)
            training, loss = self.observation.training, self.observation.loss
            try:
                take_steps(local, inputs, labels.to(device), batches, training, loss)
            except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
                raise InvalidObservation(
                    f"a virtual client cannot train this model: {_first_line(error)}"
                ) from None
            return dict(local.state_dict())

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


def recipe_of(
    observation: Observation, samples: Samples, tests: tuple[Tensor, Tensor] | None
) -> Recipe:
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
    return Recipe(model, changes, observation, samples, tests)


def check_finite(shown: Iterable[Tensor]) -> None:
    """Refuse what a virtual client shows if its training went out of bounds."""
    if not all(bool(torch.isfinite(values).all()) for values in shown):
        raise InvalidObservation(
            "a virtual client's weights are not finite after training by this recipe: is the "
            "learning rate the client's?"
        )


def changes_between(
    model: nn.Module, after: Mapping[str, Tensor], names: Sequence[str]
) -> dict[str, Tensor]:
    """How much every named parameter fell, flat, on the CPU; large ones as sketches."""
    before = dict(model.named_parameters())
    found = {}
    for name in names:
        fell = before[name].detach() - after[name].detach().to(before[name])
        found[name] = sketched(fell.flatten().cpu())
    return found


def behavior(
    model: nn.Module, state: Mapping[str, Tensor], tests: tuple[Tensor, Tensor]
) -> Float[Tensor, " pairs"]:
    """Mean log-probability of every class for the test inputs of every class, on the CPU.

    Args:
        model: The network, of which a copy is run in evaluation mode.
        state: Weights and buffers to use instead of its own, by name.
        tests: Inputs and labels.
    """
    model = deepcopy(model).eval()
    own = model.state_dict()
    model.load_state_dict({**own, **{name: state[name] for name in own if name in state}})
    inputs, labels = tests
    like = next(model.parameters())
    inputs = inputs.to(like) if inputs.is_floating_point() else inputs.to(like.device)
    try:
        with torch.no_grad():
            logits = torch.cat([model(group) for group in torch.split(inputs, _GROUP)])
        certainty = logits.double().log_softmax(dim=1).cpu()
        shown = class_means(certainty, labels.cpu(), certainty.shape[1])
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise InvalidObservation(
            f"the auxiliary inputs do not go through the model: {_first_line(error)}"
        ) from None
    return shown.flatten().to(like.dtype)


def sketched(values: Float[Tensor, " entries"]) -> Float[Tensor, " kept"]:
    """The values, or a count sketch of them, which keeps inner products on average.

    Every entry is added, with a random sign, to a random one of the sketch (Charikar, Chen and
    Farach-Colton 2002). The same for all vectors of one length.
    """
    size = len(values)
    if size <= _MOST_ENTRIES:
        return values
    generator = torch.Generator().manual_seed(size)
    places = torch.randint(_MOST_ENTRIES, (size,), generator=generator)
    signs = 2.0 * torch.randint(2, (size,), generator=generator, dtype=torch.uint8).to(values) - 1.0
    return values.new_zeros(_MOST_ENTRIES).index_add_(0, places, signs * values)


def auxiliary_samples(auxiliary: Auxiliary, classes: int) -> Samples:
    """Draws from the server's own with replacement, every other one of a class in a pool.

    What is drawn first of a class is the same whatever the counts are.
    """
    by_class = [(auxiliary.labels == label).nonzero()[:, 0].cpu() for label in range(classes)]

    def draw(
        counts: Int[Tensor, " classes"], pool: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        chosen, total = [], int(counts.sum())
        for own, number in zip(by_class, counts.tolist(), strict=True):
            mine = own[pool::2] if len(own) > 1 else own
            chosen.append(mine[torch.randint(len(mine), (total,), generator=generator)[:number]])
        places = torch.cat(chosen).to(auxiliary.labels.device)
        return auxiliary.inputs[places.to(auxiliary.inputs.device)], auxiliary.labels[places]

    return draw


def tests_of(auxiliary: Auxiliary) -> tuple[Tensor, Tensor]:
    """Inputs and labels of the first few auxiliary samples of every class."""
    labels = auxiliary.labels.cpu()
    chosen = [(labels == label).nonzero()[:_TESTS, 0] for label in sorted(set(labels.tolist()))]
    places = torch.cat(chosen)
    return auxiliary.inputs[places.to(auxiliary.inputs.device)], labels[places]


def drawn_counts(
    center: np.ndarray, concentration: float, total: int, source: np.random.Generator
) -> Int[Tensor, " classes"]:
    """Counts of one virtual client: multinomial, of shares from a Dirichlet about the center.

    Args:
        center: Positive, shape (classes,), summing to one.
        concentration: Sum of the Dirichlet's parameters.
        total: Number of samples.
        source: Of random numbers.
    """
    shares = source.dirichlet(np.maximum(concentration * center, 1e-3))
    return torch.from_numpy(source.multinomial(total, shares / shares.sum()))


def canonical_order(observation: Observation) -> Int[Tensor, " classes"]:
    """The classes by their update: what is drawn does not depend on how classes are numbered."""
    gradient = observation.gradient
    key = gradient.weight.double().norm(dim=1) if gradient.bias is None else gradient.bias.double()
    return key.cpu().argsort(stable=True)


def _batches(
    observation: Observation, labels: Int[Tensor, " samples"], generator: torch.Generator
) -> list[Tensor]:
    """Samples of every step: each epoch in another order, a smaller last one if steps allow it.

    The first samples of a class have the same places in the order whatever the counts are.
    """
    size, steps = observation.batch_size, observation.local_steps
    assert size is not None, "a need of the attack"
    each = steps // observation.training.epochs
    batches: list[Tensor] = []
    while len(batches) < steps:
        places = torch.empty(len(labels))
        for label in range(observation.classes):
            own = labels == label
            places[own] = torch.rand(len(labels), generator=generator)[: int(own.sum())]
        order = places.argsort(stable=True)
        batches += torch.split(order, size)[: min(each, steps - len(batches))]
    return batches


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


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

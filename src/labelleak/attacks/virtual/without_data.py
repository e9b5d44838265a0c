"""The attack `synthetic`: virtual clients on classes that are made up, without auxiliary data."""

import math
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from labelleak.attacks.evidence import instances
from labelleak.attacks.inputs import guessed_shape
from labelleak.attacks.mean_prediction.passes import first_layer
from labelleak.attacks.registry import Gives, Need, register
from labelleak.attacks.virtual.class_features import SHARED_FROM, class_features
from labelleak.attacks.virtual.class_network import read_rows
from labelleak.attacks.virtual.crew import crew_of
from labelleak.attacks.virtual.drawing import Drawn, canonical_order, drawn_counts
from labelleak.attacks.virtual.made_up_classes import (
    MadeUpSamples,
    Nature,
    child_of,
    drawn_nature,
)
from labelleak.attacks.virtual.shown import check_finite
from labelleak.attacks.virtual.simulation import Recipe, SharedClients, recipe_of
from labelleak.attacks.virtual.stages import (
    Progress,
    Stages,
    center_about,
    check_trainings,
    concentration_about,
    log_uniform,
    run_stages,
    told_counts,
)
from labelleak.errors import MissingKnowledge
from labelleak.isolation import undisturbed
from labelleak.observation import Observation
from labelleak.projection import project_to_simplex
from labelleak.restoration import Flag, Restoration

# Virtual clients of the first stage, and of each later one.
_FIRST, _STAGE = 96, 24
# Most virtual clients of one real client: of the first of a round, and of another one.
_MOST, _MOST_OF_OTHERS = 240, 48
# Fewest virtual clients that an answer can rest on.
_FEWEST = 24
# Parameters of the Dirichlet of the first stage's shares, for each class: from lopsided to even.
_ANYWHERE = (0.3, 10.0)
# Most classes: networks learn from all of them at a time, and know no time limit.
_MOST_CLASSES = 1000
# Later stages have data like those of this share of the virtual clients, whose updates are nearest.
_ALIKE = 0.25
# An update this many times as far from simulated ones as those from each other is of other data.
_NOVEL = 4.0


@dataclass(eq=False)
class MadeUpClients(SharedClients):
    """Virtual clients on made-up classes that real clients of one round share.

    Pass the same object for every client who has model and recipe in common. What was trained for
    others is forgotten.

    Attributes:
        natures: What the data of each virtual client were like.
        rows: Its features, as of `class_features`.
        counts: Its counts.
    """

    natures: list[Nature] = field(default_factory=list)
    rows: list[Float[Tensor, "classes features"]] = field(default_factory=list)
    counts: list[Int[Tensor, " classes"]] = field(default_factory=list)


@register(
    "synthetic",
    title="Virtual clients on synthetic classes (labelleak's own)",
    needs=(
        Need.BIAS,
        Need.BATCH_SIZE,
        Need.MODEL,
        Need.AFTER,
        Need.LEARNING_RATES,
    ),
    gives=(Gives.COUNTS,),
    assumes="classes that differ as those of images or vectors do, and that the recipe is the "
    "client's",
    reference="labelleak; indirect inference (Gourieroux, Monfort and Renault 1993), domain "
    "randomization (Tobin et al. 2017)",
    models_steps=True,
    models_optimizer=True,
)
def synthetic_clients(
    observation: Observation,
    *,
    time_limit: float | None = None,
    trainings: int | None = None,
    seed: int = 0,
    shared: MadeUpClients | None = None,
    progress: Progress | None = None,
    now: Callable[[], float] = time.monotonic,
) -> Restoration:
    """Train virtual clients on made-up classes, and learn how a class's share shows in an update.

    As `virtual`, but the server needs no samples: virtual clients train on patterns and noise. How
    much classes differ, how smooth inputs are and how large is drawn anew for every virtual client;
    later ones have data whose updates are like the real one. Small networks learn from them, the
    same for all classes: they see of a class only what would be the same under another name.

    Args:
        observation: Needs the model before and after, and the recipe with its batch size and
            learning rates. The shape of an input is guessed where it is not known.
        time_limit: Seconds, positive; None for 60, or 60 virtual clients where they take longer.
        trainings: Most virtual clients, at least 24; None for 240, or 48 where another real client
            of the round left its own.
        seed: Of what is drawn; anything from 0.
        shared: Virtual clients of other real clients of the round, to use and to add to.
        progress: Called after each virtual client with their number and the share of labels that
            may be wrong, NaN where that is not known yet.
        now: Reads the clock, in seconds.

    Returns:
        Real-valued and integer counts with standard errors. An interrupt (Ctrl-C) after the first
        24 virtual clients ends it with what is known. The flag `TIME_LIMIT` is raised only before
        the first 96; the networks learn after the time limit for the last time.

    Raises:
        MissingKnowledge: The shape of inputs cannot be guessed, the model is not the one before
            training, its head is one logit, or there are more than 1000 classes.
        InvalidObservation: The model cannot be trained on such inputs, or the recipe makes updates
            that are not finite.
        ValueError: `trainings` is below 24.
    """
    check_trainings(trainings, _FEWEST)
    if observation.is_one_logit:
        raise MissingKnowledge("attack 'synthetic' needs a head of two logits or more")
    if observation.classes > _MOST_CLASSES:
        raise MissingKnowledge(
            f"attack 'synthetic' would take too long for {observation.classes} classes (use pooled)"
        )
    shape, total = _shape_of(observation), instances(observation)
    order = canonical_order(observation)
    recipe = recipe_of(observation, None)
    search = _Search(recipe, total, shape, order, seed, shared or MadeUpClients())
    if trainings is None:
        trainings = _MOST if search.known < _FIRST else _MOST_OF_OTHERS
    with crew_of(recipe, torch.zeros(observation.batch_size or 1, *shape)) as crew:
        flags = run_stages(
            search,
            crew,
            fewest=_FEWEST,
            trainings=trainings,
            time_limit=time_limit,
            progress=progress,
            now=now,
        )
    if search.wrong:
        # Errors are those that so many virtual clients have.
        flags = ()
    search.look()
    if search.novelty > _NOVEL:
        flags = (*flags, Flag.OUTSIDE_SIMULATIONS)
    return told_counts(observation, total, search.shares, search.errors, flags)


def _shape_of(observation: Observation) -> tuple[int, ...]:
    if observation.input_shape is not None:
        return observation.input_shape
    if observation.auxiliary is not None:
        return tuple(observation.auxiliary.inputs.shape[1:])
    assert observation.model is not None, "a need of the attack"
    with undisturbed():
        model = deepcopy(observation.model).eval()
    return guessed_shape(model, first_layer(model), "synthetic")


class _Search(Stages):
    """The virtual clients so far, and what they say of the real one."""

    def __init__(
        self,
        recipe: Recipe,
        total: int,
        shape: tuple[int, ...],
        order: Int[Tensor, " classes"],
        seed: int,
        made: MadeUpClients,
    ) -> None:
        super().__init__()
        seen = recipe.observation
        self.recipe, self.total, self.shape, self.order = recipe, total, shape, order
        self.novelty = math.inf
        self.shares = torch.full((seen.classes,), 1.0 / seen.classes, dtype=torch.float64)
        self.errors = torch.full_like(self.shares, math.inf)
        made.are_of(recipe)
        self.made = made
        self._source = np.random.default_rng([seed, len(made.rows)])
        self._scale = recipe.scale_of_bias
        self._before = {n: v.detach().clone() for n, v in recipe.model.named_parameters()}
        assert seen.after is not None, "a need of the attack"
        self._observed = self._rows(seen.after)
        self._looked_at = 0
        if self.known >= _FIRST:
            self.end_stage()

    @property
    def has_settled(self) -> bool:
        """More of them tell more, if slowly."""
        return False

    @property
    def known(self) -> int:
        """Number of virtual clients, those of other real clients among them."""
        return len(self.made.rows)

    @property
    def left_of_stage(self) -> int:
        """Virtual clients until the end of this stage."""
        more = self.known - _FIRST
        return -more if more < 0 else _STAGE - more % _STAGE

    def draw(self, _: int) -> Drawn:
        """What the next virtual client trains on."""
        later = bool(self.wrong)
        nature = child_of(self._like(), self._source) if later else drawn_nature(self._source)
        counts = torch.zeros_like(self.order)
        counts[self.order] = drawn_counts(*self._next(), self.total, self._source)
        samples = MadeUpSamples(nature, self.shape, self.order)
        return Drawn(counts, samples, 0, int(self._source.integers(2**31)))

    def shown(self, after: dict[str, Tensor]) -> Float[Tensor, "classes features"]:
        """What is kept of a virtual client, from its state dict."""
        rows = self._rows(after)
        check_finite([rows])
        return rows

    def add(self, drawn: Drawn, shown: Float[Tensor, "classes features"]) -> None:
        """Enter one more virtual client."""
        assert isinstance(drawn.samples, MadeUpSamples), "drawn above"
        self.made.natures.append(drawn.samples.nature)
        self.made.rows.append(shown)
        self.made.counts.append(drawn.counts)

    def end_stage(self) -> None:
        """Estimate anew."""
        self.look()
        self.note(self.errors)

    def look(self) -> None:
        """Estimate anew what the virtual clients so far say of the real one, if there are more."""
        if self._looked_at == self.known:
            return
        shares = torch.stack(self.made.counts).double() / self.total
        rows, known = torch.stack(self.made.rows), None
        if self._scale is not None:
            # A row begins with the bias, by which shares lie below the mean prediction.
            known = torch.cat([rows[:, :, 0], self._observed[None, :, 0]])
        found = read_rows(rows, shares, self._observed, known)
        self.shares = project_to_simplex(found.shares, 1)
        self.novelty = found.novelty
        self.errors = found.errors(self.shares)
        # Not before, since the networks may be interrupted.
        self._looked_at = self.known

    def _next(self) -> tuple[np.ndarray, float]:
        """Center and concentration of the next client's shares, in the order of drawing."""
        if not self.wrong:
            classes = len(self.shares)
            even = np.full(classes, 1.0 / classes)
            return even, classes * log_uniform(self._source, _ANYWHERE)
        center = center_about(self.shares[self.order])
        return center, concentration_about(center, self.errors)

    def _like(self) -> Nature:
        """The nature of a virtual client, until this stage, whose update as a whole is near."""
        shared = torch.stack(self.made.rows[: self._looked_at])[:, 0, SHARED_FROM:]
        off = (shared - self._observed[0, SHARED_FROM:]) / shared.std(dim=0).clamp_min(1e-9)
        nearest = off.square().sum(dim=1).argsort()
        chosen = int(self._source.integers(max(1, int(_ALIKE * len(nearest)))))
        return self.made.natures[int(nearest[chosen])]

    def _rows(self, after: Mapping[str, Tensor]) -> Float[Tensor, "classes features"]:
        seen = self.recipe.observation
        reach = self._scale or seen.training.reach
        assert reach is not None, "a need of the attack"
        assert seen.head.name is not None, "the model has it"
        return class_features(self._before, after, self.recipe.names, seen.head.name, reach)

"""The attack `virtual`: in stages, until its own error is small or time is over."""

import time
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from labelleak.attacks.evidence import instances
from labelleak.attacks.inputs import auxiliary_of
from labelleak.attacks.likelihood import likelihood
from labelleak.attacks.published.rlu import rlu
from labelleak.attacks.registry import Gives, Need, register
from labelleak.attacks.virtual.crew import crew_of
from labelleak.attacks.virtual.drawing import (
    Drawn,
    Samples,
    auxiliary_samples,
    canonical_order,
    drawn_counts,
)
from labelleak.attacks.virtual.regression import Estimate, regress, similarities
from labelleak.attacks.virtual.shown import tests_of
from labelleak.attacks.virtual.simulation import Recipe, Simulations, recipe_of
from labelleak.attacks.virtual.stages import (
    TRAININGS,
    Progress,
    Stages,
    center_about,
    check_trainings,
    concentration_about,
    log_uniform,
    run_stages,
    tens,
    told_counts,
)
from labelleak.errors import MissingKnowledge
from labelleak.observation import Observation
from labelleak.projection import project_to_simplex
from labelleak.restoration import Flag, Restoration

# Most virtual clients of one real client: of the first of a round, and of another one, to which
# those of others are lent.
_MOST, _MOST_OF_OTHERS = 120, 60
# Virtual clients of the first stage, and of each later one.
_FIRST, _STAGE = 32, 16
# Fewest virtual clients that an answer can rest on.
_FEWEST = 12
# Virtual clients of a pool, one after the other, with the same random numbers.
_ALIKE = 3
# Concentrations of the shares of ten classes in the first stage, about an estimate, and about
# nothing.
_ABOUT, _ANYWHERE = (4.0, 64.0), (2.0, 100.0)
# A virtual client this many times as far off as the error counts half.
_NEAR = 3.0
# An update this many times as far from simulated ones as those from each other is of other data.
_NOVEL = 2.0


@register(
    "virtual",
    title="Virtual clients (labelleak's own)",
    needs=(
        Need.BATCH_SIZE,
        Need.MODEL,
        Need.AUXILIARY,
        Need.AFTER,
        Need.LEARNING_RATES,
    ),
    uses=(Need.BIAS,),
    gives=(Gives.COUNTS,),
    assumes="auxiliary data of the client's kind, and that the recipe is the client's",
    reference="labelleak; indirect inference (Gourieroux, Monfort and Renault 1993), regression "
    "adjustment (Beaumont, Zhang and Balding 2002)",
    models_steps=True,
    models_optimizer=True,
    losses=("cross_entropy", "focal"),
)
def virtual_clients(
    observation: Observation,
    *,
    time_limit: float | None = None,
    trainings: int | None = None,
    seed: int = 0,
    shared: Simulations | None = None,
    progress: Progress | None = None,
    now: Callable[[], float] = time.monotonic,
) -> Restoration:
    """Train virtual clients of drawn counts by the client's recipe, and regress counts on updates.

    The server knows its model, the client's, and the recipe. With samples of its own it can be the
    client: draw counts, train, and see what update they make. Counts of the real client are those
    that kernel ridge regression predicts from its update. In later stages counts are drawn about
    the estimate. Nothing is said of gradients, so any optimizer, loss and number of epochs will do.

    For SGD the mean of a step's bias gradient is ``p - n / K`` with the mean prediction p of its
    batch, so the bias alone says how far the shares are from the mean prediction of the training.
    The regression is of that prediction, which differs less between clients than shares do (a
    control variate).

    A few virtual clients each have samples and their order in common, but for what their counts
    demand (common random numbers): what differs in their updates then comes of the counts.

    Every other auxiliary sample of a class is in one of two pools, and a virtual client has those
    of one. Errors are those of predicting clients of one pool from those of the other.

    Args:
        observation: Needs the model before and after, the recipe with its batch size and learning
            rates, and auxiliary data with two samples of every class, better 200.
        time_limit: Seconds, positive; None for 60, or 60 virtual clients where they take longer,
            those of others among them.
        trainings: Most virtual clients that are trained for this client, at least 12; None for 120,
            or 60 where there are 60 of others.
        seed: Of what is drawn; anything from 0.
        shared: Virtual clients of other real clients of the round, to use and to add to.
        progress: Called after each virtual client with their number and the share of labels that
            may be wrong, NaN where that is not known yet.
        now: Reads the clock, in seconds.

    Returns:
        Real-valued and integer counts with standard errors. An interrupt (Ctrl-C) after the first
        12 virtual clients ends it with what is known.

    Raises:
        MissingKnowledge: A class has fewer than two auxiliary samples, the model is not the one
            before training, or its head is one logit.
        InvalidObservation: The model cannot be trained on the samples, or the recipe makes updates
            that are not finite.
        ValueError: `trainings` is below 12.
    """
    check_trainings(trainings, _FEWEST)
    if observation.is_one_logit:
        raise MissingKnowledge(
            "attack 'virtual' needs a head of two logits or more: one logit is read as two "
            "classes, which train otherwise"
        )
    auxiliary, total = auxiliary_of(observation), instances(observation)
    if int(torch.bincount(auxiliary.labels, minlength=observation.classes).min()) < 2:
        raise MissingKnowledge("attack 'virtual' needs two auxiliary samples of every class")
    samples = auxiliary_samples(auxiliary, observation.classes)
    recipe = recipe_of(observation, tests_of(auxiliary))
    search = _Search(recipe, samples, total, seed, start_of(observation), shared or Simulations())
    if trainings is None:
        trainings = _MOST if len(search.made.pools) < TRAININGS else _MOST_OF_OTHERS
    with crew_of(recipe, auxiliary.inputs[: observation.batch_size]) as crew:
        flags = run_stages(
            search,
            crew,
            fewest=_FEWEST,
            trainings=trainings,
            time_limit=time_limit,
            progress=progress,
            now=now,
        )
    found = search.estimate()
    if found.novelty > _NOVEL:
        flags = (*flags, Flag.OUTSIDE_SIMULATIONS)
    return told_counts(observation, total, found.values, found.errors, flags)


def start_of(observation: Observation) -> Float[Tensor, " classes"] | None:
    """Shares to begin with: those of `likelihood` or `rlu`; None where neither can know."""
    if not observation.has_bias:
        return None
    # In one step the two are alike, and the second is fast; with Adam it is the better guess.
    quick = observation.local_steps == 1 or not observation.training.is_sgd
    for attack in (rlu,) if quick else (likelihood, rlu):
        try:
            found = attack(observation)
        except (MissingKnowledge, RuntimeError):
            continue
        return found.proportions
    return None


class _Search(Stages):
    """The virtual clients so far, and where the next ones are drawn."""

    def __init__(
        self,
        recipe: Recipe,
        samples: Samples,
        total: int,
        seed: int,
        start: Float[Tensor, " classes"] | None,
        made: Simulations,
    ) -> None:
        super().__init__()
        self.recipe, self.total, self.start, self.made = recipe, total, start, made
        self._samples, self._seed = samples, seed
        self.found: Estimate | None = None
        made.are_of(recipe)
        self._source = np.random.default_rng([seed, len(made.pools)])
        self._order = canonical_order(recipe.observation)
        self.end_stage()

    @property
    def known(self) -> int:
        """Number of virtual clients, those of other real clients among them."""
        return len(self.made.pools)

    @property
    def left_of_stage(self) -> int:
        """Virtual clients until the end of this stage."""
        return _STAGE - self.trained % _STAGE

    def draw(self, ahead: int) -> Drawn:
        """What the next virtual client trains on, where so many drawn ones are not added yet."""
        center, concentration = self._next(self.trained + ahead)
        counts = torch.zeros(len(center), dtype=torch.int64)
        counts[self._order] = drawn_counts(center, concentration, self.total, self._source)
        number = self.known + ahead
        pool, group = number % 2, number // (2 * _ALIKE)
        alike = np.random.default_rng([self._seed, group, pool])
        return Drawn(counts, self._samples, pool, int(alike.integers(2**31)))

    def shown(self, after: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is kept of a virtual client, from its state dict."""
        return self.recipe.shown(after)

    def add(self, drawn: Drawn, shown: dict[str, Tensor]) -> None:
        """Enter one more virtual client."""
        self.made.add(shown, drawn.counts.double() / self.total, drawn.pool)

    def end_stage(self) -> None:
        """Estimate anew, if there are enough."""
        if self.known >= _FIRST:
            self.found = self.estimate()
            self.note(self.found.errors)

    def _next(self, number: int) -> tuple[np.ndarray, float]:
        """Center and concentration of a client's shares, in the canonical order, by its number."""
        # Clients of one pool each follow on one another.
        turn = number // 2
        known, classes = self.found, len(self._order)
        if known is None or (number < _STAGE and turn % 2):
            every = 4 if self.recipe.observation.training.is_sgd else 2
            if self.start is None or turn % every == 0:
                even = np.full(classes, 1.0 / classes)
                return even, tens(classes) * log_uniform(self._source, _ANYWHERE)
            center = center_about(self.start.cpu()[self._order])
            return center, tens(classes) * log_uniform(self._source, _ABOUT)
        center = center_about(project_to_simplex(known.values, 1)[self._order])
        # Half of them scatter by more: errors may be larger than they seem.
        return center, concentration_about(center, known.errors, wider=not turn % 2)

    def estimate(self) -> Estimate:
        """What the virtual clients so far say of the real one, as shares."""
        shares, pools = torch.stack(self.made.shares), torch.tensor(self.made.pools)
        weights = torch.ones_like(shares[:, 0])
        if self.found is not None:
            near = float(self.found.errors.square().sum())
            apart = (shares - self.found.values).square().sum(dim=1)
            # Far ones may be very many: those of other real clients.
            weights = 1.0 / (1.0 + (apart / (_NEAR**2 * near + 1e-12)).square())
        head = self.recipe.observation.head.name or ""
        choices = similarities(self.made.changes, self.recipe.changes, head, weights)
        scale, known = self.recipe.scale_of_bias, torch.zeros(len(shares) + 1, shares.shape[1])
        if scale is not None:
            name = f"{self.recipe.observation.head.name}.bias"
            seen = [one[name] for one in (*self.made.changes, self.recipe.changes)]
            known = -torch.stack(seen) / scale
        return regress(choices, shares, pools, weights, known.double())

"""Experiments as data: frozen, validated definitions of what a trial does."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from labelleak.lab.code_version import code_hash
from labelleak.lab.datasets.loading import check_name, data_plugin
from labelleak.lab.datasets.samplers import SAMPLERS
from labelleak.lab.fields import (
    Definition,
    Fraction,
    NonNegative,
    Positive,
    PositiveInt,
    SeedNumber,
)
from labelleak.lab.keys import hash_of_definition, hash_with_code, hash_with_plugins
from labelleak.lab.parts import (
    AttackChoice,
    AttackSetting,
    DefenseSetting,
    Network,
    setting_of,
)
from labelleak.lab.ranges import RANGES, RangeName
from labelleak.lab.tasks import Local, LossSetting, Targets, check_task
from labelleak.loss import Loss
from labelleak.plugins import Plugin

__all__ = [
    "AttackSetting",
    "Batch",
    "DefenseSetting",
    "Definition",
    "Experiment",
    "InversionSetting",
    "Local",
    "Network",
    "Training",
]

MeasureName = Literal["cossim", "approximations", "soteria_embedding", "coverage", "seconds"]
Baseline = Literal["uniform", "absent", "shuffled"]

# Option -> the samplers that have it.
_SAMPLER_OPTIONS = {
    "num_classes": ("random_classes", "balanced"),
    "classes": ("imbalanced",),
    "alpha": ("dirichlet",),
}


class Training(Definition):
    """How far the network is trained before the trials, by SGD as in Ma et al., ICLR 2023.

    The learning rate falls to a tenth at 3/8, 5/8 and 7/8 of the whole run. As in the paper, the
    batches of the experiment are drawn from the samples that the network was trained on.

    Attributes:
        unit: What `steps` and `total` count.
        steps: Length of the training up to this stage, 0 to `total`.
        total: Length of the whole run.
        batch_size: Samples in one step of the optimizer.
        learning_rate: Initial learning rate.
        momentum: Momentum of SGD.
        nesterov: Whether the momentum is Nesterov's.
        weight_decay: Weight decay of all parameters.
        samples_per_class: Number of training samples of each class; None for all of them.
        seed: Seed of the order of the samples and of dropout.
    """

    unit: Literal["iterations", "epochs"]
    steps: Annotated[int, Field(ge=0)]
    total: PositiveInt
    batch_size: PositiveInt = 128
    learning_rate: Positive = 0.1
    momentum: Fraction = 0.9
    nesterov: bool = True
    weight_decay: NonNegative = 5e-4
    samples_per_class: PositiveInt | None = None
    seed: SeedNumber = 13

    @model_validator(mode="after")
    def _consistent(self) -> "Training":
        if self.steps > self.total:
            raise ValueError(f"steps {self.steps} is more than total {self.total}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class Batch(Definition):
    """How a batch is drawn by `labelleak.lab.datasets.samplers`.

    Attributes:
        sampler: A name of `labelleak.lab.datasets.samplers.SAMPLERS`.
        size: Number of samples K.
        replacement: Whether samples are drawn with replacement. Photographs that are decoded lazily
            are then cropped and flipped at random.
        num_classes: ``random_classes`` (required) and ``balanced`` only: number of classes drawn;
            None for all.
        classes: ``imbalanced`` only: the three classes; None to draw them.
        alpha: ``dirichlet`` only: its concentration; None for the sampler's default.
    """

    sampler: str = "random"
    size: PositiveInt
    replacement: bool = False
    num_classes: PositiveInt | None = None
    classes: tuple[int, int, int] | None = None
    alpha: Positive | None = None

    @field_validator("sampler")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in SAMPLERS:
            known = ", ".join(sorted(SAMPLERS))
            raise ValueError(f"{name!r} is unknown, choose one of {known}")
        return name

    @model_validator(mode="after")
    def _options_fit(self) -> "Batch":
        for option, samplers in _SAMPLER_OPTIONS.items():
            if getattr(self, option) is not None and self.sampler not in samplers:
                known = " and ".join(map(repr, samplers))
                raise ValueError(
                    f"{option} is an option of the sampler {known}, not of {self.sampler!r}"
                )
        if self.sampler == "random_classes" and self.num_classes is None:
            raise ValueError("the sampler 'random_classes' needs num_classes")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """Options of `datasets.draw`."""
        return self.model_dump(exclude={"sampler", "size"}, exclude_none=True)


class InversionSetting(Definition):
    """Images are restored, too, by IG of `labelleak.inversion`.

    Attributes:
        labels: What is known of the labels. ``shared``: nothing; one soft label for the whole batch
            is optimized. ``free``: nothing; one soft label for each image is optimized.
            ``restored``: what the first of the experiment's attacks restores. ``given``: all.
        iterations: Iterations of each restart.
        restarts: Number of starts, each from its own noise.
        total_variation: Weight of the total-variation prior.
    """

    labels: Literal["shared", "free", "restored", "given"]
    iterations: PositiveInt
    restarts: PositiveInt = 1
    total_variation: NonNegative = 1e-4


class Experiment(Definition):
    """One setting, and the number of its trials.

    Attributes:
        name: Label for the reader, unique in a run; not part of a trial's key.
        data: A name that `labelleak.lab.datasets.load` takes.
        stands_in_for: The published data set that `data` replaces; None where it is the same.
        data_split: Split that batches are drawn from; training always uses ``train``.
        image_size: Side of the square cut out of photographs, pixels; None for the data set's own.
        network: The network.
        training: How far the network is trained; None for its initial weights.
        batch: How a batch is drawn.
        loss: The client's loss, by its name or with options; None for a plain cross-entropy.
        targets: Targets made of the classes, for a loss with a sigmoid.
        local: Local training of several steps; None if the client sends the gradient of one batch.
        defense: What the client does to the update.
        auxiliary_per_class: Number of labeled samples of each class that the server holds, from the
            split ``test``; None for no such samples.
        attacks: Names of attacks (`labelleak.list_attacks`), ``auto``, and ``module:name`` of
            registered functions; a table with the name and further fields sets parameters.
        time_limit: Seconds that a searching attack has for a batch; None for its own limit.
        baselines: Counts scored beside those of the attacks: ``uniform`` (the same count for each
            class), ``absent`` (all zero) and ``shuffled`` (the true counts, permuted over the
            classes at random).
        known_classes: Whether the server knows which classes are in the batch.
        measures: What to measure besides the scores. ``cossim`` (restored class embeddings and
            probabilities against the true ones, table 1), ``approximations`` (table 3) and
            ``soteria_embedding`` (table 4) are about the attack ``ilrg`` and require it.
            ``coverage`` (share of true counts inside an attack's 95 % intervals) and ``seconds``
            (processor time, which makes records differ between machines) are about every attack.
        inversion: How images are restored; None if they are not.
        trials: Number of batches.
        seed: Number of the seed from which all randomness of the trials is derived.
        range: Where samples and seeds are taken from, see `labelleak.lab.ranges`. Seeds of the
            network and its training are counted inside it.
    """

    name: Annotated[str, Field(min_length=1)]
    data: str
    stands_in_for: str | None = None
    data_split: Literal["train", "test", "val"] = "train"
    image_size: PositiveInt | None = None
    network: Network
    training: Training | None = None
    batch: Batch
    loss: LossSetting | None = None
    targets: Targets | None = None
    local: Local | None = None
    defense: DefenseSetting = DefenseSetting()
    auxiliary_per_class: PositiveInt | None = None
    attacks: tuple[AttackChoice, ...]
    time_limit: Annotated[float, Field(gt=0)] | None = None
    baselines: tuple[Baseline, ...] = ()
    known_classes: bool = False
    measures: tuple[MeasureName, ...] = ()
    inversion: InversionSetting | None = None
    trials: PositiveInt
    seed: SeedNumber = 0
    range: RangeName = "evaluation"

    @field_validator("data")
    @classmethod
    def _known(cls, name: str) -> str:
        check_name(name)
        return name

    @field_validator("attacks")
    @classmethod
    def _at_least_one(cls, attacks: tuple[object, ...]) -> tuple[object, ...]:
        if not attacks:
            raise ValueError("at least 1 item is needed")
        return attacks

    @field_validator("attacks", "measures", "baselines")
    @classmethod
    def _no_repeats(cls, names: tuple[object, ...]) -> tuple[object, ...]:
        if len(set(names)) != len(names):
            raise ValueError("a name is listed twice")
        return names

    @model_validator(mode="after")
    def _measurable(self) -> "Experiment":
        for place in (self.network, self.training):
            if place is not None and place.seed != "per-trial":
                RANGES[self.range].numbered(place.seed)
        if self.network.seed == "per-trial" and self.training is not None:
            raise ValueError("network.seed 'per-trial' is for a network without training")
        if self.of_ilrg and "ilrg" not in self.labels:
            raise ValueError(
                f"the measure {self.of_ilrg[0]!r} is about the attack 'ilrg': add it to attacks"
            )
        self._check_task()
        if self.inversion is not None and self.defense.name != "none":
            raise ValueError("inversion uses an undefended gradient: leave out defense")
        if self.inversion is not None and self.attack_settings[0].parameters:
            raise ValueError("inversion takes the first attack, which can have no parameters")
        if self.auxiliary_per_class is not None and self.data_split == "test":
            raise ValueError("auxiliary data and batches would both be from the split 'test'")
        if self.local is not None:
            clashes = [
                *(["defense"] if self.defense.name != "none" else []),
                *(["inversion"] if self.inversion is not None else []),
                *(f"the measure {name!r}" for name in self.of_ilrg),
            ]
            if clashes:
                raise ValueError(f"local training cannot be combined with {' and '.join(clashes)}")
        return self

    def _check_task(self) -> None:
        check_task(self.loss, self.targets)
        if self.loss is None:
            return
        for what, there in (("inversion", self.inversion), ("measures", self.of_ilrg)):
            if there:
                raise ValueError(f"{what} of a plain cross-entropy: leave out loss")
        if self.baselines and self.targets is not None and self.targets.findings:
            raise ValueError("baselines are counts with a common sum: leave out findings")

    @property
    def client_loss(self) -> Loss:
        """The client's loss."""
        return Loss() if self.loss is None else self.loss.told

    @property
    def attack_settings(self) -> tuple[AttackSetting, ...]:
        """The attacks with their parameters, in their order."""
        return tuple(map(setting_of, self.attacks))

    @property
    def labels(self) -> tuple[str, ...]:
        """What records and metrics call the attacks: the name, with the parameters if any."""
        return tuple(setting.label for setting in self.attack_settings)

    @property
    def plugins_used(self) -> tuple[tuple[str, Plugin], ...]:
        """What is not labelleak's own, with the name that this definition has for it."""
        found = [(setting.label, setting.plugin) for setting in self.attack_settings]
        found += [
            (self.defense.name, self.defense.plugin),
            (self.network.name, self.network.plugin),
            (self.data, data_plugin(self.data)),
        ]
        if self.loss is not None:
            found.append((self.loss.label, self.loss.plugin))
        return tuple((label, plugin) for label, plugin in found if plugin is not None)

    @property
    def code(self) -> str:
        """A hash of the code that a trial runs: labelleak's, and that of plug-ins."""
        own = code_hash(images=self.inversion is not None)
        return hash_with_plugins(own, [plugin.code for _, plugin in self.plugins_used])

    @property
    def of_ilrg(self) -> tuple[MeasureName, ...]:
        """The measures that are about iLRG alone, in their order."""
        return tuple(name for name in self.measures if name not in ("coverage", "seconds"))

    @property
    def samples(self) -> int:
        """Number of the client's distinct samples: of one batch, or of one local epoch."""
        local = self.local
        return self.batch.size * (1 if local is None else local.steps // local.epochs)

    def definition_key(self, index: int) -> str:
        """The identity of a trial as it is asked for, whatever code runs it.

        The name and the number of trials are left out, so that an experiment keeps its records when
        it is renamed or given more trials. So are fields of later versions that say what was
        always so.
        """
        content = self.model_dump(mode="json", exclude={"name", "trials"})
        for name in ("loss", "targets"):
            if content[name] is None:
                del content[name]
        if self.local is not None and self.local.optimizer == "sgd":
            del content["local"]["optimizer"]
        if self.local is not None and self.local.round == 1:
            del content["local"]["round"], content["local"]["clients"]
        return hash_of_definition(content, index)

    def trial_key(self, index: int) -> str:
        """The identity of one trial: a hash of its definition and of the code that runs it."""
        return hash_with_code(self.definition_key(index), self.code)

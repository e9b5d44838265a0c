"""Experiments as data: frozen, validated definitions."""

import math
from functools import lru_cache
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field, field_validator, model_validator

from labelleak.attacks import list_attacks
from labelleak.lab.code_version import code_hash
from labelleak.lab.datasets import names as data_names
from labelleak.lab.datasets.samplers import SAMPLERS
from labelleak.lab.fields import (
    Definition,
    Finite,
    Fraction,
    NonNegative,
    Positive,
    PositiveInt,
    SeedNumber,
)
from labelleak.lab.keys import hash_of_definition, hash_with_code
from labelleak.lab.networks import build
from labelleak.lab.ranges import RANGES, RangeName
from labelleak.lab.tasks import Local, LossSetting, Targets, check_task
from labelleak.loss import Loss

Activation = Literal["relu", "swish", "leaky_relu"]
DefenseName = Literal[
    "none", "gaussian_noise", "clip_norm", "sparsify", "sign", "quantize", "soteria"
]
MeasureName = Literal["cossim", "approximations", "soteria_embedding", "coverage", "seconds"]
Baseline = Literal["uniform", "absent", "shuffled"]


def _one_of(name: str, allowed: list[str]) -> str:
    if name not in allowed:
        raise ValueError(f"{name!r} is unknown, choose one of {', '.join(allowed)}")
    return name


AttackName = Annotated[str, AfterValidator(lambda name: _one_of(name, ["auto", *list_attacks()]))]

# Option -> the samplers that have it.
_SAMPLER_OPTIONS = {
    "num_classes": ("random_classes", "balanced"),
    "classes": ("imbalanced",),
    "alpha": ("dirichlet",),
}
_DEFENSE_VALUES = {
    "gaussian_noise": ("the standard deviation of the noise, at least 0", 0.0, math.inf),
    "clip_norm": ("the largest Euclidean norm, above 0", math.nextafter(0.0, 1.0), math.inf),
    "sparsify": ("the percentage of entries that is set to zero, 0 to 100", 0.0, 100.0),
    "quantize": ("the number of bits, 2 to 16", 2.0, 16.0),
    "soteria": ("the percentage of features that is pruned, 0 to 100", 0.0, 100.0),
}


class Network(Definition):
    """A network of `labelleak.lab.networks.build`.

    Attributes:
        name: ``fcn-N``, or one of `labelleak.lab.networks.names`.
        activation: Of FCN and LeNet-5; the others have ``relu``.
        batchnorm: LeNet-5 only: whether BatchNorm follows each convolution. Here and below, None
            is the network's own default.
        dropout: VGG only: probability that training drops a feature, in [0, 1).
        stem: ResNet only: ``paper`` or ``imagenet``.
        seed: Seed of the initial weights, by default that of the published code; ``per-trial`` for
            other weights in each trial, of an untrained network.
    """

    name: str
    activation: Activation = "relu"
    batchnorm: bool | None = None
    dropout: Fraction | None = None
    stem: Literal["paper", "imagenet"] | None = None
    seed: SeedNumber | Literal["per-trial"] = 13

    @model_validator(mode="after")
    def _exists(self) -> "Network":
        _check_network(self.name, self.activation, self.batchnorm, self.dropout, self.stem)
        return self

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `labelleak.lab.networks.build` besides the name and the sizes."""
        return self.model_dump(exclude={"name"})


@lru_cache(maxsize=256)
def _check_network(
    name: str, activation: str, batchnorm: bool | None, dropout: float | None, stem: str | None
) -> None:
    """Let `build` check the options, on the meta device, where no memory is allocated.

    Raises:
        ValueError: There is no such network, or it lacks these options.
    """
    with torch.device("meta"):
        build(
            name,
            classes=10,
            image_shape=(3, 64, 64),
            activation=activation,
            batchnorm=batchnorm,
            dropout=dropout,
            stem=stem,
        )


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
        return _one_of(name, sorted(SAMPLERS))

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


class DefenseSetting(Definition):
    """A defense of `labelleak.defenses` that the client applies to its update.

    Attributes:
        name: Name of the function; ``none`` for no defense.
        value: Strength: the standard deviation of ``gaussian_noise``, the norm of ``clip_norm``,
            the percentage of ``sparsify`` and ``soteria``, the bits of ``quantize``. None for
            ``none`` and ``sign``.
    """

    name: DefenseName = "none"
    value: Finite | None = None

    @model_validator(mode="after")
    def _value_fits(self) -> "DefenseSetting":
        if self.name not in _DEFENSE_VALUES:
            if self.value is not None:
                raise ValueError(f"the defense {self.name!r} takes no value")
            return self
        meaning, low, high = _DEFENSE_VALUES[self.name]
        whole = self.name != "quantize" or self.value is None or self.value == int(self.value)
        if self.value is None or not low <= self.value <= high or not whole:
            raise ValueError(
                f"value {self.value} of the defense {self.name!r}: it is {meaning}"
                if self.value is not None
                else f"the defense {self.name!r} needs a value: {meaning}"
            )
        return self


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
        data: A name of `labelleak.lab.datasets.names`.
        stands_in_for: The published data set that `data` replaces; None where it is the same.
        data_split: Split that batches are drawn from; training always uses ``train``.
        image_size: Side of the square cut out of photographs, pixels; None for the data set's own.
        network: The network.
        training: How far the network is trained; None for its initial weights.
        batch: How a batch is drawn.
        loss: The client's loss; None for a plain cross-entropy.
        targets: Targets made of the classes, for a loss with a sigmoid.
        local: Local training of several steps; None if the client sends the gradient of one batch.
        defense: What the client does to the update.
        auxiliary_per_class: Number of labeled samples of each class that the server holds, from the
            split ``test``; None for no such samples.
        attacks: Names of registered attacks (`labelleak.list_attacks`), and ``auto``.
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
    attacks: Annotated[tuple[AttackName, ...], Field(min_length=1)]
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
        return _one_of(name, list(data_names()))

    @field_validator("attacks", "measures", "baselines")
    @classmethod
    def _no_repeats(cls, names: tuple[str, ...]) -> tuple[str, ...]:
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
        if self.of_ilrg and "ilrg" not in self.attacks:
            raise ValueError(
                f"the measure {self.of_ilrg[0]!r} is about the attack 'ilrg': add it to attacks"
            )
        self._check_task()
        if self.inversion is not None and self.defense.name != "none":
            raise ValueError("inversion uses an undefended gradient: leave out defense")
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
        return Loss() if self.loss is None else self.loss.made

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
        return hash_of_definition(content, index)

    def trial_key(self, index: int) -> str:
        """The identity of one trial: a hash of its definition and of the code that runs it."""
        code = code_hash(images=self.inversion is not None)
        return hash_with_code(self.definition_key(index), code)

"""Experiments as data: frozen, validated definitions, and grids of them in TOML."""

import hashlib
import itertools
import json
import math
import tomllib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from labelleak.attacks import list_attacks
from labelleak.errors import UnreadableFile
from labelleak.lab.datasets import names as data_names
from labelleak.lab.datasets.samplers import SAMPLERS
from labelleak.lab.networks import build

TRIAL_SCHEMA = "labelleak/trial/1"
"""Name and version of the record of one trial; part of every key, so that a change of what a record
means never mixes with records made before."""

Activation = Literal["relu", "swish", "leaky_relu"]
DefenseName = Literal[
    "none", "gaussian_noise", "clip_norm", "sparsify", "sign", "quantize", "soteria"
]
Measure = Literal["cossim", "approximations", "soteria_embedding", "coverage", "seconds"]
Baseline = Literal["uniform", "absent", "shuffled"]

Finite = Annotated[float, Field(allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]

# Options that only some samplers have: option -> samplers.
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


class Definition(BaseModel):
    """Base of all parts of a definition: immutable, without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Network(Definition):
    """Which network, see `labelleak.lab.networks.build`.

    Attributes:
        name: ``fcn-N``, or one of `labelleak.lab.networks.names`.
        activation: Of FCN and LeNet-5; the others have ``relu``.
        batchnorm: Of LeNet-5: whether BatchNorm follows each convolution; None for the network's
            own default, here and below.
        dropout: Of VGG: probability with which training drops a feature, in [0, 1).
        stem: Of ResNet: ``paper`` or ``imagenet``.
        seed: Seed of the initial weights; the default is that of the published code. ``per-trial``:
            other weights in each trial, of a network that is not trained.
    """

    name: str
    activation: Activation = "relu"
    batchnorm: bool | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    stem: Literal["paper", "imagenet"] | None = None
    seed: Seed | Literal["per-trial"] = 13

    @model_validator(mode="after")
    def _exists(self) -> "Network":
        _check_network(self.name, self.activation, self.batchnorm, self.dropout, self.stem)
        return self

    @property
    def options(self) -> dict[str, Any]:
        """What `labelleak.lab.networks.build` takes besides the name and the sizes."""
        return self.model_dump(exclude={"name"})


@lru_cache(maxsize=256)
def _check_network(
    name: str, activation: str, batchnorm: bool | None, dropout: float | None, stem: str | None
) -> None:
    """Let `build` say what is wrong; on the meta device no weight is made.

    Raises:
        ValueError: No such network, or it has not these options.
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
    """How far the network is trained, by SGD with the optimiser of Ma et al., ICLR 2023.

    The learning rate falls to a tenth at 3/8, 5/8 and 7/8 of the whole run. Batches of the
    experiment are drawn from the samples that the network was trained on, as in the paper.

    Attributes:
        unit: What `steps` and `total` count.
        steps: How far this stage is, 0 to `total`.
        total: Length of the whole run.
        batch_size: Samples in one step of the optimiser.
        learning_rate: At the start.
        momentum: Of SGD.
        nesterov: Whether the momentum is Nesterov's.
        weight_decay: Of all parameters.
        samples_per_class: Train on so many samples of each class only; None for all.
        seed: Seed of the order of the samples and of dropout.
    """

    unit: Literal["iterations", "epochs"]
    steps: Annotated[int, Field(ge=0)]
    total: PositiveInt
    batch_size: PositiveInt = 128
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5e-4
    samples_per_class: PositiveInt | None = None
    seed: Seed = 13

    @model_validator(mode="after")
    def _consistent(self) -> "Training":
        if self.steps > self.total:
            raise ValueError(f"steps {self.steps} is more than total {self.total}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class Batch(Definition):
    """How a batch is drawn, see `labelleak.lab.datasets.samplers`.

    Attributes:
        sampler: A name of `labelleak.lab.datasets.samplers.SAMPLERS`.
        size: Number of samples K.
        replacement: Whether a sample may be used again; photographs that are decoded lazily are
            then cropped and flipped at random.
        num_classes: Of the samplers ``random_classes``, which needs it, and ``balanced``: how many
            classes are drawn; None for all.
        classes: Of the sampler ``imbalanced``: the three classes; None for drawn ones.
        alpha: Of the sampler ``dirichlet``: its concentration; None for the sampler's default.
    """

    sampler: str = "random"
    size: PositiveInt
    replacement: bool = False
    num_classes: PositiveInt | None = None
    classes: tuple[int, int, int] | None = None
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

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
        """What `datasets.draw` takes besides the name, the labels, the size and the seed."""
        return self.model_dump(exclude={"sampler", "size"}, exclude_none=True)


class Local(Definition):
    """Local training: the client sends weights after several steps of SGD.

    Attributes:
        steps: Number of steps, each on `Batch.size` samples; a whole number for each epoch.
        epochs: How often each sample takes part.
        learning_rate: Of all steps.
        momentum: Of SGD, without dampening.
        weight_decay: Of SGD.
        proximal: FedProx's factor mu; 0 for FedAvg.
    """

    steps: PositiveInt
    epochs: PositiveInt = 1
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    proximal: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    @model_validator(mode="after")
    def _whole_epochs(self) -> "Local":
        if self.steps % self.epochs:
            raise ValueError(f"steps {self.steps} in {self.epochs} epochs: as many in each")
        return self


class Defense(Definition):
    """What the client does to its update, see `labelleak.defenses`.

    Attributes:
        name: The function there; ``none`` for no defence.
        value: Its strength: the standard deviation of ``gaussian_noise``, the norm of
            ``clip_norm``, the percentage of ``sparsify`` and ``soteria``, the bits of ``quantize``;
            ``none`` and ``sign`` have none.
    """

    name: DefenseName = "none"
    value: Finite | None = None

    @model_validator(mode="after")
    def _value_fits(self) -> "Defense":
        if self.name not in _DEFENSE_VALUES:
            if self.value is not None:
                raise ValueError(f"the defence {self.name!r} takes no value")
            return self
        meaning, low, high = _DEFENSE_VALUES[self.name]
        whole = self.name != "quantize" or self.value is None or self.value == int(self.value)
        if self.value is None or not low <= self.value <= high or not whole:
            raise ValueError(
                f"value {self.value} of the defence {self.name!r}: it is {meaning}"
                if self.value is not None
                else f"the defence {self.name!r} needs a value: {meaning}"
            )
        return self


class Inversion(Definition):
    """Images are sought for, too, by IG; see `labelleak.inversion`.

    Attributes:
        labels: What is known of the labels: ``shared``: nothing, one soft label for the whole batch
            is sought for; ``free``: nothing, one for each image; ``restored``: what the first of
            the experiment's attacks restores; ``given``: all.
        iterations: Of each restart.
        restarts: Starts from other noise.
        total_variation: Weight of the prior.
    """

    labels: Literal["shared", "free", "restored", "given"]
    iterations: PositiveInt
    restarts: PositiveInt = 1
    total_variation: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-4


class Experiment(Definition):
    """One setting and how often it is tried.

    Attributes:
        name: Label for people, unique in a run; no part of a trial's key.
        data: A name of `labelleak.lab.datasets.names`.
        stands_in_for: The data set of the published figure, where `data` is another one.
        data_split: Split that batches are drawn from; training always uses ``train``.
        image_size: Side of the square cut out of photographs, pixels; None for the data set's own.
        network: The network.
        training: How far it is trained; None for its initial weights.
        batch: How a batch is drawn.
        local: Local training of several steps; None: the client sends the gradient of one batch.
        defense: What the client does to the update.
        auxiliary_per_class: How many labelled samples of each class the server holds, from the
            split ``test``; None: it holds none.
        attacks: Names of registered attacks, see `labelleak.attacks`, and ``auto``.
        time_limit: Seconds that an attack which searches has for a batch; None for its own limit.
        baselines: What is scored beside the attacks without any: ``uniform`` (as many samples of
            each class), ``absent`` (none at all) and ``shuffled`` (the true numbers, dealt out to
            the wrong classes).
        known_classes: Whether the server knows which classes are in the batch.
        measures: What to measure besides the scores: ``cossim`` (restored class embeddings and
            probabilities against the true ones, table 1), ``approximations`` (table 3) and
            ``soteria_embedding`` (table 4), each of the attack ``ilrg``, which they need;
            ``coverage`` (how often an attack's 95 % interval holds the true number) and ``seconds``
            (of the processor, so that the records are not the same everywhere) of every attack.
        inversion: How images are sought for; None: they are not.
        trials: Number of batches.
        seed: What all randomness of the trials is derived from.
    """

    name: Annotated[str, Field(min_length=1)]
    data: str
    stands_in_for: str | None = None
    data_split: Literal["train", "test", "val"] = "train"
    image_size: PositiveInt | None = None
    network: Network
    training: Training | None = None
    batch: Batch
    local: Local | None = None
    defense: Defense = Defense()
    auxiliary_per_class: PositiveInt | None = None
    attacks: Annotated[
        tuple[
            Annotated[str, AfterValidator(lambda name: _one_of(name, ["auto", *list_attacks()]))],
            ...,
        ],
        Field(min_length=1),
    ]
    time_limit: Annotated[float, Field(gt=0)] | None = None
    baselines: tuple[Baseline, ...] = ()
    known_classes: bool = False
    measures: tuple[Measure, ...] = ()
    inversion: Inversion | None = None
    trials: PositiveInt
    seed: Seed = 0

    @field_validator("data")
    @classmethod
    def _known(cls, name: str) -> str:
        return _one_of(name, list(data_names()))

    @field_validator("attacks", "measures", "baselines")
    @classmethod
    def _no_repeats(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError("a name is there twice")
        return names

    @model_validator(mode="after")
    def _measurable(self) -> "Experiment":
        if self.network.seed == "per-trial" and self.training is not None:
            raise ValueError("network.seed 'per-trial' is for a network without training")
        if self.of_ilrg and "ilrg" not in self.attacks:
            raise ValueError(
                f"the measure {self.of_ilrg[0]!r} compares what the attack 'ilrg' restores: add it "
                "to attacks"
            )
        if self.inversion is not None and self.defense.name != "none":
            raise ValueError("inversion takes the whole gradient, which no defence is applied to")
        if self.auxiliary_per_class is not None and self.data_split == "test":
            raise ValueError("auxiliary data is of the split 'test', of which the batches are, too")
        if self.local is not None:
            self._check_local()
        return self

    def _check_local(self) -> None:
        others = {
            "defense": self.defense.name != "none",
            "inversion": self.inversion is not None,
            f"the measure {self.of_ilrg[0]!r}" if self.of_ilrg else "": bool(self.of_ilrg),
        }
        clashes = [what for what, there in others.items() if there]
        if clashes:
            raise ValueError(f"local training goes without {' and '.join(clashes)}")

    @property
    def of_ilrg(self) -> tuple[Measure, ...]:
        """The measures of what iLRG restores, in their order."""
        return tuple(name for name in self.measures if name not in ("coverage", "seconds"))

    @property
    def samples(self) -> int:
        """Number of the client's different samples: those of a batch, or of all its local steps."""
        local = self.local
        return self.batch.size * (1 if local is None else local.steps // local.epochs)

    def trial_key(self, index: int) -> str:
        """What identifies one trial: a hash of all that its record depends on.

        The name and the number of trials are left out: an experiment that is renamed, or given
        more trials, finds the records of those it has.

        Args:
            index: Number of the trial, from 0.

        Returns:
            SHA-256 of the definition in canonical JSON, the index and the version of the record's
            schema, 64 hexadecimal digits.
        """
        content = self.model_dump(mode="json", exclude={"name", "trials"})
        for name in ("inversion", "time_limit", "baselines", "local", "auxiliary_per_class"):
            if not getattr(self, name):
                # Keys of experiments without stay what they were before there was any.
                del content[name]
        text = json.dumps([TRIAL_SCHEMA, content, index], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def derive_seed(*purpose: int | str) -> int:
    """A seed for each purpose, independent of all others.

    Args:
        *purpose: What the seed is for: seeds, numbers and words.

    Returns:
        An integer from 0 to 2**63 - 1, the same everywhere.
    """
    digest = hashlib.sha256("/".join(map(str, purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _one_of(name: str, allowed: list[str]) -> str:
    if name not in allowed:
        raise ValueError(f"{name!r} is unknown, choose one of {', '.join(allowed)}")
    return name


def read_grid(path: Path | str) -> list[Experiment]:
    """Read experiments from a TOML file.

    The table ``[defaults]`` holds fields of `Experiment` that all experiments share, each
    ``[[experiment]]`` the fields of one; tables such as ``network`` are merged field by field.
    Without any ``[[experiment]]`` the defaults are the one experiment. The table ``[grid]`` lists
    alternatives: every value in it, however deep, is a list, and each experiment is made once for
    each combination, with the values appended to its name::

        [defaults]
        data = "mnist-sample"
        attacks = ["ilrg", "rlg"]
        trials = 20
        batch = { sampler = "random", size = 24 }

        [[experiment]]
        name = "FCN-3"
        network = { name = "fcn-3" }

        [[experiment]]
        name = "LeNet-5 under noise"
        network = { name = "lenet5" }
        defense = { name = "gaussian_noise", value = 1e-3 }

        [grid]
        batch.size = [8, 24, 64]
        network.activation = ["relu", "swish"]

    Args:
        path: The file.

    Returns:
        The experiments in the order of the file, combinations with the last list of ``[grid]``
        running fastest.

    Raises:
        UnreadableFile: It cannot be read, or is no such grid; one line per problem, each with the
            experiment, the field and the values that it may have.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnreadableFile(f"{path}: {error.strerror}") from None
    except ValueError as error:  # both of TOML and of UTF-8
        raise UnreadableFile(f"{path}: is not TOML: {error}") from None
    try:
        tables = _tables(content)
        combinations = list(_combinations(content.get("grid", {})))
    except ValueError as error:
        raise UnreadableFile(f"{path}: {error}") from None
    experiments, problems = [], []
    for number, table in enumerate(tables, start=1):
        label = f"experiment {table.get('name', number)!r}"
        for choice in combinations:
            try:
                experiments.append(Experiment.model_validate(_with_choice(table, choice)))
            except ValidationError as error:
                problems += [f"{label}: {line}" for line in problem_lines(error)]
    names = [experiment.name for experiment in experiments]
    problems += [
        f"experiment {name!r}: name: there are {names.count(name)} of this name"
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    if problems:
        lines = list(dict.fromkeys(problems))
        raise UnreadableFile("\n".join(f"{path}: {line}" for line in lines))
    return experiments


def problem_lines(error: ValidationError) -> list[str]:
    """One line per problem of a definition.

    Args:
        error: What pydantic raised.

    Returns:
        Lines ``field.subfield: what is wrong``, with the values that are allowed.
    """
    lines = []
    for problem in error.errors(include_url=False):
        field = ".".join(map(str, _place(problem["loc"]))) or "definition"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"no such field, choose one of {', '.join(_fields_at(problem['loc'][:-1]))}"
        elif problem["type"] == "missing":
            message = "is missing"
        elif problem["type"] in ("model_type", "model_attributes_type"):
            message = f"a table is needed, with {', '.join(_fields_at(problem['loc']))}"
        else:
            message = message[:1].lower() + message[1:]
            if not isinstance(problem["input"], dict | BaseModel) and "Value" not in problem["msg"]:
                message += f", not {problem['input']!r}"
        lines.append(f"{field}: {message}")
    return lines


def _place(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The location without what pydantic appends to it: which of several types was tried."""
    part: type[BaseModel] | None = Experiment
    kept: list[int | str] = []
    for step in location:
        if isinstance(step, str) and part is None:
            break
        kept.append(step)
        if part is not None:
            found = part.model_fields.get(str(step))
            kinds = () if found is None else (found.annotation, *get_args(found.annotation))
            part = next((kind for kind in kinds if _is_definition(kind)), None)
    return tuple(kept)


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    """The fields of the part of a definition at that place."""
    part: type[BaseModel] = Experiment
    for step in location:
        annotation = part.model_fields[str(step)].annotation
        part = next(kind for kind in (annotation, *get_args(annotation)) if _is_definition(kind))
    return list(part.model_fields)


def _is_definition(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Definition)


def _tables(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The experiments of a grid file with the defaults filled in, combinations aside."""
    unknown = sorted(set(content) - {"defaults", "experiment", "grid"})
    if unknown:
        raise ValueError(
            f"{unknown[0]!r} is unknown at the top level: the tables are [defaults], "
            "[[experiment]] and [grid]"
        )
    defaults, tables = content.get("defaults", {}), content.get("experiment", [{}])
    if not isinstance(defaults, dict):
        raise ValueError("defaults is a table: write [defaults]")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ValueError("experiment is a list of tables: write [[experiment]]")
    if not tables or (not defaults and tables == [{}]):
        raise ValueError("there is no experiment: write [defaults] or [[experiment]]")
    return [_merged(defaults, table) for table in tables]


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            merged[key] = _merged(below, value)
        else:
            merged[key] = value
    return merged


Choice = dict[str, Any]
"""Values by dotted field."""


def _combinations(grid: object) -> Iterator[Choice]:
    if not isinstance(grid, dict):
        raise ValueError("grid is a table of lists: write [grid]")
    lists: dict[str, list[object]] = {}
    for field, values in _leaves(grid):
        if not isinstance(values, list) or not values:
            raise ValueError(f"grid.{field}: a list of alternatives is needed, not {values!r}")
        lists[field] = values
    for choice in itertools.product(*lists.values()):
        yield dict(zip(lists, choice, strict=True))


def _leaves(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _with_choice(table: dict[str, Any], choice: Choice) -> dict[str, Any]:
    """The table with the chosen values, and these in its name."""
    for field, value in choice.items():
        for key in reversed(field.split(".")):
            value = {key: value}  # noqa: PLW2901
        table = _merged(table, value)
    if choice and "name" in table:
        values = ", ".join(f"{field}={_short(value)}" for field, value in choice.items())
        table = {**table, "name": f"{table['name']}, {values}"}
    return table


def _short(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)

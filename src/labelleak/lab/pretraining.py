"""Train networks before the trials, once, and keep snapshots of the stages as safetensors.

A run is one network trained on one data set. Its stages are snapshots, each a file with the weights
and the momentum, in the folder ``models`` of the cache (LABELLEAK_CACHE, by default
~/.cache/labelleak).
"""

import glob
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from labelleak.errors import DataNotFound, LabelLeakError, UnreadableFile
from labelleak.lab.datasets import Dataset
from labelleak.lab.datasets.cache import cache_folder
from labelleak.lab.datasets.samplers import some_of_each_class
from labelleak.lab.definition import Network, Training
from labelleak.lab.networks import build, build_plugin
from labelleak.lab.ranges import range_of
from labelleak.lab.schedule import Schedule
from labelleak.lab.tasks import LossSetting
from labelleak.lab.threads import one_thread
from labelleak.loss import Loss

TrainingProgress = Callable[[int, int], None]
"""Called with the number of iterations done and the number of all iterations."""

CHECKPOINT_SECONDS = 60.0
"""Time between two checkpoints of a training."""

# Part of every run's hash: raise it when the same definition gives other weights.
_FORMAT = 1
_WEIGHT, _MOMENTUM = "model.", "momentum."
# Smaller networks (FCN, LeNet-5) gain nothing from threads, and are slowed down on busy cores.
_PARAMETERS_FOR_THREADS = 1_000_000


def training_samples(training: Training | None, dataset: Dataset) -> Int64[Tensor, " samples"]:
    """The samples that a network is trained on and its batches are drawn from.

    Args:
        training: The training; None for an untrained network.
        dataset: The data set.

    Returns:
        Indices into the data set, ascending, the same for every stage of a run: all of them, or
        `samples_per_class` of each class (all samples of a class that has fewer).
    """
    if training is None or training.samples_per_class is None:
        return torch.arange(len(dataset))
    seed = range_of(training.seed).derive(training.seed, "samples")
    return some_of_each_class(dataset.labels, training.samples_per_class, seed)


def initial_network(network: Network, dataset: Dataset) -> nn.Module:
    """The network with its initial weights, on the CPU, in training mode.

    Args:
        network: The network.
        dataset: The data set whose images and classes it is for.

    Returns:
        The network.

    Raises:
        ValueError: The images are too small for it, or the inputs are not what it takes.
    """
    outputs = dataset.outputs
    if network.plugin is not None:
        example = dataset.batch(torch.tensor([0]))[0]
        return build_plugin(network.name, classes=outputs, example=example, **network.options)
    shape = dataset.image_shape if dataset.has_images else _flat(network, dataset)
    return build(network.name, classes=outputs, image_shape=shape, **network.options)


def _flat(network: Network, dataset: Dataset) -> tuple[int, int, int]:
    """The shape of inputs that are no images, for a network that takes them in one row."""
    if not network.name.startswith("fcn-") or dataset.has_tokens:
        raise ValueError(
            f"{network.name} takes images, and {dataset.name} has other inputs, of shape "
            f"{dataset.input_shape}"
        )
    return 1, 1, math.prod(dataset.input_shape)


def load_network(
    network: Network,
    training: Training | None,
    dataset: Dataset,
    loss: LossSetting | None = None,
) -> nn.Module:
    """A network at a stage of its training.

    Args:
        network: The network.
        training: The stage; None, or a stage without steps, for the initial weights.
        dataset: The data set that it is trained on.
        loss: The loss that it minimizes; None for a plain cross-entropy.

    Returns:
        The network, on the CPU, in training mode.

    Raises:
        DataNotFound: The cache has no snapshot of this stage.
        UnreadableFile: The snapshot is broken.
        ValueError: The images are too small for the network, or its inputs are others.
    """
    model = initial_network(network, dataset)
    if training is not None and training.steps:
        path = snapshot_path(network, training, dataset, loss)
        if not path.is_file():
            raise DataNotFound(
                f"{network.name} after {training.steps} {training.unit} on {dataset.name} is not "
                f"at {path}: train it first (`train`), or point LABELLEAK_CACHE at the folder of a "
                "machine that has trained it"
            )
        _read_weights(path, model)
    return model


def snapshot_path(
    network: Network, training: Training, dataset: Dataset, loss: LossSetting | None = None
) -> Path:
    """The path of a stage's snapshot.

    Args:
        network: The network.
        training: The stage.
        dataset: The data set that it is trained on.
        loss: As of `load_network`.

    Returns:
        The file, whether it exists or not. Its name holds a hash of everything that the weights
        depend on; of the data set these are the name, the sizes and the targets.
    """
    labels = hashlib.sha256(dataset.targets.numpy().tobytes()).hexdigest()
    content = [
        _FORMAT,
        network.model_dump(mode="json"),
        training.model_dump(mode="json", exclude={"steps"}),
        [dataset.name, *dataset.input_shape, dataset.outputs, labels],
        *([] if loss is None else [loss.model_dump(mode="json")]),
        *(part.plugin.code for part in (network, loss) if part is not None and part.plugin),
    ]
    run = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]
    title = re.sub(r"[^\w.-]+", "-", network.name)
    name = f"{title}-{dataset.name}-{run}-{training.steps}.safetensors"
    return cache_folder() / "models" / name


def is_trained(
    network: Network,
    training: Training | None,
    dataset: Dataset,
    loss: LossSetting | None = None,
) -> bool:
    """Whether a stage needs no training.

    Args:
        network: The network.
        training: The stage.
        dataset: The data set that it is trained on.
        loss: As of `load_network`.

    Returns:
        True for the initial weights, and where the snapshot exists.
    """
    if training is None or training.steps == 0:
        return True
    return snapshot_path(network, training, dataset, loss).is_file()


def train(
    network: Network,
    stages: Iterable[Training],
    dataset: Dataset,
    loss: LossSetting | None = None,
    *,
    progress: TrainingProgress | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> None:
    """Train a network to the given stages of one run, and keep a snapshot of each.

    SGD minimizes the loss of batches in random order, without augmentation, as in Ma et
    al. (ICLR 2023). The training resumes from the newest snapshot before a missing stage, or from
    the last checkpoint if it was interrupted, with the same result as without interruption. It
    runs on the GPU if there is one. The caller's random state is unchanged.

    Args:
        network: The network.
        stages: The stages to keep; they differ in their steps only.
        dataset: The data set to train on.
        loss: As of `load_network`.
        progress: Called after every iteration.
        checkpoint_seconds: Time between two checkpoints.

    Raises:
        ValueError: The stages are of different runs.
        LabelLeakError: The loss is no longer finite.
        UnreadableFile: A snapshot is broken, or the cache cannot be written to.
    """
    stages = sorted(set(stages), key=lambda stage: stage.steps)
    if len({stage.model_copy(update={"steps": 0}) for stage in stages}) > 1:
        raise ValueError("stages of one run are needed: they may differ in their steps only")
    missing = [stage for stage in stages if not is_trained(network, stage, dataset, loss)]
    if not missing:
        return
    run = _Run(network, missing[0], dataset, loss)
    ends = [stage.steps * run.schedule.per_step for stage in missing]
    with ExitStack() as settings:
        generators = [torch.cuda.current_device()] if run.cuda else []
        settings.enter_context(torch.random.fork_rng(devices=generators))
        if run.parameters < _PARAMETERS_FOR_THREADS:
            settings.enter_context(one_thread())
        for stage, end in zip(missing, ends, strict=True):
            run.skip_towards(stage.steps)
            while run.iteration < end:
                run.step()
                if progress is not None:
                    progress(run.iteration, ends[-1])
                run.checkpoint(checkpoint_seconds)
            run.save(snapshot_path(network, stage, dataset, loss))
    run.partial.unlink(missing_ok=True)


class _Run:
    """A network in training, and its progress."""

    def __init__(
        self, network: Network, training: Training, dataset: Dataset, loss: LossSetting | None
    ) -> None:
        self.schedule = Schedule(training, training_samples(training, dataset))
        self.iteration = 0
        self.cuda = torch.cuda.is_available()
        self._name, self._dataset = network.name, dataset
        self._device = torch.device("cuda" if self.cuda else "cpu")
        # Convolutions on the CPU train a third faster with the channels last.
        self._model = initial_network(network, dataset).to(self._device)
        self._model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = torch.optim.SGD(
            self._model.parameters(),
            lr=training.learning_rate,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            nesterov=training.nesterov,
        )
        self._told, self._loss = Loss() if loss is None else loss.told, torch.zeros(())
        self._order = (-1, torch.empty(0, dtype=torch.int64))
        self._saved = time.monotonic()
        example = snapshot_path(network, training, dataset, loss)
        self._folder, self._prefix = example.parent, example.name[: example.name.rindex("-") + 1]
        self.partial = self._folder / f"{self._prefix}partial.safetensors"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnreadableFile(f"{self._folder}: cannot be made: {error.strerror}") from None

    @property
    def parameters(self) -> int:
        """Number of the network's parameters."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    def step(self) -> None:
        """One iteration."""
        epoch, place = divmod(self.iteration, self.schedule.per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, self.schedule.order(epoch))
        size = self.schedule.batch_size
        inputs, labels = self._dataset.batch(self._order[1][place * size : (place + 1) * size])
        for group in self._optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate(self.iteration)
        # Dropout must draw the same after an interruption.
        number = self.schedule.training.seed
        torch.manual_seed(range_of(number).derive(number, "dropout", self.iteration))
        self._optimizer.zero_grad()
        logits = self._model(inputs.to(self._device))
        loss = self._told.value(logits, labels.to(self._device))
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._loss = loss.detach()
        self.iteration += 1

    def checkpoint(self, seconds: float) -> None:
        """Save the state if the last save is longer ago than this."""
        if time.monotonic() - self._saved > seconds:
            self.save(self.partial)

    def save(self, path: Path) -> None:
        """Write weights, momentum and the iteration, completely or not at all."""
        if not torch.isfinite(self._loss):
            raise LabelLeakError(
                f"training {self._name} diverged: the loss is {float(self._loss)} "
                f"after {self.iteration} iterations; take a lower learning_rate"
            )
        tensors = {_WEIGHT + name: value for name, value in self._model.state_dict().items()}
        for name, parameter in self._model.named_parameters():
            momentum = self._optimizer.state[parameter].get("momentum_buffer")
            if momentum is not None:
                tensors[_MOMENTUM + name] = momentum
        tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            save_file(tensors, unfinished, {"iteration": str(self.iteration)})
            unfinished.replace(path)
        except (OSError, SafetensorError) as error:
            raise UnreadableFile(f"{path}: cannot be written: {error}") from None
        finally:
            unfinished.unlink(missing_ok=True)
        self._saved = time.monotonic()

    def skip_towards(self, steps: int) -> None:
        """Resume from the newest snapshot within so many steps, if there is one."""
        snapshots = {}
        for path in self._folder.glob(f"{glob.escape(self._prefix)}*.safetensors"):
            with _opened(path) as file:
                snapshots[int((file.metadata() or {}).get("iteration", 0))] = path
        end = steps * self.schedule.per_step
        newest = max((iteration for iteration in snapshots if iteration <= end), default=0)
        if newest > self.iteration:
            momentum = _read_weights(snapshots[newest], self._model)
            for name, parameter in self._model.named_parameters():
                if name in momentum:
                    buffer = momentum[name].to(self._device)
                    self._optimizer.state[parameter]["momentum_buffer"] = buffer
            self.iteration = newest


def _read_weights(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """Load the weights of a snapshot into a model, and return the momentum by parameter."""
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights = {
        name.removeprefix(_WEIGHT): value
        for name, value in tensors.items()
        if name.startswith(_WEIGHT)
    }
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        raise UnreadableFile(
            f"{path}: holds another network than its name says: delete it"
        ) from None
    return {
        name.removeprefix(_MOMENTUM): value
        for name, value in tensors.items()
        if name.startswith(_MOMENTUM)
    }


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError):
        raise UnreadableFile(f"{path}: is not a snapshot of a network: delete it") from None

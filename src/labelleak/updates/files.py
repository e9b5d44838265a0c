"""Reading an update from files that a stranger sent: nothing is unpickled, only the head is read.

``.safetensors`` files are memory-mapped and only the head's tensors are touched. So are ``.pt``
files; they go through ``torch.load(weights_only=True)``, which runs no code.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from labelleak.checks import is_plain, kind_of
from labelleak.errors import InvalidObservation, LabelLeakError, MissingKnowledge, UnreadableFile
from labelleak.loss import Loss
from labelleak.observation import Observation
from labelleak.training import LocalTraining
from labelleak.updates._pickled import load_pickled
from labelleak.updates.gradients import observe_head
from labelleak.updates.heads import named_head, parameter_name, strip_wrappers
from labelleak.updates.weights import observe_head_update

Kind = Literal["gradients", "weights"]

_PICKLED = (".pt", ".pth", ".bin", ".ckpt")
_LONGEST_NAME = 500

_Read = Callable[[str], Tensor]


@dataclass(frozen=True)
class TensorFile:
    """The tensors of one file by name: shapes at once, values one at a time when asked for."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    _stored_names: Mapping[str, str]
    _read: _Read

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name, on the CPU.

        Raises:
            UnreadableFile: Its data cannot be read, or it is no plain tensor of floating-point
                numbers.
        """
        with _clear(self.path):
            tensor = self._read(self._stored_names[name])
            if not is_plain(tensor):
                raise UnreadableFile(
                    f"{self.path}: {name!r} is {kind_of(tensor)}: a plain tensor of floating-point "
                    "numbers is needed (16 bits or more)"
                )
            # A tensor may repeat its few numbers without end (stride 0).
            if math.prod(tensor.shape) * tensor.itemsize > self.path.stat().st_size:
                raise UnreadableFile(f"{self.path}: {name!r} claims to be larger than its file")
            return tensor.detach()


def open_tensors(path: Path | str) -> TensorFile:
    """Open a file of named tensors without reading their values.

    Args:
        path: A ``.safetensors`` file, or a ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` file that
            holds a state dict (possibly one level down, under ``"state_dict"`` say).

    Returns:
        Its tensors; a prefix that a wrapper put on every name is taken off.

    Raises:
        UnreadableFile: It does not exist, is damaged, or holds no named tensors, or loading it
            would have to run code.
    """
    path = Path(path)
    with _clear(path):
        if not path.is_file():
            raise UnreadableFile(f"{path}: no such file")
        pickled = path.suffix.lower() in _PICKLED
        shapes, read = _open_pickled(path) if pickled else _open_safetensors(path)
    if not shapes:
        raise UnreadableFile(f"{path}: holds no named tensors")
    if not all(name.isprintable() and len(name) <= _LONGEST_NAME for name in shapes):
        raise UnreadableFile(f"{path}: a tensor's name is too long or not printable")
    bare = strip_wrappers(list(shapes))
    return TensorFile(
        path=path,
        shapes={bare[name]: shape for name, shape in shapes.items()},
        _stored_names={short: name for name, short in bare.items()},
        _read=read,
    )


def read_observation(
    before: Path | str,
    update: Path | str,
    *,
    kind: Kind = "gradients",
    loss: Loss | str = "cross_entropy",
    training: LocalTraining | None = None,
    instances: int | None = None,
    head: str | None = None,
) -> Observation:
    """The observation that two files hold: the model handed out and what came back.

    Args:
        before: File of the model's state dict before the step.
        update: File of the gradients by parameter name, or of the weights after local training.
        kind: Which of the two `update` holds.
        loss: The client's loss, or the name of its kind.
        training: How the client trained; weights need its learning rate and number of steps.
        instances: Number of different samples, see `Observation`.
        head: Name of the final linear layer; None to find it in the model's file.

    Returns:
        The observation of the head alone.

    Raises:
        UnreadableFile: A file is damaged, or the two do not fit.
        AmbiguousHead: The head is not clear.
        MissingKnowledge: Weights, and no learning rate or number of steps.
        InvalidObservation: A value is impossible.
    """
    if kind not in get_args(Kind):
        raise InvalidObservation(f"kind {kind!r}: use one of {', '.join(get_args(Kind))}")
    told = LocalTraining() if training is None else training
    told = told.resolved(instances, one_step=kind == "gradients")
    if kind == "weights" and told.learning_rate is None:
        raise MissingKnowledge(
            "weights need the learning rate of the local steps to become a gradient "
            "(on the command line --learning-rate F)"
        )
    model, sent = open_tensors(before), open_tensors(update)
    layer = named_head(model.shapes, head)
    start, end = _read_layer(model, sent, layer)
    more: dict[str, Any] = {"loss": Loss.of(loss), "instances": instances}
    if kind == "weights":
        return observe_head_update(start, end, layer, told, **more)
    return observe_head(start, end, layer, training=told, **more)


def _read_layer(
    model: TensorFile, sent: TensorFile, layer: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    names = [parameter_name(layer, kind) for kind in ("weight", "bias")]
    names = [name for name in names if name in model.shapes]
    for name in names:
        shape = sent.shapes.get(name)
        if shape is None and name.endswith("weight"):
            raise UnreadableFile(
                f"{sent.path}: has no tensor {name!r}, the head of {model.path.name}; it holds "
                f"{', '.join(list(sent.shapes)[:4])}{', ...' if len(sent.shapes) > 4 else ''}"
            )
        if shape is not None and shape != model.shapes[name]:
            raise UnreadableFile(
                f"{sent.path}: {name!r} is {'x'.join(map(str, shape))}, and "
                f"{'x'.join(map(str, model.shapes[name]))} in {model.path.name}: "
                "they are not of the same model"
            )
    return (
        {name: model.tensor(name) for name in names},
        {name: sent.tensor(name) for name in names if name in sent.shapes},
    )


@contextmanager
def _clear(path: Path) -> Iterator[None]:
    """Turn whatever a reader throws at a damaged file into one line about that file."""
    try:
        yield
    except LabelLeakError:
        raise
    except MemoryError:
        raise UnreadableFile(f"{path}: claims more data than this machine has memory") from None
    except Exception as error:
        reason = "".join(char if char.isprintable() else " " for char in str(error)).strip()
        raise UnreadableFile(
            f"{path}: not readable: {reason[:200] or type(error).__name__}"
        ) from None


def _open_safetensors(path: Path) -> tuple[dict[str, tuple[int, ...]], _Read]:
    from safetensors import safe_open

    file: Any = safe_open(path, framework="pt", device="cpu")
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes, file.get_tensor


def _open_pickled(path: Path) -> tuple[dict[str, tuple[int, ...]], _Read]:
    tensors = load_pickled(path)
    return {name: tuple(value.shape) for name, value in tensors.items()}, tensors.__getitem__

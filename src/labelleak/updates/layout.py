"""Names and axes as torch has them, of tensors that Keras, Flax or a list of arrays hold.

Keras and Flax call a weight matrix ``kernel`` and keep it as (features, classes), with convolutions
alike: inputs and outputs come last. Here they are named and turned as torch has them.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from labelleak.errors import InvalidObservation

Shapes = Mapping[str, Sequence[int]]

# A weight of the first GPTs, which transformers keeps as (features, outputs) beside usual heads.
_CONV1D = re.compile(r"(^|\.)(c_attn|q_attn|c_fc|c_proj)\.(base_layer\.)?weight$")
_IN_ORDER = re.compile(r"arr_\d+$")
# What BatchNorm counts stands in a state dict, and not among the parameters.
_COUNTED = ("running_mean", "running_var", "num_batches_tracked")


class Stored(NamedTuple):
    """Where a tensor is kept: its name there, and whether its axes are those of a kernel."""

    name: str
    is_kernel: bool

    def shape(self, kept: Sequence[int]) -> tuple[int, ...]:
        """The shape in torch's order of axes, of the shape that is kept."""
        return tuple(kept[axis] for axis in self.axes(len(kept)))

    def axes(self, dimensions: int) -> tuple[int, ...]:
        """The order of axes that makes a kernel torch's: outputs, inputs, then the rest."""
        rest = tuple(range(dimensions - 2))
        last = (dimensions - 1, dimensions - 2)
        return (*last, *rest) if self.is_kernel and dimensions > 1 else tuple(range(dimensions))


def as_torch(shapes: Shapes) -> dict[str, Stored]:
    """Where the tensors are kept, by the names that torch would give them.

    Args:
        shapes: Shape of every tensor by the name that is kept.

    Returns:
        For ``dense/kernel:0`` the name ``dense.weight``. Matrices called ``weight`` of which every
        bias shows that they lie as kernels do are turned, too.

    Examples:
        >>> as_torch({"dense/kernel": (64, 10), "dense/bias": (10,)})["dense.weight"]
        Stored(name='dense/kernel', is_kernel=True)
    """
    stored: dict[str, Stored] = {}
    for name in shapes:
        plain = torch_name(name)
        is_kernel = plain != name and _last(name) == "kernel"
        if plain in stored or (plain != name and plain in shapes):
            plain, is_kernel = name, False
        stored[plain] = Stored(name, is_kernel)
    if _is_turned({plain: shapes[kept.name] for plain, kept in stored.items()}):
        stored = {
            plain: Stored(kept.name, _last(plain) == "weight") for plain, kept in stored.items()
        }
    return stored


def torch_name(name: str) -> str:
    """The name that torch would give a tensor: dots for slashes, ``weight`` for ``kernel``."""
    plain = re.sub(r":\d+$", "", name).replace("/", ".").strip(".")
    if _last(name) == "kernel":
        plain = plain.removesuffix("kernel") + "weight"
    return plain or name


def is_in_order(names: Sequence[str]) -> bool:
    """Whether these are the names that NumPy gives arrays without one: arr_0, arr_1."""
    return bool(names) and all(_IN_ORDER.match(name) for name in names)


def names_in_order(shapes: Sequence[Sequence[int]]) -> list[str]:
    """Names for arrays that come in the order of a model's layers, without any.

    Returns:
        ``arr_0.weight`` for an array of two axes or more, and ``arr_0.bias`` for the array in a row
        that follows it and has as many entries as it has outputs.
    """
    names: list[str] = []
    before: tuple[str, Sequence[int]] | None = None
    for number, shape in enumerate(shapes):
        layer = f"arr_{number}"
        if before is not None and len(shape) == 1 and shape[0] in (before[1][0], before[1][-1]):
            names.append(f"{before[0]}.bias")
            before = None
            continue
        names.append(f"{layer}.weight" if len(shape) > 1 else layer)
        before = (layer, shape) if len(shape) > 1 else None
    return names


def matched_in_order(what: str, shapes: Sequence[Sequence[int]], model: Shapes) -> list[str]:
    """The model's names for tensors that come in its order, as Flower sends them.

    Args:
        what: What they are, for messages.
        shapes: Shape of each, in order.
        model: Shape of every tensor of the model by name, in the order of its state dict.

    Returns:
        A name for each: of all tensors, or of all but those that BatchNorm counts.

    Raises:
        InvalidObservation: Their number or a shape is another one.
    """
    trained = [name for name in model if not name.endswith(_COUNTED)]
    choices = [names for names in (list(model), trained) if len(names) == len(shapes)]
    if not choices:
        raise InvalidObservation(
            f"{what}: {len(shapes)} arrays in order for {len(model)} tensors of the model"
            + (f" ({len(trained)} without BatchNorm's statistics)" if trained != [*model] else "")
            + ": send one for each, in the order of the state dict, or name them"
        )
    problem = ""
    for names in choices:
        wrong = (
            (number, name, shape)
            for number, (name, shape) in enumerate(zip(names, shapes, strict=True))
            if tuple(shape) != tuple(model[name])
        )
        number, name, shape = next(wrong, (None, "", ()))
        if number is None:
            return names
        problem = (
            f"{what}: array {number} is {_times(shape)}, and {name!r} of the model is "
            f"{_times(model[name])}: they are not of the same model, or in another order than that "
            "of its state dict (.safetensors sorts by name: name the arrays, or use .pt or .npz)"
        )
    raise InvalidObservation(problem)


def _is_turned(shapes: Shapes) -> bool:
    """Whether the matrices called ``weight`` lie as (features, classes), as their biases show."""
    fits = {True: 0, False: 0}
    for name, shape in shapes.items():
        bias = shapes.get(f"{name.removesuffix('weight')}bias")
        if _last(name) != "weight" or len(shape) != 2 or shape[0] == shape[1] or bias is None:
            continue
        if not _CONV1D.search(name) and len(bias) == 1 and bias[0] in shape:
            fits[bias[0] == shape[1]] += 1
    return fits[True] > 0 and not fits[False]


def _last(name: str) -> str:
    return re.split(r"[./]", re.sub(r":\d+$", "", name))[-1]


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a single number"

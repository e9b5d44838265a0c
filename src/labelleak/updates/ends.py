"""Last layers that no softmax reads: one logit, 1x1 convolutions, tables of embeddings."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from labelleak.loss import Loss

Shapes = Mapping[str, Sequence[int]]

TIED = (
    ": its gradient is the sum of what both do, and says nothing certain about labels; only an "
    "untied head can be read (tie_word_embeddings=False in transformers)"
)
"""Why a head that is a table of embeddings, too, is refused."""
_PIXELS = "say Loss({kind}pixels=HEIGHT * WIDTH) ({more}--pixels N), N = 0 if nobody told it"
# What follows the name of a layer in that of its weight, or of the tensors it is made from.
_MADE_FROM = re.compile(r"(?:\.parametrizations)?\.weight(?:_|\.|$)")
_TABLE = re.compile(r"embed|emb\.|wte|(^|[._])(tok|shared|table|lookup)")


class Accepted(NamedTuple):
    """Which last layers can be read beside a linear one of several classes, by the loss.

    Attributes:
        one_logit: One logit, as the loss has a sigmoid.
        pixels: A 1x1 convolution, as every pixel has a target; of one logit only with a sigmoid.
    """

    one_logit: bool = False
    pixels: bool = False

    @classmethod
    def by(cls, loss: Loss) -> "Accepted":
        """What a loss reads."""
        one_logit = loss.is_multi_label or loss.kind in ("cox", "mse")
        return cls(one_logit=one_logit, pixels=loss.pixels is not None)

    def total(self, counts: Tensor | None) -> int | None:
        """Number of samples by counts of their labels; None where these do not add up to it."""
        add_up = not self.one_logit and not self.pixels
        return int(counts.sum()) if counts is not None and add_up else None

    def takes(self, end: "OtherEnd") -> bool:
        """Whether this layer can be read."""
        return (self.one_logit or end.outputs > 1) and (self.pixels or not end.is_convolution)


LINEAR_ONLY = Accepted()
"""No other last layer can be read."""


@dataclass(frozen=True)
class OtherEnd:
    """A layer that may be the head, and is none that a softmax reads.

    Attributes:
        layer: Its name.
        shape: Shape of its weight: (1, features), or (classes, features, 1, 1).
        is_last: Whether it is the layer that the model has last, as far as the names tell.
        repeated: Whether others of this kind have the same name, digits aside.
    """

    layer: str
    shape: tuple[int, ...]
    is_last: bool
    repeated: bool

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return self.shape[0]

    @property
    def inputs(self) -> int:
        """Number of inputs."""
        return self.shape[1]

    @property
    def is_convolution(self) -> bool:
        """Whether it is a 1x1 convolution, whose samples are pixels."""
        return len(self.shape) > 2

    @property
    def text(self) -> str:
        """What it is, in words."""
        size = "x".join(map(str, self.shape))
        if self.outputs == 1:
            what = f"one logit ({size}), as of a binary classifier with BCEWithLogitsLoss"
            if not self.is_convolution:
                what += ", which loss='bce' reads (--loss bce)"
            else:
                what += ", for every pixel: " + _PIXELS.format(kind="'bce', ", more="--loss bce ")
        else:
            what = f"a {'x'.join(map(str, self.shape[2:]))} convolution ({size})"
            what += ", which can be read where every pixel has a target: "
            what += _PIXELS.format(kind="", more="")
        return f"{self.layer or '(top level)'} is {what}"


def other_ends(shapes: Shapes) -> list[OtherEnd]:
    """Layers of one output, and 1x1 convolutions whose outputs no other convolution takes in."""
    weights = {
        name.rpartition(".")[0]: tuple(shape)
        for name, shape in shapes.items()
        if name.rpartition(".")[2] == "weight" and len(shape) >= 2
    }
    taken = Counter(shape[1] for shape in weights.values() if len(shape) > 2)
    found = {
        layer: shape
        for layer, shape in weights.items()
        if shape[1] > 1
        and "original_module" not in layer
        and (shape[0] == 1 if len(shape) == 2 else set(shape[2:]) == {1})
        and (shape[0] == 1 or taken[shape[0]] - (shape[0] == shape[1]) == 0)
    }
    patterns = {layer: re.sub(r"\d+", "#", layer) for layer in found}
    counts = Counter(patterns.values())
    last = _last_layer(list(weights), in_order=list(shapes) != sorted(shapes))
    return [
        OtherEnd(layer, shape, layer == last, counts[patterns[layer]] > 1)
        for layer, shape in found.items()
    ]


def is_table(name: str) -> bool:
    """Whether a weight is, by its name, a table that a model looks its tokens up in."""
    return name.endswith("weight") and bool(_TABLE.search(name.lower()))


def tables_of_lone_biases(shapes: Shapes) -> list[str]:
    """The matrices that biases belong to which have no weight of their own, as in a tied head."""
    weighted = {_MADE_FROM.split(name)[0] for name in shapes if ".weight" in name}
    matrices = {
        shape[0]: name
        for name, shape in shapes.items()
        if name.endswith("weight") and len(shape) == 2
        if is_table(name) or f"{name.removesuffix('weight')}bias" not in shapes
    }
    found = []
    for name, shape in shapes.items():
        layer, _, kind = name.rpartition(".")
        alone = kind == "final_logits_bias" or (kind == "bias" and layer and layer not in weighted)
        if alone and max(shape, default=0) > 1 and shape[-1] in matrices:
            found.append(matrices[shape[-1]])
    return found


def _last_layer(layers: list[str], *, in_order: bool) -> str | None:
    """The layer that the model has last; None where the names are sorted and do not tell."""
    if layers and (in_order or len(layers) == 1):
        return layers[-1]
    # Layers of a Sequential are numbered.
    parents = {layer.rpartition(".")[0] for layer in layers}
    numbers = {layer: layer.rpartition(".")[2] for layer in layers}
    if len(parents) == 1 and all(number.isdecimal() for number in numbers.values()):
        return max(layers, key=lambda layer: int(numbers[layer]))
    return None

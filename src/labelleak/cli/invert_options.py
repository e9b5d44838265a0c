"""The options of ``labelleak invert`` in groups, and the objects that each group describes."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click

from labelleak.cli.options import PathOption, option
from labelleak.errors import InvalidObservation, LabelLeakError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from labelleak.inversion import LabelMode, Method

_FILE = PathOption("file")
# As many as torch's generators tell apart.
_MOST_SEED = 2**63 - 1


def _parse_shape(ctx: click.Context, param: click.Parameter, text: str) -> tuple[int, int, int]:
    sizes = text.split("x")
    if len(sizes) != 3 or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise click.BadParameter(f"{text!r}: channels x height x width are needed, as in 1x28x28")
    channels, height, width = map(int, sizes)
    if channels not in (1, 3):
        raise click.BadParameter(f"{text!r}: pictures have one channel (gray) or three (color)")
    return channels, height, width


def _parse_numbers(
    ctx: click.Context, param: click.Parameter, text: str | None
) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(word) for word in text.split(","))
    except ValueError:
        raise click.BadParameter(
            f"{text!r}: numbers separated by commas are needed, one for each channel"
        ) from None


@dataclass(frozen=True)
class NetworkOptions:
    """The network that was trained."""

    before: Annotated[
        Path,
        option("--before", type=_FILE, required=True, help="The model handed out: its state dict."),
    ]
    name: Annotated[
        str, option("--model", required=True, help="Its network, such as fcn-3 or resnet18.")
    ]
    activation: Annotated[
        str | None,
        option("--activation", help="Activation of fcn-N and lenet5: relu, swish or leaky_relu."),
    ]
    batchnorm: Annotated[
        bool | None,
        option("--batchnorm", is_flag=True, default=None, help="lenet5 with BatchNorm."),
    ]
    stem: Annotated[
        str | None,
        option("--stem", type=click.Choice(["paper", "imagenet"]), help="Stem of resnetN."),
    ]
    device: Annotated[
        str,
        option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True),
    ]

    @property
    def options(self) -> dict[str, Any]:
        """What varies between networks of one name; None where the default holds."""
        return {"activation": self.activation, "batchnorm": self.batchnorm, "stem": self.stem}

    def build(self, image_shape: tuple[int, int, int]) -> "nn.Module":
        """Build the network with its weights, on its device."""
        import torch

        from labelleak.inversion.files import count_classes, load_weights
        from labelleak.lab.networks import build
        from labelleak.updates import open_tensors

        if self.device == "cuda" and not torch.cuda.is_available():
            raise LabelLeakError("there is no CUDA GPU here: take the device cpu")
        weights = open_tensors(self.before)
        classes = count_classes(weights)
        try:
            model = build(self.name, classes=classes, image_shape=image_shape, **self.options)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        return load_weights(model, weights, self.name).to(self.device)


@dataclass(frozen=True)
class BatchOptions:
    """The client's batch: its gradients, and what is known of it."""

    gradients: Annotated[
        Path,
        option(
            "--gradients", type=_FILE, required=True, help="What the client sent: all gradients."
        ),
    ]
    image_shape: Annotated[
        tuple[int, int, int],
        option(
            "--image-shape",
            metavar="CxHxW",
            callback=_parse_shape,
            required=True,
            help="Channels, height and width of one image, as in 1x28x28.",
        ),
    ]
    size: Annotated[
        int,
        option("--batch-size", type=click.IntRange(min=1), required=True, help="Number of images."),
    ]
    mean: Annotated[
        tuple[float, ...] | None,
        option(
            "--mean",
            metavar="F[,F,F]",
            callback=_parse_numbers,
            help="Mean of each channel that the client subtracts from pixels, 0 to 1. Default: 0",
        ),
    ]
    std: Annotated[
        tuple[float, ...] | None,
        option(
            "--std",
            metavar="F[,F,F]",
            callback=_parse_numbers,
            help="Standard deviation of each channel, by which it then divides. Default: 1",
        ),
    ]
    mode: Annotated[
        "LabelMode",
        option(
            "--labels",
            type=click.Choice(["free", "shared", "restored", "given"]),
            default="restored",
            show_default=True,
            help="What is known of the labels. free: nothing, a soft label is optimized for each "
            "image; shared: nothing, one for all; restored: what --attack finds; given: "
            "--label-file.",
        ),
    ]
    label_file: Annotated[
        Path | None,
        option(
            "--label-file",
            type=_FILE,
            help="The true labels, integers: for --labels given, and to match pictures to --truth.",
        ),
    ]
    truth: Annotated[
        Path | None,
        option(
            "--truth",
            type=_FILE,
            help="Your own batch, to score the pictures: a file with the tensor `images`, pixels "
            "from 0 to 1.",
        ),
    ]

    def labels(self, classes: int) -> "Tensor | None":
        """The true labels, if there is a file of them."""
        from labelleak.audit.labels import read_labels

        if self.label_file is None:
            if self.mode == "given":
                raise click.UsageError("--labels given needs them: --label-file FILE")
            return None
        labels = read_labels(self.label_file, classes)
        if len(labels) != self.size:
            raise InvalidObservation(
                f"{self.label_file}: {len(labels)} labels for {self.size} images"
            )
        return labels

    def images(self) -> "Tensor | None":
        """The true images, if there is a file of them."""
        from labelleak.inversion.files import read_images

        if self.truth is None:
            return None
        return read_images(self.truth, (self.size, *self.image_shape))


@dataclass(frozen=True)
class SearchOptions:
    """How images are sought for."""

    method: Annotated[
        str,
        option(
            "--method",
            type=click.Choice(["ig", "dlg", "analytic"]),
            default="ig",
            show_default=True,
            help="analytic is for networks with a fully connected first layer, and exact for one "
            "image.",
        ),
    ]
    iterations: Annotated[
        int | None,
        option(
            "--iterations",
            type=click.IntRange(min=1),
            help="Steps of ig, rounds of dlg. Default: 4800, 300",
        ),
    ]
    restarts: Annotated[
        int | None,
        option(
            "--restarts",
            type=click.IntRange(min=1),
            help="Number of starts, each from other noise. Default: 1",
        ),
    ]
    learning_rate: Annotated[
        float | None,
        option("--learning-rate", type=float, help="Learning rate of ig. Default: 0.1"),
    ]
    total_variation: Annotated[
        float | None,
        option(
            "--total-variation",
            type=float,
            help="Weight of the total variation, of ig. Default: 0.0001",
        ),
    ]
    seed: Annotated[
        int,
        option(
            "--seed",
            type=click.IntRange(min=0, max=_MOST_SEED),
            default=0,
            show_default=True,
            help="Seed of the noise that the search starts from.",
        ),
    ]
    double: Annotated[bool, option("--double", is_flag=True, help="Compute in double precision.")]

    def make(self) -> "Method":
        """The method with its settings."""
        from labelleak.inversion.reconstruction import make_method

        try:
            return make_method(
                self.method,
                iterations=self.iterations,
                restarts=self.restarts,
                learning_rate=self.learning_rate,
                total_variation=self.total_variation,
            )
        except ValueError as error:
            raise click.UsageError(str(error)) from None

"""``labelleak invert``: the images that one update gives away."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, cast

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from labelleak import inversion
from labelleak._version import __version__
from labelleak.attacks import list_attacks
from labelleak.audit.labels import read_labels
from labelleak.cli.output import console, format_option
from labelleak.errors import InvalidObservation, LabelLeakError, UnreadableFile
from labelleak.inversion import (
    DLG,
    IG,
    Analytic,
    Inversion,
    LabelMode,
    Method,
    Quality,
    grid,
    png,
)
from labelleak.lab.networks import build
from labelleak.observation import Observation
from labelleak.storage import write_json
from labelleak.updates import TensorFile, find_head, observe, open_tensors
from labelleak.updates.heads import parameter_name

SCHEMA = "labelleak/inversion/1"
"""Name and version of ``record.json``."""

_FILE = click.Path(dir_okay=False, path_type=Path)
_INTERRUPTED = 130


def _shape(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, int, int]:
    sizes = text.split("x")
    if len(sizes) != 3 or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise click.BadParameter(f"{text!r}: channels x height x width are needed, as in 1x28x28")
    channels, height, width = map(int, sizes)
    if channels not in (1, 3):
        raise click.BadParameter(f"{text!r}: pictures have one channel (grey) or three (colour)")
    return channels, height, width


def _numbers(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(word) for word in text.split(","))
    except ValueError:
        raise click.BadParameter(
            f"{text!r}: numbers apart by commas are needed, one for each channel"
        ) from None


@click.command()
@click.option("--before", type=_FILE, required=True, help="The model handed out: its state dict.")
@click.option("--gradients", type=_FILE, required=True, help="What the client sent: all gradients.")
@click.option("--model", "network", required=True, help="Its network, such as fcn-3 or resnet18.")
@click.option(
    "--image-shape",
    metavar="CxHxW",
    callback=_shape,
    required=True,
    help="Channels, height and width of one image, as in 1x28x28.",
)
@click.option("--batch-size", type=click.IntRange(min=1), required=True, help="Number of images.")
@click.option("--activation", help="Of fcn-N and lenet5: relu, swish or leaky_relu.")
@click.option("--batchnorm", is_flag=True, default=None, help="Of lenet5: it has BatchNorm.")
@click.option("--stem", type=click.Choice(["paper", "imagenet"]), help="Of resnetN.")
@click.option(
    "--mean",
    metavar="F[,F,F]",
    callback=_numbers,
    help="What the client subtracts from pixels from 0 to 1, for each channel. Default: 0",
)
@click.option(
    "--std",
    metavar="F[,F,F]",
    callback=_numbers,
    help="What it divides them by then. Default: 1",
)
@click.option(
    "--method",
    type=click.Choice(["ig", "dlg", "analytic"]),
    default="ig",
    show_default=True,
    help="analytic: networks whose first layer is fully connected, exact for one image.",
)
@click.option(
    "--labels",
    "mode",
    type=click.Choice(["free", "shared", "restored", "given"]),
    default="restored",
    show_default=True,
    help="free: sought for, one soft label per image; shared: one for all; restored: by --attack; "
    "given: --label-file.",
)
@click.option(
    "--label-file",
    type=_FILE,
    help="The true labels, integers: for --labels given, and to match pictures with --truth.",
)
@click.option(
    "--attack",
    type=click.Choice(["auto", *list_attacks()]),
    metavar="NAME",
    default="auto",
    show_default=True,
    help="What restores the labels, see `labelleak attacks`.",
)
@click.option("--iterations", type=click.IntRange(min=1), help="Default: 4800 (ig), 300 (dlg).")
@click.option("--restarts", type=click.IntRange(min=1), help="Starts from other noise. Default: 1")
@click.option("--learning-rate", type=float, help="Of ig. Default: 0.1")
@click.option("--total-variation", type=float, help="Its weight, of ig. Default: 0.0001")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the noise it starts from.")
@click.option("--double", is_flag=True, help="Compute in double precision.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option(
    "--truth",
    type=_FILE,
    help="Your own batch, to score the pictures: a file with the tensor `images`, pixels from 0 to "
    "1.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for the pictures and the record.",
)
@format_option
def invert(
    before: Path,
    gradients: Path,
    network: str,
    image_shape: tuple[int, int, int],
    batch_size: int,
    activation: str | None,
    batchnorm: bool | None,
    stem: str | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    method: str,
    mode: str,
    label_file: Path | None,
    attack: str,
    iterations: int | None,
    restarts: int | None,
    learning_rate: float | None,
    total_variation: float | None,
    seed: int,
    double: bool,
    device: str,
    truth: Path | None,
    out: Path,
    output_format: str,
) -> None:
    """Show the images that one update gives away.

    The update is the gradient of a whole network for one batch, in evaluation mode. Writes
    images.png (all pictures), one picture for each image, and record.json. Interrupted with Ctrl-C,
    it writes the best so far, with status 130.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise LabelLeakError("there is no CUDA GPU here: take the device cpu")
    options = {"activation": activation, "batchnorm": batchnorm, "stem": stem}
    try:
        chosen = _method(method, iterations, restarts, learning_rate, total_variation)
        model = _build(network, open_tensors(before), image_shape, options).to(device)
    except LabelLeakError:
        raise
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    observation = _observe(model, open_tensors(gradients), batch_size, network)
    labels = None if label_file is None else read_labels(label_file, observation.classes)
    if labels is None and mode == "given":
        raise click.UsageError("--labels given needs them: --label-file FILE")
    if labels is not None and len(labels) != batch_size:
        raise InvalidObservation(f"{label_file}: {len(labels)} labels for {batch_size} images")
    true_images = None if truth is None else _read_truth(truth, (batch_size, *image_shape))
    _check_end(out, image_shape, true_images)
    start = time.perf_counter()
    with _progress() as bar:
        found = inversion.invert(
            observation,
            chosen,
            image_shape=image_shape,
            mean=mean,
            std=std,
            mode=cast(LabelMode, mode),
            labels=labels if mode == "given" else None,
            attack=attack,
            dtype=torch.float64 if double else None,
            seed=seed,
            progress=_teller(bar, chosen),
        )
    seconds = time.perf_counter() - start
    images, order, score = found.images, None, None
    if true_images is not None:
        fixed = labels is not None and found.mode in ("restored", "given")
        order = inversion.match(
            images, true_images, found.labels if fixed else None, labels if fixed else None
        )
        images = images[order.to(images.device)]
        score = inversion.assess(images, true_images)
    content = {
        "schema": SCHEMA,
        "version": __version__,
        "source": {"before": str(before), "gradients": str(gradients)},
        "network": {"name": network, **options},
        "image_shape": image_shape,
        "batch_size": batch_size,
        "mean": mean,
        "std": std,
        "settings": {**asdict(chosen), "seed": seed, "dtype": str(found.images.dtype)[6:]},
        "device": device,
        "result": found.as_dict(),
        # The pictures of a known batch are in its own order.
        "order": None if order is None else order.tolist(),
        "score": None if score is None else score.as_dict(),
        "seconds": seconds,
    }
    _write(out, images, content)
    if output_format == "json":
        click.echo(json.dumps(content, indent=2, allow_nan=False))
    else:
        _print(found, score, seconds, out)
    if found.interrupted:
        sys.exit(_INTERRUPTED)


def _method(
    name: str,
    iterations: int | None,
    restarts: int | None,
    learning_rate: float | None,
    total_variation: float | None,
) -> Method:
    given = {
        "iterations": iterations,
        "restarts": restarts,
        "learning_rate": learning_rate,
        "total_variation": total_variation,
    }
    settings: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    kind: type[Method] = {"ig": IG, "dlg": DLG, "analytic": Analytic}[name]
    known = {field.name for field in fields(kind)}
    for key in settings:
        if key not in known:
            raise ValueError(f"the method {name} has no --{key.replace('_', '-')}")
    return kind(**settings)


def _build(
    name: str, file: TensorFile, image_shape: tuple[int, int, int], options: dict[str, Any]
) -> nn.Module:
    """The network with the weights of a file, in their precision."""
    head = parameter_name(find_head(file.shapes), "weight")
    model = build(name, classes=file.shapes[head][0], image_shape=image_shape, **options)
    # Counters of BatchNorm are no floating-point numbers, and have no part in evaluation mode.
    wanted = {key: value for key, value in model.state_dict().items() if value.is_floating_point()}
    tensors = _read(file, wanted, name)
    if tensors[head].dtype == torch.float64:
        model = model.double()
    model.load_state_dict(tensors, strict=False)
    return model.eval()


def _observe(model: nn.Module, file: TensorFile, batch_size: int, network: str) -> Observation:
    parameters = dict(model.named_parameters())
    unknown = [key for key in file.shapes if key not in parameters]
    if unknown:
        raise UnreadableFile(
            f"{file.path}: holds {unknown[0]!r}, and the network has no such parameter: name the "
            "network that was trained (--model)"
        )
    device = next(model.parameters()).device
    sent = {key: value.to(device) for key, value in _read(file, parameters, network).items()}
    return observe(model, sent, batch_size=batch_size)


def _read(file: TensorFile, wanted: Mapping[str, Tensor], network: str) -> dict[str, Tensor]:
    """The tensors that a network needs, once all are known to be there and of the right shape."""
    for key, value in wanted.items():
        shape, needed = file.shapes.get(key), tuple(value.shape)
        if shape != needed:
            found = "is not there" if shape is None else f"is {_sizes(shape)}"
            raise UnreadableFile(
                f"{file.path}: is not of {network}: {key!r} {found}, and {_sizes(needed)} is "
                "needed (another --model, --image-shape or option?)"
            )
    return {key: file.tensor(key) for key in wanted}


def _read_truth(path: Path, shape: tuple[int, ...]) -> Tensor:
    file = open_tensors(path)
    if file.shapes.get("images") != shape:
        raise UnreadableFile(
            f"{path}: a tensor 'images' of {_sizes(shape)} is needed, it holds "
            + ", ".join(f"{name!r} of {_sizes(sizes)}" for name, sizes in file.shapes.items())[:200]
        )
    images = file.tensor("images").float()
    if not bool(((images >= 0) & (images <= 1)).all()):
        raise UnreadableFile(f"{path}: 'images' are not pixels from 0 to 1")
    return images


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"


def _progress() -> Progress:
    target = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3g}"),
        TimeRemainingColumn(),
        console=target,
        transient=True,
        disable=not target.is_terminal,
    )


def _teller(bar: Progress, method: Method) -> Callable[[int, int, float], None]:
    length, starts = getattr(method, "iterations", 0), getattr(method, "restarts", 0)
    task = bar.add_task("Inverting", total=length * starts, loss=float("nan"))

    def tell(restart: int, iteration: int, distance: float) -> None:
        bar.update(task, completed=(restart - 1) * length + iteration, loss=distance)

    return tell


def _check_end(folder: Path, shape: tuple[int, int, int], truth: Tensor | None) -> None:
    """What comes after the search, as far as it can be tried before: a search may take hours."""
    png(torch.zeros(shape))
    if truth is not None:
        inversion.assess(truth[:1], truth[:1])
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not parent.is_dir():
        raise UnreadableFile(f"{folder}: cannot be written: {parent} is no folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UnreadableFile(f"{folder}: cannot be written: no permission for {parent}")


def _write(folder: Path, images: Tensor, content: dict[str, Any]) -> None:
    pictures = {f"image-{place:03}.png": png(image) for place, image in enumerate(images)}
    pictures["images.png"] = png(grid(images))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, picture in pictures.items():
            (folder / name).write_bytes(picture)
    except OSError as error:
        raise UnreadableFile(f"{folder}: cannot be written: {error.strerror}") from None
    write_json(folder / "record.json", content)


def _print(found: Inversion, score: Quality | None, seconds: float, out: Path) -> None:
    target = console()
    words = [f"Method {found.method}"]
    if found.mode is not None:
        by = "" if found.restoration is None else f" by {found.restoration.attack}"
        words.append(f"labels {found.mode}{by}")
    if found.distance is not None:
        words.append(f"distance {found.distance:.3g} after {found.iterations} iterations")
    words.append(f"{seconds:.1f} s" + (", interrupted: the best so far" * found.interrupted))
    target.print("; ".join(words), highlight=False)
    for flag in () if found.restoration is None else found.restoration.flags:
        target.print(f"flag {flag.name.lower()}: {flag.text}")
    if score is not None:
        ssim, lpips = (
            "not available" if mean is None else f"{mean:.3f}"
            for mean in (score.mean("ssim"), score.mean("lpips"))
        )
        target.print(
            f"Mean PSNR {score.mean('psnr'):.2f} dB, SSIM {ssim}, LPIPS {lpips}", highlight=False
        )
    target.print(f"Pictures: {out / 'images.png'}", highlight=False, soft_wrap=True)

"""``labelleak invert``: the images that one update gives away."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.progress import Progress, TextColumn

from labelleak.cli.console import console, line_teller, progress_bar
from labelleak.cli.invert_options import BatchOptions, NetworkOptions, SearchOptions
from labelleak.cli.options import PathOption, attack_option, format_option, gathered
from labelleak.cli.status import ExitStatus
from labelleak.cli.tables import print_inversion
from labelleak.storage import write_whole

if TYPE_CHECKING:
    from torch import Tensor

    from labelleak.inversion import Method
    from labelleak.inversion.running import InversionRun


@click.command("invert")
@gathered(NetworkOptions, "network")
@gathered(BatchOptions, "batch")
@attack_option("The attack that restores the labels; `labelleak attacks` lists them.")
@gathered(SearchOptions, "search")
@click.option(
    "--out",
    type=PathOption("folder"),
    required=True,
    help="Folder for the pictures and the record.",
)
@format_option
def invert_command(
    network: NetworkOptions,
    batch: BatchOptions,
    attack: str,
    search: SearchOptions,
    out: Path,
    output_format: str,
) -> int:
    """Show the images that one update gives away.

    The update is the gradient of a whole network for one batch, in evaluation mode. Writes
    images.png (all pictures), one picture for each image, record.json, and report.html, which shows
    them enlarged beside the true ones (--truth). After an interruption (Ctrl-C) these hold the best
    so far, and the exit status is 130.
    """
    import torch

    import labelleak.report.inversion  # noqa: F401  (its extra is missed before a long search)
    from labelleak.inversion import running
    from labelleak.inversion.files import observe_file
    from labelleak.updates import open_tensors

    settings = running.InversionSettings(
        method=search.make(),
        image_shape=batch.image_shape,
        mean=batch.mean,
        std=batch.std,
        mode=batch.mode,
        attack=attack,
        dtype=torch.float64 if search.double else None,
        seed=search.seed,
    )
    model = network.build(batch.image_shape)
    seen = observe_file(model, open_tensors(batch.gradients), batch.size, network.name)
    labels, truth = batch.labels(seen.classes), batch.images()
    running.check_run(out, batch.image_shape, truth)
    with progress_bar(TextColumn("loss {task.fields[loss]:.3g}")) as bar:
        run = running.run_inversion(
            seen, settings, labels=labels, truth=truth, progress=_teller(bar, settings.method)
        )
    record = run.as_dict(
        source={"before": str(network.before), "gradients": str(batch.gradients)},
        network={"name": network.name, **network.options},
        device=network.device,
    )
    picture = running.write_run(out, run.images, record)
    page = _write_page(out / "report.html", run, record, truth)
    if output_format == "json":
        click.echo(json.dumps(record, indent=2, allow_nan=False))
    else:
        target = console()
        scores = ("psnr", "ssim", "lpips")
        means = None if run.quality is None else {name: run.quality.mean(name) for name in scores}
        print_inversion(record, means, target)
        target.print(f"Pictures: {picture}", soft_wrap=True)
        target.print(f"Page: {page}", soft_wrap=True)
    return ExitStatus.INTERRUPTED if run.found.interrupted else 0


def _write_page(
    page: Path, run: "InversionRun", record: dict[str, Any], truth: "Tensor | None"
) -> Path:
    """Write the page of the pictures; with the true ones beside them, for the owner alone."""
    from labelleak.inversion.pictures import png
    from labelleak.report.inversion import inversion_page
    from labelleak.restoration import Flag

    true = flat = None
    if truth is not None:
        true = [png(image) for image in truth]
        centered = truth - truth.mean((2, 3), keepdim=True)
        flat = float(centered.square().mean((1, 2, 3)).sqrt().mean())
    text = inversion_page(
        record,
        [png(image) for image in run.images],
        true,
        flat=flat,
        flags={name: Flag[name.upper()].text for name in record["result"]["flags"]},
    )
    write_whole(page, text, private=True)
    return page


def _teller(bar: Progress, method: "Method") -> Callable[[int, int, float], None]:
    """A function that shows progress, called with the restart, the iteration and the distance."""
    length, starts = getattr(method, "iterations", 0), getattr(method, "restarts", 0)
    total = length * starts
    task = bar.add_task("Inverting", total=total, loss=float("nan"))
    tell_line = line_teller(bar)

    def tell(restart: int, iteration: int, distance: float) -> None:
        done = (restart - 1) * length + iteration
        bar.update(task, completed=done, loss=distance)
        tell_line(f"inverting: {done} of {total}, loss {distance:.3g}", always=done == total)

    return tell

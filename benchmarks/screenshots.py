"""Make the pictures of the pages in the documentation again, in docs/images.

    python benchmarks/screenshots.py [leaderboard phone figures inversion demo advice rounds]

Needs Chromium on the path (chromium, chromium-browser or google-chrome) and the extras cli, report
and images. No part of the continuous integration. The pages of `leaderboard`, `phone` and `figures`
are those of the recorded results; the others are made on the embedded digits, `inversion` in some
minutes.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from labelleak.lab.datasets import load
from labelleak.lab.networks import build

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
MOST_BYTES = 100_000
COLORS = 256


class Picture(NamedTuple):
    """A part of a page: what makes the page, the element at the top, and the size in pixels."""

    page: Callable[[Path], Path]
    anchor: str
    width: int
    height: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PICTURES))
    names = parser.parse_args().names or list(PICTURES)
    if unknown := set(names) - set(PICTURES):
        parser.error(f"no such picture: {', '.join(unknown)}")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"needs a browser on the path, one of {', '.join(BROWSERS)}")
    with TemporaryDirectory() as folder:
        for name in names:
            wanted = PICTURES[name]
            page = wanted.page(Path(folder))
            target = IMAGES / f"{name}.png"
            photograph(browser, page, wanted, target, Path(folder))
            print(f"{target.relative_to(ROOT)}: {target.stat().st_size} bytes")


BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def photograph(browser: str, page: Path, wanted: Picture, target: Path, scratch: Path) -> None:
    # A window has a least width; a frame has none.
    size = f"width:{wanted.width}px;height:{wanted.height}px"
    frame = scratch / "frame.html"
    frame.write_text(
        f'<body style="margin:0"><iframe style="border:0;{size}" '
        f'src="{page.as_uri()}{wanted.anchor}"></iframe>',
        encoding="utf-8",
    )
    raw = scratch / "raw.png"
    subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--user-data-dir={scratch / 'profile'}", f"--screenshot={raw}",
            f"--window-size={max(wanted.width, 600)},{wanted.height}",
            "--virtual-time-budget=5000", frame.as_uri(),
        ],
        check=True, stderr=subprocess.DEVNULL, timeout=300,
    )  # fmt: skip
    with Image.open(raw) as picture:
        shown = picture.convert("RGB").crop((0, 0, wanted.width, wanted.height))
    shown.quantize(COLORS, dither=Image.Dither.NONE).save(target, optimize=True)
    if target.stat().st_size > MOST_BYTES:
        raise SystemExit(f"{target}: more than {MOST_BYTES} bytes: show less")


def labelleak(folder: Path, *words: str) -> None:
    run(folder, "-m", "labelleak", *words)


def run(folder: Path, *words: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        check=False,
        stdout=subprocess.DEVNULL,
    )
    # A verdict is no error: 1 is over the limit, 3 inconclusive.
    if done.returncode not in (0, 1, 3):
        raise SystemExit(f"failed: {' '.join(words)}")


def recorded(name: str) -> Callable[[Path], Path]:
    """The page of recorded results."""

    def page(scratch: Path) -> Path:
        folder = scratch / name
        shutil.copytree(ROOT / "results" / name, folder, dirs_exist_ok=True)
        labelleak(scratch, "report", name)
        return folder / "report.html"

    return page


def demo(scratch: Path) -> Path:
    if not (scratch / "labelleak-demo").exists():
        labelleak(scratch, "demo")
    return scratch / "labelleak-demo" / "report.html"


def advice(scratch: Path) -> Path:
    """The page of the advice that the quick start asks for."""
    files = demo(scratch).parent
    given = ("--before", f"{files}/model.safetensors", "--update", f"{files}/weights.safetensors")
    client = ("--model", "labelleak.lab.demo:network", "--data", f"{files}/data.safetensors")
    labels = ("--labels", f"{files}/labels.txt", "--output", "advice.json")
    labelleak(scratch, "advise", *given, "--learning-rate", "0.1", *client, *labels)
    labelleak(scratch, "report", "advice.json")
    return scratch / "advice.html"


def rounds(scratch: Path) -> Path:
    run(scratch, str(ROOT / "examples" / "audit_a_federation.py"))
    return scratch / "federation.html"


def inversion(scratch: Path) -> Path:
    """Six digits from the gradient of one batch, with labels restored from it."""
    digits = load("mnist-sample")
    indices = torch.tensor([4, 9, 30, 51, 77, 80])
    inputs, labels = digits.batch(indices)
    model = build("fcn-3", classes=10, image_shape=(1, 28, 28), seed=1).eval()
    torch.autograd.backward(nn.functional.cross_entropy(model(inputs), labels))
    gradients = {name: value.grad for name, value in model.named_parameters()}
    save_file(model.state_dict(), scratch / "model.safetensors")
    save_file({n: g for n, g in gradients.items() if g is not None}, scratch / "g.safetensors")
    images = inputs * 0.3081 + 0.1307
    save_file({"images": images}, scratch / "images.safetensors")
    labelleak(
        scratch, "invert", "--before", "model.safetensors", "--gradients", "g.safetensors",
        "--model", "fcn-3", "--image-shape", "1x28x28", "--mean", "0.1307", "--std", "0.3081",
        "--batch-size", "6", "--truth", "images.safetensors", "--iterations", "150",
        "--out", "pictures",
    )  # fmt: skip
    return scratch / "pictures" / "report.html"


PICTURES = {
    "leaderboard": Picture(recorded("leaderboard"), "", 1280, 1000),
    "phone": Picture(recorded("leaderboard"), "#map", 390, 760),
    "figures": Picture(recorded("quick"), "#study-6", 1020, 760),
    "inversion": Picture(inversion, "", 960, 640),
    "demo": Picture(demo, "", 960, 1000),
    "advice": Picture(advice, "", 960, 1010),
    "rounds": Picture(rounds, "", 1250, 1750),
}


if __name__ == "__main__":
    main()

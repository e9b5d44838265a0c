"""Every path that names a device, on that device and on the CPU: do they give the same?

    python benchmarks/devices.py --device cuda --output results/benchmark-devices.json
    python benchmarks/devices.py --device cpu

Needs no data, and takes minutes: ten at most. Both sides start from the same numbers, drawn on the
CPU, mostly in double precision. Counts, sets and flags have to be equal, real numbers to agree
within what another order of sums can change, and results to be on the device that was asked for.
`--device cpu` shows that the script works, and nothing of another device. A path that differs or
fails is in the table and the record with the reason, and the script ends with status 1.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import labelleak
from labelleak import defenses
from labelleak.attacks.registry import Need
from labelleak.audit.ceiling import moment_ceiling
from labelleak.federated import train_locally
from labelleak.inversion import DLG, IG, Analytic, LabelMode, invert
from labelleak.lab import Batch, Experiment, Local, Network, Training, run_all
from labelleak.lab.networks import build
from measuring import Row, load, write

CLASSES, SIDE, FEATURES, RATE = 12, 4, 30, 0.1
LABELS = (1, 1, 4, 6, 6)
# Real numbers agree to this share of the largest: a search of many steps in double precision, and
# whatever is computed in single precision.
DOUBLE, SINGLE = 1e-6, 0.05
# More would take longer and exercise nothing else.
FEWER = {"virtual": {"trainings": 24}, "synthetic": {"trainings": 24}}

Results = Mapping[str, Any]
"""What a path gives, by name: tensors on the device, and plain values."""
Route = Callable[[str], Results]
"""A path, called with the name of a device."""


def inputs(samples: int, seed: int) -> Tensor:
    """Images that differ little, double precision, on the CPU."""
    common = torch.rand(1, SIDE, SIDE, generator=torch.Generator().manual_seed(10)).double()
    own = torch.rand(samples, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)).double()
    return 0.7 * common + 0.3 * own


def network(device: str) -> nn.Module:
    """Two layers in double precision, whose predictions are nearly even."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = OrderedDict(flat=nn.Flatten(), body=nn.Linear(SIDE * SIDE, FEATURES))
        model = nn.Sequential(layers | {"relu": nn.ReLU(), "fc": nn.Linear(FEATURES, CLASSES)})
    model = model.double().eval()
    with torch.no_grad():
        for value in model.get_submodule("fc").parameters():
            value.mul_(0.3)
    return model.to(device)


def auxiliary(device: str) -> labelleak.Auxiliary:
    """The server's own samples, three of each class."""
    known = torch.arange(CLASSES).repeat(3)
    return labelleak.Auxiliary(inputs(len(known), 2).to(device), known.to(device))


def observed(device: str, labels: tuple[int, ...] = LABELS) -> labelleak.Observation:
    """One step, seen by a server that knows everything but the labels."""
    model, truth = network(device), torch.tensor(labels, device=device)
    loss = nn.functional.cross_entropy(model(inputs(len(labels), 4).to(device)), truth)
    gradients = dict(
        zip(
            dict(model.named_parameters()),
            torch.autograd.grad(loss, list(model.parameters())),
            strict=True,
        )
    )
    seen = labelleak.observe(
        model,
        gradients,
        training=labelleak.LocalTraining(learning_rate=RATE, batch_size=len(labels), steps=1),
        input_shape=(1, SIDE, SIDE),
        auxiliary=auxiliary(device),
    )
    after = {
        name: value.detach() - RATE * gradients[name] for name, value in model.state_dict().items()
    }
    return replace(seen, after=after)


def plain(found: labelleak.Restoration) -> Results:
    """A restoration's fields."""
    return {field.name: getattr(found, field.name) for field in fields(found)}


def attack(name: str, device: str) -> Results:
    """One attack on one step."""
    alone = name != "auto" and Need.ONE_SAMPLE in labelleak.list_attacks()[name].needs
    seen = observed(device, LABELS[:1] if alone else LABELS)
    if name == "auto":
        # With it, `auto` is `likelihood`, which has a row of its own.
        seen = replace(seen, auxiliary=None)
    return plain(labelleak.restore(seen, name, time_limit=60.0, **FEWER.get(name, {})))


def captured(kind: str, device: str) -> Results:
    """The gradient of the head by a forward pass, and what `auto` restores of it."""
    labels = torch.tensor(LABELS, device=device)
    if kind == "bce":
        labels = nn.functional.one_hot(labels, CLASSES)
    images = inputs(len(LABELS), 4).to(device)
    seen = labelleak.capture(network(device), images, labels, loss=kind)
    found = labelleak.restore(seen, time_limit=60.0)
    return {"weight": seen.gradient.weight, "bias": seen.gradient.bias, "counts": found.counts}


def local(optimizer: Literal["sgd", "adam", "adamw"], name: str | None, device: str) -> Results:
    """Two epochs of local training, and an attack on what it sends."""
    known = torch.arange(CLASSES).repeat_interleave(2)[: 4 * len(LABELS)]
    recipe = labelleak.LocalTraining(
        optimizer, learning_rate=0.01, batch_size=len(LABELS), epochs=2
    )
    model, images = network(device), inputs(len(known), 4).to(device)
    update = train_locally(model, images, known.to(device), recipe, classes=CLASSES)
    if name is None:
        return update.after
    seen = update.observe(model, input_shape=(1, SIDE, SIDE), auxiliary=auxiliary(device))
    return plain(labelleak.restore(seen, name, time_limit=60.0, **FEWER.get(name, {})))


def defended(name: str, device: str) -> Results:
    """What a defense makes of the gradients; noise is drawn on the CPU."""
    gradients = observed(device).gradients or {}
    noise = torch.Generator().manual_seed(5)
    if name == "soteria":
        mask = defenses.soteria_mask(network(device), inputs(5, 4).to(device), 40.0, "fc")
        return {"mask": mask, **defenses.soteria(gradients, mask, "fc.weight")}
    changed: dict[str, Callable[[], Results]] = {
        "gaussian_noise": lambda: defenses.gaussian_noise(gradients, 1e-3, generator=noise),
        "clip_norm": lambda: defenses.clip_norm(gradients, 0.1),
        "sparsify": lambda: defenses.sparsify(gradients, 40.0),
        "sign": lambda: defenses.sign(gradients),
        "quantize": lambda: defenses.quantize(gradients, 4, generator=noise),
    }
    return changed[name]()


def ceiling(device: str) -> Results:
    """The best accuracy that the moments of the classes allow."""
    known = torch.arange(CLASSES).repeat(60)
    counts = torch.bincount(torch.tensor(LABELS), minlength=CLASSES)
    images = inputs(len(known), 6).to(device)
    found = moment_ceiling(observed(device), counts, images, known.to(device))
    return {"accuracy": found.accuracy, "entries": found.entries}


def inverted(name: str, device: str) -> Results:
    """Images from gradients."""
    methods: dict[str, IG | DLG | Analytic] = {"ig": IG(20), "dlg": DLG(3), "analytic": Analytic()}
    mode: LabelMode = "free" if name == "dlg" else "restored"
    seen = observed(device, LABELS[:2])
    found = invert(seen, methods[name], image_shape=(1, SIDE, SIDE), mode=mode)
    return {"images": found.images, "labels": found.labels}


def inverted_files(device: str) -> Results:
    """The command that inverts files, on its ``--device``."""
    model = build("fcn-2", classes=10, image_shape=(1, 8, 8), seed=1)
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    loss = nn.functional.cross_entropy(model(images), torch.tensor([3, 7]))
    names, values = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, values)
    with tempfile.TemporaryDirectory() as folder:
        before, sent = Path(folder, "before.safetensors"), Path(folder, "sent.safetensors")
        save_file(model.state_dict(), before)
        save_file(dict(zip(names, gradients, strict=True)), sent)
        words = f"invert --before {before} --model fcn-2 --gradients {sent} --image-shape 1x8x8"
        words += f" --batch-size 2 --double --iterations 20 --device {device} --format json"
        done = subprocess.run(
            [sys.executable, "-m", "labelleak", *words.split(), "--out", f"{folder}/out"],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    record = json.loads(done.stdout)
    return {name: record[name] for name in ("device", "labels", "distance") if name in record}


@contextmanager
def own_cache(folder: str) -> Iterator[None]:
    """A cache of trained networks that is this path's alone."""
    kept = os.environ.get("LABELLEAK_CACHE")
    os.environ["LABELLEAK_CACHE"] = folder
    try:
        yield
    finally:
        if kept is None:
            del os.environ["LABELLEAK_CACHE"]
        else:
            os.environ["LABELLEAK_CACHE"] = kept


def trials(options: Mapping[str, Any], device: str) -> Results:
    """Scores of an experiment on the embedded digits."""
    experiment = Experiment(
        name="digits",
        data="mnist-sample",
        network=Network(name="lenet5"),
        batch=Batch(size=16),
        attacks=("ilrg", "idlg"),
        range="all",
        trials=2,
        **options,
    )
    with tempfile.TemporaryDirectory() as folder, own_cache(folder):
        results = run_all([experiment], f"{folder}/run", device=device)
        if results.failed:
            raise RuntimeError("; ".join(results.failed.values()))
        return {
            f"{record['trial']} {name}": outcome["counts"]["leacc"]
            for record in results.records
            for name, outcome in record["attacks"].items()
        }


def paths() -> dict[str, tuple[Route, float]]:
    """Every path by its name, and how closely real numbers have to agree."""
    exact: dict[str, Route] = {
        **{f"attack {name}": partial(attack, name) for name in (*labelleak.list_attacks(), "auto")},
        **{
            f"capture {kind}": partial(captured, kind) for kind in ("cross_entropy", "focal", "bce")
        },
        **{f"local training, {one}": partial(local, one, None) for one in ("sgd", "adam", "adamw")},
        **{
            f"local steps, {one}": partial(local, "sgd", one)
            for one in ("rlu", "likelihood", "virtual", "synthetic")
        },
        **{
            f"defense {name}": partial(defended, name)
            for name in ("gaussian_noise", "clip_norm", "sparsify", "sign", "quantize", "soteria")
        },
        "ceiling": ceiling,
        **{f"inversion {name}": partial(inverted, name) for name in ("ig", "dlg", "analytic")},
    }
    steps = {"training": Training(unit="iterations", steps=20, total=20, samples_per_class=5)}
    settings: dict[str, dict[str, Any]] = {
        "untrained": {"measures": ("cossim", "approximations")},
        "trained for 20 iterations": steps,
        "local steps": {"local": Local(steps=3, learning_rate=0.05)},
    }
    loose: dict[str, Route] = {
        "command invert": inverted_files,
        **{f"trials, {name}": partial(trials, options) for name, options in settings.items()},
    }
    return {name: (path, DOUBLE) for name, path in exact.items()} | {
        name: (path, SINGLE) for name, path in loose.items()
    }


def differences(here: Results, there: Results, device: str, share: float) -> list[str]:
    """What differs between the CPU's results and those of a device, one text each."""
    found = [f"{name}: on one side only" for name in here.keys() ^ there.keys()]
    for name in here.keys() & there.keys():
        one, other = here[name], there[name]
        if name == "device":
            continue
        if isinstance(other, Tensor):
            if other.device.type != device:
                found.append(f"{name}: is on {other.device}")
            other = other.cpu()
        if not agree(one, other, share):
            found.append(f"{name}: differs")
    return sorted(found)


def agree(one: Any, other: Any, share: float) -> bool:
    """Whether two values are equal, or real numbers within a share of the largest."""
    if isinstance(one, float) and isinstance(other, float):
        one, other = torch.tensor(one), torch.tensor(other)
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return bool(one == other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    largest = float(one.abs().max()) if one.numel() else 0.0
    return torch.allclose(one, other, rtol=0.0, atol=share * largest, equal_nan=True)


def compared(path: Route, device: str, share: float) -> Row:
    """Both sides of a path: their seconds, and what differs."""
    seconds: dict[str, float] = {}
    sides: list[Results] = []
    for side, where in (("cpu", "cpu"), ("device", device)):
        start = time.perf_counter()
        try:
            sides.append(path(where))
        except Exception as error:
            # Whatever goes wrong on a device is what this looks for.
            text = str(error).splitlines()[0] if str(error) else ""
            return {"seconds": seconds, "differs": [f"{where}: {type(error).__name__}: {text}"]}
        seconds[side] = time.perf_counter() - start
    return {"seconds": seconds, "differs": differences(sides[0], sides[1], device, share)}


def main() -> None:
    """Run every path, print a table, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument(
        "--only", nargs="+", metavar="TEXT", help="paths whose names hold one of these"
    )
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no CUDA GPU here: take --device cpu")
    before, rows = load(), []
    for name, (path, share) in paths().items():
        if given.only and not any(text in name for text in given.only):
            continue
        row = {"path": name, **compared(path, given.device, share)}
        rows.append(row)
        took = ", ".join(f"{side} {value:.2f} s" for side, value in row["seconds"].items())
        print(f"{name:<34}{'; '.join(row['differs']) or 'the same':<40} {took}", flush=True)
    differing = [row for row in rows if row["differs"]]
    gpu = torch.cuda.get_device_name() if given.device == "cuda" else None
    write(
        given.output,
        __doc__,
        before,
        torch.get_num_threads(),
        device=given.device,
        gpu=gpu,
        rows=rows,
    )
    print(f"{len(rows) - len(differing)} of {len(rows)} paths give the same on {given.device}.")
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()

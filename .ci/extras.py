"""Each extra alone, at the oldest and at the newest versions that the package accepts.

    python .ci/extras.py [--python python3.12] [--extras cli report] [--ends oldest newest]
        [--output results/extras.json] [--keep torch]

The package's wheel is installed once for each end of the ranges in `pyproject.toml`, and every
extra into an environment of its own on top of that, so that none finds what another has brought. A
few lines then use what the extra is for. The oldest versions are the lower bounds themselves, but
of those named by `--keep`; the newest, and those kept, are those of `constraints.txt`. What these
packages need in turn is the newest that they accept. Results are added to those of other
interpreters and extras in the file.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
CAPTURE = """
import torch, labelleak
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 10))
inputs, labels = torch.rand(8, 1, 6, 6), torch.tensor([0, 0, 1, 3, 3, 3, 8, 9])
true_counts = torch.bincount(labels, minlength=10)
seen = labelleak.capture(model, inputs, labels)
assert torch.equal(labelleak.restore(seen).counts, true_counts)
"""
GRID = """
from labelleak import lab
def run(**options):
    one = lab.Experiment(name="a", data="mnist-sample", network={"name": "fcn-2"}, trials=2,
                         batch={"size": 8}, attacks=["ilrg"])
    assert len(lab.run_all([one], "run", **options).summary()["rows"]) == 1
if __name__ == "__main__":
"""
USES = {
    "none": CAPTURE,
    "cli": """
from labelleak.cli.entry import run
assert run(["attacks"]) == 0 and run(["audit", "--help"]) == 0
""",
    "report": f"""{CAPTURE}
from labelleak.audit import audit_observation
from labelleak.report.audit import audit_page
assert "<svg" in audit_page(audit_observation(seen, true_counts=true_counts).as_dict(), [])
""",
    "data": """
import pathlib, datasets
from PIL import Image
from labelleak.lab import datasets as own
for split in ("train", "val"):
    for name in ("a", "b"):
        folder = pathlib.Path("digits", split, name)
        folder.mkdir(parents=True)
        Image.new("L", (8, 8), 3).save(folder / "1.png")
assert len(own.load("folder:digits", data_dir=".")) == 2
for name, column in ("input_ids", [1, 2, 3]), ("image", Image.new("L", (8, 8), 3)):
    rows = datasets.Dataset.from_dict({name: [column] * 4, "label": [0, 1, 0, 1]})
    datasets.DatasetDict({"train": rows}).save_to_disk(name)
    assert len(own.load(f"hf:{name}", data_dir=".")) == 4
""",
    "experiments": f"{GRID}    run(workers=2)",
    "dask": f"""{GRID}    from distributed import LocalCluster
    with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
        run(dask=cluster.scheduler_address)
""",
    "flower": """
from flwr.client import ClientApp
from labelleak.federated.flower import LeakageAudit
ClientApp(mods=[LeakageAudit()])
""",
    "images": """
import torch
from labelleak.inversion import assess
truth = torch.full((1, 1, 16, 16), 0.5)
found = assess(truth + 0.1, truth)
assert round(found.psnr[0], 3) == 20.0 and found.ssim is not None
""",
    "nvflare": """
from labelleak.federated.nvflare import LeakageAudit
LeakageAudit()
""",
    "opacus": """
import torch, opacus
from torch.utils.data import DataLoader, TensorDataset
from labelleak.federated.opacus import LeakageAudit
data = TensorDataset(torch.rand(32, 4), torch.arange(32) % 3)
model = torch.nn.Linear(4, 3)
model, optimizer, loader = opacus.PrivacyEngine().make_private(
    module=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
    data_loader=DataLoader(data, batch_size=8), noise_multiplier=1.0, max_grad_norm=1.0)
audit = LeakageAudit(optimizer, model)
inputs, labels = data[:8]
torch.nn.functional.cross_entropy(model(inputs), labels).backward()
optimizer.step()
assert audit.decision is not None
""",
}
"""What each extra is for, in a few lines."""

NEEDS = {"dask": ("dask", "experiments")}
"""Extras that are of no use alone."""


def main() -> None:
    """Try the extras, and write down what came of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--extras", nargs="*", default=list(USES), choices=list(USES))
    parser.add_argument("--ends", nargs="*", default=["oldest", "newest"])
    parser.add_argument("--keep", nargs="*", default=[], help="packages without old versions here")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    found = {}
    if given.output is not None and given.output.exists():
        rows = json.loads(given.output.read_text(encoding="utf-8"))["tried"]
        found = {(row["python"], row["end"], row["extra"]): row for row in rows}
    for end in given.ends:
        with tempfile.TemporaryDirectory() as name:
            for row in tried(given.python, end, given.keep, given.extras, Path(name)):
                found[row["python"], row["end"], row["extra"]] = row
                print(f"python {row['python']}, {end}, {row['extra']}: {row['result']}", flush=True)
                if given.output is not None:
                    content = {"what": __doc__.partition("\n")[0], "tried": list(found.values())}
                    given.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def tried(python: str, end: str, kept: list[str], names: list[str], folder: Path):
    """For each extra what its versions are, and how its lines ended."""
    wheel = built(folder)
    base = environment(python, folder / "base")
    number = run([base, "-c", "import platform; print(platform.python_version())"]).stdout.strip()
    place = run([base, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
    failed = installed(base, [wheel], constraints(end, kept, PROJECT["dependencies"], folder))
    for extra in names:
        row = {"python": number, "end": end, "extra": extra}
        if end == "oldest":
            row["kept"] = kept
        if failed:
            yield {**row, "result": failed, "versions": {}}
            continue
        own = environment(python, folder / extra)
        of_own = run([own, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
        Path(of_own.stdout.strip(), "base.pth").write_text(place.stdout)
        needed = [one for part in NEEDS.get(extra, (extra,)) for one in EXTRAS.get(part, ())]
        wanted = [*PROJECT["dependencies"], *needed]
        limits = constraints(end, kept, wanted, folder)
        result = installed(own, [*needed, wheel], limits) if needed else ""
        if not result:
            script = folder / extra / "use.py"
            script.write_text(USES[extra], encoding="utf-8")
            result = last_line(run([own, script], script.parent)) or "works"
        yield {**row, "result": result, "versions": versions(own, [name_of(one) for one in wanted])}


def built(folder: Path) -> Path:
    """The package's wheel."""
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder])
    (wheel,) = folder.glob("*.whl")
    return wheel


def environment(python: str, folder: Path) -> Path:
    """A new virtual environment, which the pip of this one fills; its interpreter."""
    run([python, "-m", "venv", "--without-pip", folder])
    return folder / "bin" / "python"


def name_of(requirement: str) -> str:
    """Name of the package that a requirement is about."""
    return requirement.partition(">")[0].partition("==")[0]


def constraints(end: str, kept: list[str], wanted: list[str], folder: Path) -> Path:
    """The versions of one end of what is wanted, as a file of constraints for pip."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    if end == "oldest":
        # A bound of an extra takes the place of the package's own.
        lowest = {name_of(one): one.partition(",")[0].replace(">=", "==") for one in wanted}
        lowest |= {name: line for line in text.splitlines() if (name := name_of(line)) in kept}
        text = "\n".join(lowest.values())
    path = folder / "constraints.txt"
    path.write_text(text, encoding="utf-8")
    return path


def installed(python: Path, needed: list[object], limits: Path) -> str:
    """Install packages; why that failed, or nothing."""
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-compile"]
    pip += ["--quiet", "--disable-pip-version-check"]
    return last_line(run([*pip, "--constraint", limits, *needed]))


def last_line(done: subprocess.CompletedProcess) -> str:
    """The last line of a command that failed."""
    lines = (done.stderr or done.stdout).strip().splitlines()
    return "" if not done.returncode else (lines[-1] if lines else f"status {done.returncode}")


def versions(python: Path, names: list[str]) -> dict[str, str]:
    """The versions that an environment has of some packages."""
    code = (
        "import sys, json, importlib.metadata as m\n"
        # The first on the path is the one that is imported.
        "have = {d.name.lower(): d.version for d in reversed([*m.distributions()])}\n"
        "print(json.dumps({n: have.get(n) for n in sys.argv[1:]}))"
    )
    return json.loads(run([python, "-c", code, *names]).stdout)


def run(words: list[object], folder: Path = ROOT) -> subprocess.CompletedProcess:
    """Run a command without the checkout on the path."""
    return subprocess.run(
        [*map(str, words)],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )


if __name__ == "__main__":
    main()

"""Build wheel and sdist, check what is in them, and run the README on the wheel alone.

    python .ci/package.py [--constraint constraints.txt]

The wheel is installed into a new virtual environment, and every command of README that begins with
`labelleak` runs there, in an empty folder, on the files of `labelleak demo`.
"""

import argparse
import email
import os
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
# What hatchling adds to an sdist by itself.
ADDED = {"PKG-INFO", ".gitignore", "pyproject.toml", "LICENSE"}
SAMPLES = "labelleak/lab/datasets/samples"
# Audited, over the limit, inconclusive: a verdict, and no error.
VERDICTS = (0, 1, 3)
# What README's lines of Python take as given.
PRELUDE = """
import torch, labelleak
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 10))
inputs, labels = torch.rand(24, 1, 6, 6), torch.arange(24) % 10
true_counts = torch.bincount(labels, minlength=10)
before = {name: value.clone() for name, value in model.state_dict().items()}
torch.nn.functional.cross_entropy(model(inputs), labels).backward()
gradients = {name: value.grad for name, value in model.named_parameters()}
after = {name: before[name] - 0.1 * gradients[name] for name in before}
"""
CHECKED = "\nassert ll.score(found, true_counts).accuracy > 0.8, found.counts\n"


def main() -> None:
    """Build, check and run; the first thing that is wrong ends it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--constraint", type=Path, default=ROOT / "constraints.txt")
    constraint = parser.parse_args().constraint.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel, sdist = built(folder)
        check_wheel(wheel, version())
        check_sdist(sdist, version())
        check_releases(version())
        run_readme(wheel, folder, constraint)
    print(f"labelleak {version()}: wheel and sdist hold what they should, and README runs")


def version() -> str:
    """The version that the source says."""
    text = (ROOT / "src" / "labelleak" / "_version.py").read_text(encoding="utf-8")
    return re.search(r'__version__ = "(.+)"', text)[1]


def built(folder: Path) -> tuple[Path, Path]:
    """The sdist of the checkout, and the wheel that is built of the sdist alone."""
    run([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder], ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], source)
    (wheel,) = folder.glob("*.whl")
    return wheel, sdist


def tracked(*places: str) -> set[str]:
    """Files of the repository, as git knows them."""
    done = run(["git", "ls-files", "-z", "--", *places], ROOT)
    return set(filter(None, done.split("\0")))


def check_wheel(path: Path, number: str) -> None:
    """The package and its metadata, and nothing else."""
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        info = f"labelleak-{number}.dist-info"
        metadata = email.message_from_bytes(wheel.read(f"{info}/METADATA"))
        entries = wheel.read(f"{info}/entry_points.txt").decode()
    expected = {name.removeprefix("src/") for name in tracked("src")}
    same(expected, {name for name in names if not name.startswith(info)}, path)
    needed = {"labelleak/py.typed", f"{SAMPLES}/LICENSE-mnist.txt"}
    needed |= {f"{info}/licenses/LICENSE", f"{info}/licenses/src/{SAMPLES}/LICENSE-mnist.txt"}
    missing = needed - names
    assert not missing, f"{path.name} lacks {sorted(missing)}"
    assert sum(name.startswith(f"{SAMPLES}/") for name in names) > 1, "the sample of MNIST"
    assert metadata["Version"] == number, metadata["Version"]
    assert "labelleak = labelleak.__main__:main" in entries, entries


def check_sdist(path: Path, number: str) -> None:
    """What the wheel is made of, and what README points to."""
    with tarfile.open(path) as sdist:
        names = {one.name.partition("/")[2] for one in sdist.getmembers() if one.isfile()}
        roots = {one.name.partition("/")[0] for one in sdist.getmembers()}
    assert roots == {f"labelleak-{number}"}, roots
    pages = {"README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md"}
    same(tracked("src") | pages, names - ADDED, path)
    assert names >= ADDED, sorted(ADDED - names)


def same(expected: set[str], found: set[str], path: Path) -> None:
    """Refuse files that are too many or too few."""
    assert expected == found, (
        f"{path.name}: lacks {sorted(expected - found)}, and should not have "
        f"{sorted(found - expected)}"
    )


def check_releases(number: str) -> None:
    """Changelog and citation are of this version, of one day."""
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(\d\S*)\] - (\d{4}-\d\d-\d\d)$", changes, re.MULTILINE)
    assert newest, "CHANGELOG.md has no section of a release with its day"
    assert newest[1] == number, f"CHANGELOG.md ends with {newest[1]}, the source says {number}"
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    for line in (f"version: {number}", f"date-released: {newest[2]}"):
        assert re.search(rf"^{re.escape(line)}$", cited, re.MULTILINE), f"CITATION.cff: {line}"


def run_readme(wheel: Path, folder: Path, constraint: Path) -> None:
    """Install as README says, the wheel in place of the checkout, and run its commands."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    consoles = "\n".join(re.findall(r"^```console\n(.*?)^```", readme, re.MULTILINE | re.DOTALL))
    lines = consoles.replace("\\\n", " ").splitlines()
    words = [shlex.split(one[2:], comments=True) for one in lines if one.startswith("$ ")]
    extras = [one for one in words if one[:2] == ["pip", "install"] and "labelleak[" in one[2]]
    commands = [one for one in words if one[0] == "labelleak"]
    assert len(extras) == 1, "README installs extras once"
    assert len(commands) > 2, "README has commands"
    here = folder / "environment"
    venv.create(here, with_pip=True)
    python, empty = here / "bin" / "python", folder / "empty"
    empty.mkdir()
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    run([*pip, "--constraint", constraint, wheel], empty)
    run([*pip, "--constraint", constraint, *extras[0][2:]], empty)
    where = "import labelleak; print(labelleak.__file__)"
    assert run([python, "-c", where], empty).startswith(str(here)), "another labelleak was found"
    for one in (["labelleak", "--version"], ["labelleak", "demo"], *commands):
        print(f"$ {shlex.join(one)}", flush=True)
        run([here / "bin" / one[0], *one[1:]], empty, VERDICTS)
    (code,) = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    run([python, "-c", f"{PRELUDE}{code}{CHECKED}"], empty)


def run(words: list[object], folder: Path, allowed: tuple[int, ...] = (0,)) -> str:
    """Run a command as a user would who has set nothing; what it prints."""
    unset = ("PYTHONPATH", "LABELLEAK_DATA", "LABELLEAK_CACHE")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        [*map(str, words)], cwd=folder, env=kept, capture_output=True, text=True, check=False
    )
    if done.returncode not in allowed:
        sys.exit(f"{shlex.join(map(str, words))}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()

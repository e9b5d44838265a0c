"""Public codes beside labelleak on the same batches: accuracy and time, one thread.

    git clone https://github.com/BUAA-CST/iLRG
    git clone https://github.com/JonasGeiping/breaching
    git clone https://github.com/nadbag98/LLBG
    git clone https://github.com/CityChan/Recovering-Label-from-Update RLU
    python benchmarks/peers.py --data-dir ~/data --ilrg iLRG --breaching breaching \
        --llbg LLBG --rlu RLU [--output results/benchmark-peers.json]

Each checkout is optional, and **its code is run**: whoever names a folder decides to. It runs in a
process of its own, with the rights of the user and no sandbox. Nothing of it is in this repository.

The batches are the first ones of the leaderboard's settings, and those of a made-up head of 1000
classes. Every process draws them itself, and a hash of their gradients shows that they are the
same. True labels score the answers, and nothing else. An attack that ends with an error, needs a
package that is not here, or more than the server has, is recorded with that reason. Of one that
exceeds its budget of processor seconds the first batches count, of ours then too.

iLRG's RLG needs scikit-learn and cvxopt. Of breaching's strategies `wainakh-whitebox` is left out,
as is `llg-simple` of LLBG's: they end in an error of their own. For 1000 classes RLG and RLU are
left out: their loops over the classes in Python take many minutes a batch.
"""

import argparse
import hashlib
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import labelleak
from labelleak.metrics import accuracy, counts_of, leacc
from leaderboard_scenes import leaderboard, scenes_of
from measuring import Row, in_own_process, load, write
from public_codes import PUBLIC_CODES, Attack, version
from restoration import observation

# Settings of the leaderboard; the server has this many auxiliary samples of each class.
RECORDED = (
    "FCN-3, untrained, K = 24",
    "LeNet-5, 100 classes, untrained, K = 24",
    "FCN-3, 1000 steps, K = 24",
)
AUXILIARY = 20
# Name -> classes, features, batch size.
MADE_UP = {"made-up head, 1000 classes, untrained, K = 24": (1000, 2048, 24)}
SETTINGS = (*RECORDED[:2], *MADE_UP, RECORDED[2])
OURS = "labelleak"


class Batch(NamedTuple):
    """What the server sees of a batch, and the true counts."""

    seen: labelleak.Observation
    counts: Tensor


class Plan(NamedTuple):
    """What a process runs: a setting, how many of its batches, and how long an attack may take."""

    setting: str
    batches: int
    seconds: float
    data_dir: Path | None


def drawn(plan: Plan) -> list[Batch]:
    """The batches of a plan, the same in every process."""
    if plan.setting in MADE_UP:
        size = MADE_UP[plan.setting]
        made = (observation(*size, number=number) for number in range(plan.batches))
        return [Batch(seen, counts_of(labels, size[0])) for seen, labels in made]
    known = leaderboard()[plan.setting]
    experiment = known.model_copy(update={"auxiliary_per_class": AUXILIARY})
    scenes = scenes_of(experiment, plan.batches, plan.data_dir)
    return [Batch(scene.observation, scene.batch.true_counts) for scene in scenes]


def our_attacks() -> dict[str, Attack]:
    """Attacks of this package: their counts, or the set of classes of those that give no counts."""

    def restored(name: str, seen: labelleak.Observation) -> Tensor:
        found = labelleak.restore(seen, name)
        return found.present if found.counts is None else found.counts

    return {name: partial(restored, name) for name in (*labelleak.list_attacks(), "auto")}


def measure(plans: list[Plan], source: str, folder: Path | None) -> Row:
    """The batches' hash, and a row for every attack in every setting (run in a fresh process)."""
    torch.set_num_threads(1)
    attacks = our_attacks() if folder is None else PUBLIC_CODES[source].enter(folder)
    digest, rows = hashlib.sha256(), []
    for plan in plans:
        batches = drawn(plan)
        for batch in batches:
            digest.update(batch.seen.gradient.weight.numpy().tobytes())
        for name in names_of(source, plan):
            row = {"setting": plan.setting, "source": source, "name": name}
            rows.append(row | tried(attacks[name], batches, plan))
            print(shown(rows[-1]), flush=True)
    return {"digest": digest.hexdigest(), "rows": rows}


def names_of(source: str, plan: Plan) -> list[str]:
    """The attacks of a source that run in a setting: of ours those with a public counterpart."""
    made_up = plan.setting in MADE_UP
    if source != OURS:
        code = PUBLIC_CODES[source]
        return [name for name in code.counterparts if not (made_up and name in code.slow)]
    theirs = (
        PUBLIC_CODES[code].counterparts[name]
        for code in PUBLIC_CODES
        for name in names_of(code, plan)
    )
    return [*dict.fromkeys(name for name in theirs if name is not None), "auto"]


def tried(attack: Attack, batches: list[Batch], plan: Plan) -> dict[str, Any]:
    """Scores and processor seconds of an attack by batch, until its budget is spent."""
    scores: dict[str, list[Any]] = {"accuracy": [], "leacc": [], "seconds": []}
    for number, batch in enumerate(batches):
        # Some of breaching's strategies fill up with random labels.
        torch.manual_seed(number)
        start = time.process_time()
        try:
            answer = attack(batch.seen)
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}
        scores["seconds"].append(time.process_time() - start)
        is_set = answer.dtype == torch.bool
        scores["accuracy"].append(None if is_set else accuracy(answer, batch.counts))
        scores["leacc"].append(leacc((answer > 0).long(), batch.counts))
        if sum(scores["seconds"]) > plan.seconds:
            break
    return {"error": None, **scores}


def shown(row: Row) -> str:
    """A row as a line of the table on the screen."""
    start = f"{row['setting'][:44]:<46}{row['source']:<11}{row['name']:<16}"
    if row["error"] is not None:
        return f"{start}{row['error'][:60]}"
    number = len(row["seconds"])
    middle = sorted(row["seconds"])[number // 2]
    right = row["leacc"] if None in row["accuracy"] else row["accuracy"]
    return f"{start}{sum(right) / number:>8.3f}{1e3 * middle:>12.2f}{number:>5}"


def main() -> None:
    """Run every public code that is named, print a table, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name, code in PUBLIC_CODES.items():
        what = f"checkout of {code.address}; its code is run"
        parser.add_argument(f"--{name}", type=Path, metavar="DIR", help=what)
    parser.add_argument("--data-dir", type=Path, help="as of labelleak compare")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=8.0, help="for an attack in a setting")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    folders = {
        name: folder.expanduser().resolve()
        for name in PUBLIC_CODES
        if (folder := getattr(given, name)) is not None
    }
    if not folders:
        sys.exit("no checkout is named: give at least one of --" + ", --".join(PUBLIC_CODES))
    for name, folder in folders.items():
        if not (folder / PUBLIC_CODES[name].file).is_file():
            where = PUBLIC_CODES[name].address
            sys.exit(f"--{name} {folder}: has no {PUBLIC_CODES[name].file}: clone {where}")
    # NumPy reads it when a process starts.
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    before, rows, digests = load(), [], set()
    plans = [Plan(one, given.batches, given.seconds, given.data_dir) for one in given.settings]
    print(f"{'setting':<46}{'code':<11}{'attack':<16}{'right':>8}{'ms':>12}{'n':>5}", flush=True)
    for source, folder in (*folders.items(), (OURS, None)):
        found = in_own_process(measure, plans, source, folder)
        digests.add(found["digest"])
        rows += found["rows"]
    if len(digests) > 1:
        sys.exit("the processes drew different batches: nothing is written")
    codes = {
        name: {"title": code.title, "address": code.address, "attacks": code.counterparts}
        | version(folders[name])
        for name, code in PUBLIC_CODES.items()
        if name in folders
    }
    write(given.output, __doc__, before, threads=1, codes=codes, rows=rows)


if __name__ == "__main__":
    main()

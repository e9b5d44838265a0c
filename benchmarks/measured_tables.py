"""Tables of the docs that are made from the records of single benchmarks; used by `claims.py`."""

from collections.abc import Callable
from statistics import fmean
from typing import Any

from markdown_tables import megabytes, table, three

Read = Callable[[str], Any]
"""Gives the content of a record by its path."""


def restoration_times(read: Read) -> list[str]:
    """Time of every attack, and of the baseline."""
    results = read("results/benchmark-restoration.json")["results"]
    sizes = list(dict.fromkeys(_size(result) for result in results))
    lines = []
    for name, title in _RESTORATION.items():
        cells = []
        for size in sizes:
            of_size = {r["name"]: r["seconds"] for r in results if _size(r) == size}
            ratio = of_size[name] / of_size["plain-numpy"]
            cells.append(f"{1e3 * of_size[name]:.3g} ({ratio:.2g})")
        lines.append([title, *cells])
    headings = [", ".join(map(str, size)) for size in sizes]
    return table(["ms (of the baseline), by C, m, K", *headings], lines)


def restoration_memory(read: Read) -> list[str]:
    """Peak memory of every attack on 1000 classes."""
    results = read("results/benchmark-restoration.json")["results"]
    sizes = [size for size in dict.fromkeys(map(_size, results)) if size[0] >= 1000]
    lines = []
    for name, title in _RESTORATION.items():
        of_name = {_size(result): result for result in results if result["name"] == name}
        lines.append([title, *(megabytes(of_name[size]["peak_bytes"]) for size in sizes)])
    headings = [", ".join(map(str, size)) for size in sizes]
    return table(["peak MB, by C, m, K", *headings], lines)


_RESTORATION = {
    "plain-numpy": "plain reading, NumPy (baseline)",
    "plain-published": "plain reading, quotients as published",
    "numpy.linalg.pinv": "`numpy.linalg.pinv` alone, one (C + 1) x C matrix",
    "ilrg": "`ilrg`",
    "idlg": "`idlg`",
    "gradinversion": "`gradinversion`",
    "rlg": "`rlg`",
}


def _size(result: Any) -> tuple[int, int, int]:
    return result["classes"], result["features"], result["batch_size"]


def capture_costs(read: Read) -> list[str]:
    """Time and memory of `capture` beside steps."""
    return table(
        ["K", "what", "s", "of `step`", "of `step-chunks`", "peak memory, MB"],
        [
            [
                str(result["batch_size"]),
                f"`{result['name']}`",
                f"{result['seconds']:.1f}",
                f"{result['ratios']['step']:.2f}",
                f"{result['ratios']['step-chunks']:.2f}",
                megabytes(result["peak_bytes"]),
            ]
            for result in read("results/benchmark-capture.json")["results"]
        ],
    )


def inversion_speed(read: Read) -> list[str]:
    """Iterations per second of IG beside the public code."""
    lines = []
    for result in read("results/benchmark-inversion.json")["results"]:
        channels, height, width = result["image_shape"]
        color = "gray" if channels == 1 else "color"
        digits = 0 if result["ours"] > 10 else 2
        lines.append(
            [
                result["network"],
                f"{height} x {width}, {color}",
                str(result["batch_size"]),
                f"{result['ours']:.{digits}f}",
                f"{result['public']:.{digits}f}",
                f"{result['ratio']:.2f}",
            ]
        )
    headings = ["network", "image, pixels", "K"]
    return table([*headings, "ours, iterations/s", "public code, iterations/s", "ratio"], lines)


def photographs_memory(read: Read) -> list[str]:
    """Memory of large batches of photographs."""
    return table(
        ["K", "processor s", "peak memory, MB"],
        [
            [
                str(result["batch_size"]),
                f"{result['seconds']:.0f}",
                megabytes(result["peak_bytes"]),
            ]
            for result in read("results/benchmark-memory.json")["results"]
        ],
    )


def workers_time(read: Read) -> list[str]:
    """What a second worker saves."""
    titles = {
        "dask-1": "Dask, one worker",
        "dask-2": "Dask, two workers",
        "one-process": "one process, no workers",
        "joblib-2": "joblib, two processes",
    }
    return table(
        ["how", "s, fastest turn", "ratio", "s, slowest turn"],
        [
            [
                titles.get(result["name"], result["name"]),
                f"{result['seconds']:.1f}",
                f"{result['ratio']:.2f}",
                f"{max(result['all_seconds']):.1f}",
            ]
            for result in read("results/benchmark-workers.json")["results"]
        ],
    )


def pooled_cost(read: Read) -> list[str]:
    """`pooled` on a language model's head beside a sum."""
    return table(
        [
            "what", "s", "of `sum`", "processor s", "of `sum`", "peak above the inputs, MB",
        ],
        [
            [
                f"`{result['name']}`",
                f"{result['seconds']:.2f}",
                f"{result['seconds_ratio']:.2f}",
                f"{result['processor_seconds']:.2f}",
                f"{result['processor_seconds_ratio']:.2f}",
                megabytes(result["peak_bytes"]),
            ]
            for result in read("results/benchmark-pooled.json")["results"]
        ],
    )  # fmt: skip


def audit_cost(read: Read) -> list[str]:
    """An epoch of each client's local training, and audits of what it sends."""
    content = read("results/benchmark-federated.json")
    what = {
        "audit-epoch": "audit of the epoch's update (10 steps)",
        "audit-step": "audit of a single step, K = 64",
    }
    lines = []
    for client, title in (("resnet18", "ResNet-18"), ("quick-start", "quick-start")):
        lines.append(
            [title, "the epoch", "", f"{content['training_seconds'][client]:.2g}", "1", ""]
        )
        audits = {one["name"]: one for one in content["results"] if one["client"] == client}
        lines += [
            [
                title,
                text,
                f"`{audits[name]['found'][0][0]}`",
                f"{audits[name]['seconds']:.2g}",
                f"{audits[name]['share']:.2g}",
                f"{audits[name]['peak_bytes'] / 1e6:.2f}",
            ]
            for name, text in what.items()
        ]
    headings = ["client", "what", "attack that spoke", "s", "of the epoch"]
    return table([*headings, "peak, MB above what stood before"], lines)


def audit_peak(read: Read) -> list[str]:
    """Peak memory of the whole process, with audits and without."""
    peaks = read("results/benchmark-federated.json")["process_peak_bytes"]
    without, with_audits = (
        f"{min(peaks[kind]) / 1e6:,.0f} to {max(peaks[kind]) / 1e6:,.0f}"
        for kind in ("without", "with")
    )
    return [
        f"The peak of the whole process was {without} MB without audits and {with_audits} MB with "
        f"them, in {len(peaks['with'])} runs each."
    ]


def mutated_files(read: Read) -> list[str]:
    """What became of mutated files of every format."""
    titles = {
        "safetensors": "`.safetensors`",
        "pt": "`.pt`",
        "npz": "`.npz`",
        "array": "arrays in an `.npz`",
        "trials": "records of trials (JSONL)",
        "rounds": "records of rounds (JSONL), and their page",
        "audit": "audit record (JSON), and its page",
        "policy": "policy (TOML)",
        "labels": "labels",
    }
    return table(
        ["format", "files", "read", "refused", "faults", "slowest, s", "peak of the process, MB"],
        [
            [
                titles[row["format"]],
                *(f"{row[name]:,}" for name in ("files", "read", "refused", "fault")),
                f"{row['slowest_seconds']:.2f}",
                megabytes(row["peak_bytes"]),
            ]
            for row in read("results/benchmark-mutated.json")["rows"]
        ],
    )


def interrupted_sweeps(read: Read) -> list[str]:
    """What became of sweeps that were killed, starved and doubled."""
    titles = {
        "kill": "`kill -9` at random moments",
        "disk": "disk full in the middle",
        "two": "more runs in the same folder",
        "core": "one core, default workers",
        "worker": "one of two workers killed",
        "dask-worker": "one of two Dask workers killed",
        "dask-scheduler": "the Dask scheduler killed",
    }
    counts = ("starts", "records", "lost", "doubled", "different")
    return table(
        ["what", *counts, "what was said"],
        [
            [
                titles[row["scenario"]] + (f" ({row['how']})" if "how" in row else ""),
                *(str(row[name]) for name in counts),
                "; ".join(filter(None, dict.fromkeys(row["said"]))) or "–",
            ]
            for row in read("results/benchmark-interrupted.json")["rows"]
        ],
    )


def exact_found(read: Read) -> list[str]:
    """What `exact` finds and certifies, without defenses."""
    return table(
        [
            "network, what is seen", "its accuracy", "$K$", "batches", "gave up", "accuracy",
            "LnAcc", "iLRG's accuracy", "iLRG's LnAcc", "visible", "certified of those", "seconds",
        ],
        [
            [
                _title(result["network"]),
                f"{result['network_accuracy']:.2f}",
                *(str(result[name]) for name in ("batch_size", "batches", "refused")),
                *map(three, (result[name] for name in _EXACT_SCORES)),
                *(str(result[name]) for name in ("visible", "certified_visible")),
                f"{result['seconds_median']:.1f}",
            ]
            for result in read("results/benchmark-exact.json")["results"]
            if not result["defended"]
        ],
    )  # fmt: skip


_EXACT_SCORES = ("accuracy", "lnacc", "ilrg_accuracy", "ilrg_lnacc")


def _title(network: str) -> str:
    name = network.replace("pooled, 100", "global average pooling, 100").replace(" quick", "")
    return name if "whole update" in name else f"{name}, head"


def exact_certificates(read: Read) -> list[str]:
    """How many certificates were false."""
    results = read("results/benchmark-exact.json")["results"]
    batches = sum(result["batches"] for result in results)
    defended = sum(result["batches"] for result in results if result["defended"])
    certified = sum(result["certified"] for result in results)
    false = sum(result["false_certificates"] for result in results)
    return [
        f"  False certificates: {false} of {certified}, in {batches} batches, {defended} of them "
        "defended."
    ]


def poolers_found(read: Read) -> list[str]:
    """What `exact` finds of two classes by the whole update."""
    counts = ("batch_size", "batches", "certified", "right", "visible", "false_certificates")
    return table(
        [
            "network", "steps of training", "$K$", "batches", "certified", "right", "visible",
            "false certificates", "seconds, median", "at most",
        ],
        [
            [
                result["network"],
                str(result["steps"]),
                *(str(result[name]) for name in counts),
                f"{result['seconds_median']:.2f}",
                f"{result['seconds_most']:.2f}",
            ]
            for result in read("results/benchmark-poolers.json")["results"]
        ],
    )  # fmt: skip


def local_steps(read: Read) -> list[str]:
    """RLU and Likelihood after local steps."""
    lines = []
    samplers = {"random": "as the data", "balanced": "as many of each class"}
    names = ("all classes alike", "ilrg", "rlu", "likelihood")
    for row in read("results/benchmark-local-steps.json")["rows"]:
        what = [f"{row['network']}, {row['iterations']} steps, {row['test_accuracy']:.2f}"]
        what.append(f"{row['auxiliary_per_class']} auxiliary samples of each class")
        rate = f"{row['batches']} steps at rate {row['learning_rate']:g}"
        if row.get("epochs", 1) > 1:
            rate += f" in each of {row['epochs']} epochs"
        what.append(rate)
        what += [f"{name} {row[name]:g}" for name in ("momentum", "proximal") if row.get(name)]
        labels = samplers.get(row["sampler"], "Dirichlet")
        lines.append([", ".join(what), labels, *(three(row["accuracy"][name]) for name in names)])
    headings = ["network, its training and test accuracy; the client's steps", "local labels"]
    return table(
        [*headings, "all classes alike", "iLRG, taken for one step", "RLU", "likelihood"], lines
    )


def epsilon(read: Read) -> list[str]:
    """Share of the labels restored against epsilon, with and without training."""
    shares: dict[tuple[float, float | None, float], list[float]] = {}
    epsilons: dict[float, float] = {}
    guesses: list[float] = []
    for run in read("results/leakage-against-epsilon.json"):
        noise, steps = run["noise_multiplier"], run["steps"]
        kind = (noise, run["max_grad_norm"], run["learning_rate"])
        shares.setdefault(kind, []).extend(steps["restored"])
        guesses += steps["guessed"]
        if noise:
            epsilons[noise] = steps["epsilon"][-1]
    lines = []
    for noise, norm in dict.fromkeys((noise, norm) for noise, norm, _ in shares):
        what = f"{epsilons[noise]:.2g}" if noise else "no noise, clipped" if norm else "no DP"
        means = [f"{100 * fmean(shares[noise, norm, rate]):.0f} %" for rate in (0.0, 0.1)]
        lines.append([what, f"{noise:g}" if noise else "", *means])
    guessed = f"{100 * fmean(guesses):.0f} %"
    lines.append(["all classes guessed equal", "", guessed, guessed])
    return table(["epsilon", "noise multiplier", "as handed out", "in training"], lines)


def automatic(read: Read) -> list[str]:
    """Answers and time of the default attack."""
    names = ("setting", "batches", "labels right", "all counts right", "median s", "most s", "who")
    return table(
        names,
        [
            [
                row["name"],
                str(row["batches"]),
                three(row["accuracy"]),
                str(row["exact"]),
                f"{row['seconds_median']:.2f}",
                f"{row['seconds_most']:.2f}",
                ", ".join(f"`{name}` {number}" for name, number in row["spoke"].items()),
            ]
            for row in read("results/benchmark-automatic.json")["rows"]
        ],
    )


MEASURED: dict[str, Callable[[Read], list[str]]] = {
    "automatic": automatic,
    "restoration-times": restoration_times,
    "restoration-memory": restoration_memory,
    "capture": capture_costs,
    "inversion-speed": inversion_speed,
    "photographs": photographs_memory,
    "workers": workers_time,
    "pooled": pooled_cost,
    "audit-cost": audit_cost,
    "audit-peak": audit_peak,
    "mutated": mutated_files,
    "interrupted": interrupted_sweeps,
    "exact": exact_found,
    "exact-certificates": exact_certificates,
    "poolers": poolers_found,
    "local-steps": local_steps,
    "epsilon": epsilon,
}
"""By the name under which a page asks for it."""

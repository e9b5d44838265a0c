"""Tables of the docs about virtual clients; used by `claims.py`."""

from collections.abc import Callable

from markdown_tables import table, three
from measured_tables import Read


def simulated_clients(read: Read) -> list[str]:
    """Virtual clients beside attacks that simulate nothing."""
    names = ("virtual", "auto", "rlu", "decaf")
    lines = []
    for row in read("results/benchmark-virtual-clients.json")["rows"]:
        cells = [f"{row['name']} ({row['test_accuracy']:.2f})"]
        cells += [three(row["accuracy"].get(name)) for name in names]
        lines.append([*cells, three(row["coverage"]["virtual"]), f"{row['trainings']:.0f}"])
    return table(
        [
            "recipe (test accuracy before)", "`virtual`", "`auto`", "RLU", "Decaf",
            "true counts inside the 95 % intervals", "trainings for each client",
        ],
        lines,
    )  # fmt: skip


def rounds_together(read: Read) -> list[str]:
    """What rounds tell together, beside each alone and plain means."""
    names = ("alone", "combined", "combined_coverage", "plain_mean", "likelihood_plain_mean")
    return table(
        [
            "after round (test accuracy before)", "clients", "`virtual`, this round alone",
            "all rounds, `combine`", "true counts inside its 95 % intervals",
            "plain mean of `virtual`", "plain mean of `likelihood`",
        ],
        [
            [
                f"{row['round']} ({row['test_accuracy']:.2f})",
                str(row["clients"]),
                *(three(row[name]) for name in names),
            ]
            for row in read("results/benchmark-rounds.json")["rows"]
        ],
    )  # fmt: skip


def synthetic_clients(read: Read) -> list[str]:
    """Virtual clients on made-up classes, beside attacks with and without auxiliary data."""
    lines = []
    for row in read("results/benchmark-synthetic-clients.json")["rows"]:
        cells = [f"{row['name']} ({row['test_accuracy']:.2f})", str(row["clients"])]
        cells += [three(row["accuracy"][name]) for name in ("synthetic", "auto", "rlu")]
        lines.append([*cells, three(row["coverage"]), f"{row['trainings']:.0f}"])
    return table(
        [
            "recipe (test accuracy before)", "clients", "`synthetic`", "`auto`",
            "RLU with 200 samples a class", "true counts inside the 95 % intervals",
            "trainings for each client",
        ],
        lines,
    )  # fmt: skip


def noisy_rounds(read: Read) -> list[str]:
    """What noisy rounds tell, one alone and several together, and their epsilon."""
    rows = read("results/benchmark-noisy-rounds.json")["rows"]
    lines = []
    for noise in dict.fromkeys(row["noise_multiplier"] for row in rows):
        own = {row["round"]: row for row in rows if row["noise_multiplier"] == noise}
        cells = [f"{noise:g}"]
        for number in (1, 4, 16):
            cells += [f"{own[number]['epsilon']:.2g}", three(own[number]["combined"])]
        lines.append([*cells, three(own[16]["alone"])])
    return table(
        [
            "noise multiplier", "epsilon of round 1", "labels", "epsilon of 4 rounds", "labels",
            "epsilon of 16 rounds", "labels", "round 16 alone",
        ],
        lines,
    )  # fmt: skip


SIMULATED: dict[str, Callable[[Read], list[str]]] = {
    "virtual-clients": simulated_clients,
    "rounds": rounds_together,
    "synthetic-clients": synthetic_clients,
    "noisy-rounds": noisy_rounds,
}
"""By the name under which a page asks for it."""

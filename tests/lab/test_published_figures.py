import csv
import math
from importlib import resources

import pytest

from find_published import find
from labelleak.lab.published_figures import published_runs


def test_every_line_of_the_files_is_read_with_all_its_figures():
    expected = []
    for name in ("published.csv", "published_tables.csv", "published_pictures.csv"):
        text = (resources.files("labelleak.lab") / "studies" / name).read_text(encoding="utf-8")
        assert text.startswith("# Figures")
        reader = csv.reader(line for line in text.splitlines() if not line.startswith("#"))
        heading = next(reader)
        for cells in reader:
            numbers = [
                float(cell)
                for name, cell in zip(heading, cells, strict=True)
                if cell and name.endswith(("acc", "irec", "cossim", "_mse", "_mre", "_best6"))
            ]
            expected.append((cells[:4], sorted(numbers)))
    found = [
        (
            [row.run, row.source, row.dataset, row.model],
            sorted(v for name, v in row.figures.items() if not name.startswith("instances_")),
        )
        for row in published_runs().values()
    ]
    assert found == expected
    assert len(found) == 115 + 6 + 4
    assert all(run == row.run for run, row in published_runs().items())


def test_a_row_of_the_logs():
    row = find("table1", dataset="mnist")[0]
    assert (row.model, row.activation, row.stage) == ("fcn-3", "relu", "untrained")
    assert (row.batch_size, row.trials, row.distribution) == (24, 50, "random")
    assert not row.classes_known
    assert (row.defense, row.defense_value) == (None, None)
    assert dict(row.figures) == {
        "idlg_leacc": 0.514,
        "gi_leacc": 1.0,
        "rlg_leacc": 0.932,
        "leacc": 1.0,
        "lnacc": 0.994,
        "irec": 1.0,
    }


def test_defenses_and_restored_instances_are_read():
    (row,) = find("figure5", stage="epoch100", defense="dp", defense_value=1e-4)
    assert row.figures["lnacc"] == 0.798
    (row,) = find("table5", stage="epoch100", batch_size=648)
    restored = [row.figures[f"instances_{label}"] for label in (0, 18, 92)]
    assert restored == [51, 371, 65]


def test_the_printed_tables_say_the_same_as_the_logs_where_both_do():
    for log in find("table3+table4"):
        for table in ("table3", "table4"):
            (printed,) = find(table, stage=log.stage)
            assert printed.figures["embedding_cossim"] == log.figures["embedding_cossim"]
    assert find("table4", stage="untrained")[0].figures["soteria_embedding_cossim"] == -0.978


@pytest.mark.parametrize(
    ("source", "name", "low", "high"),
    [
        ("table1", "lnacc", 0.9935, 0.9945),
        ("table3", "a1_mse", 1.55e-11, 1.65e-11),
        ("table3", "a2_bias_mre", 1.3765, 1.3775),
        ("table5", "instances_18", 22, 23),  # cut off, not rounded
    ],
)
def test_what_a_figure_may_have_been_before_it_was_printed(source, name, low, high):
    row = find(source)[-1] if source == "table1" else find(source, stage="untrained")[0]
    assert row.spread(name) == pytest.approx((low, high), rel=1e-12)
    assert row.spread(name)[0] <= row.figures[name] <= row.spread(name)[1]


def test_every_mean_squared_error_lies_in_its_own_spread():
    for row in published_runs().values():
        for name, value in row.figures.items():
            low, high = row.spread(name)
            assert low <= value <= high
            assert math.isfinite(high)

import csv
import re
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelleak.lab import paper
from labelleak.lab.summary import summarize
from labelleak.report.experiments import study_page, summary_csv

_ROW = re.compile(r'<tr( class="outside")?><th scope="row">(.*?)</th>(.*?)</tr>')


def _cells(page):
    return [
        (title, *re.findall(r"<td>(.*?)</td>", cells), bool(outside))
        for outside, title, cells in _ROW.findall(page)
    ]


def test_ours_interval_published_and_difference_stand_in_a_row(table):
    assert _cells(study_page([table], "Run")) == [
        ("iLRG LnAcc", "0.994", "0.986 to 1.000", "0.990", "+0.004", "inside", False),
        ("RLG LeAcc", "–", "–", "0.932", "–", "not run", False),
        ("A1 MSE", "1.72e-11", "1.5e-11 to 1.9e-11", "1.6e-11", "+1.2e-12", "inside", False),
        ("iLRG LnAcc", "0.800", "0.750 to 0.850", "1.000", "−0.200", "outside", True),
    ]


def test_the_summary_counts_what_is_inside(table, figure, document):
    text = document(study_page([table, figure], "Run")).text
    # Table: 2 inside, 1 outside, 1 not run. Figure: 0.95 and 0.37 and 0.8 within 0.05; one single.
    assert "5 of 6 published figures are inside our 95% interval." in text
    assert "2 more could not be compared" in text
    assert "Table 1: untrained stand-in data 2 of 3 1" in text
    assert "Figure 3: batch size 3 of 3 1" in text


def test_single_trials_have_no_interval_to_hold_published_figures_to(table, document):
    for row in table["rows"]:
        for cell in row["metrics"].values():
            cell |= {"low": None, "high": None, "inside": None}
    text = document(study_page([table], "Run")).text
    assert "one trial of each: no interval to hold the published figures to" in text
    assert "0 of 0" not in text
    assert "no published figure to compare with" not in text


def test_what_needs_a_download_is_not_available(table):
    table["metrics"][1] |= {"title": "LPIPS (VGG)"}
    assert ("LPIPS (VGG)", "–", "–", "0.932", "–", "not available", False) in _cells(
        study_page([table], "Run")
    )


def test_stand_in_data_is_said_at_the_top_and_in_the_row(table, figure, document):
    text = document(study_page([table, figure], "Run")).text
    assert "Stand-in data. These results are not on the data of the published figures" in text
    assert "tiny-imagenet-100 in place of cifar100 in Table 1" in text
    assert text.count("Stand-in data: tiny-imagenet-100 in place of cifar100") == 1
    assert "Stand-in" not in document(study_page([figure], "Run")).text


def test_what_was_really_run_is_said(table, document):
    table["rows"][1] |= {
        "stage": "epoch 40",
        "stage_used": "iteration 104 of 260",
        "image_size": 64,
        "batchnorm": True,
        "dropout": 0.5,
        "stem": "imagenet",
        "defense": "sparsify 10",
        "known_classes": True,
        "local": "10 local steps, learning rate 0.05",
        "auxiliary": 500,
        "trials_planned": 10,
    }
    text = document(study_page([table], "Run")).text
    assert (
        "tiny-imagenet-100 (train, 64 pixels) · lenet5 (relu), with BatchNorm, dropout 0.5, "
        "imagenet stem · iteration 104 of 260 (published: epoch 40) · one network · K = 24, "
        "random · sparsify 10 · classes known · 10 local steps, learning rate 0.05 · "
        "500 auxiliary samples of each class · 7 of 10 trials" in text
    )
    assert "Not as published: batch size 24 instead of 48" in text
    assert "rlg could not run in 50 of 50 trials: the rank is too high" in text
    assert "the reason is not known" in text
    assert "10 trials instead of 50 (VGG-16)" in text


def test_a_mean_over_some_of_the_trials_says_so(table, document):
    assert "trials 0.994" not in document(study_page([table], "Run")).text
    table["rows"][0]["metrics"]["ilrg.lnacc"]["trials"] = 1
    assert "iLRG LnAcc in 1 of 50 trials 0.994" in document(study_page([table], "Run")).text


def test_one_study_has_no_table_of_contents(table, figure):
    assert '<th scope="col">not compared</th>' in study_page([table, figure], "Run")
    page = study_page([table], "Run")
    assert "not compared" not in page
    assert '<a href="#study-1">Table 1: untrained</a>' in page


def test_links_lead_to_what_there_is(table, figure, document):
    tags = document(study_page([table, figure], "Run")).tags
    targets = {a["href"] for tag, a in tags if tag == "a"}
    names = {"#" + a["id"] for _, a in tags if "id" in a}
    assert len(targets) == 5
    assert targets <= names


def test_a_comparison_without_published_figures_has_no_columns_for_them(table, document):
    for row in table["rows"]:
        for cell in row["metrics"].values():
            cell |= {"published": None, "difference": None, "inside": None}
    table |= {"scale": None, "source": "", "omitted": []}
    page = study_page([table], "Run")
    assert "2 experiments, no published figure to compare with." in page
    assert 'id="omitted"' not in page
    assert _cells(page)[0] == ("iLRG LnAcc", "0.994", "0.986 to 1.000", False)
    # No trial gave a figure, and none is published: nothing to show.
    assert "RLG LeAcc" not in [title for title, *_ in _cells(page)]


def test_csv_has_every_figure_in_full(table):
    lines = list(csv.DictReader(StringIO(summary_csv(table), newline="")))
    assert [(line["label"], line["metric"]) for line in lines] == [
        (row["label"], name) for row in table["rows"] for name in row["metrics"]
    ]
    cells = [cell for row in table["rows"] for cell in row["metrics"].values()]
    for line, cell in zip(lines, cells, strict=True):
        for name in ("ours", "low", "high", "published", "difference"):
            assert (float(line[name]) if line[name] else None) == cell[name]
        assert line["inside"] == {True: "true", False: "false", None: ""}[cell["inside"]]
    assert lines[1]["failed"] == "50"
    assert lines[3]["stands_in_for"] == "cifar100"
    assert lines[3]["shrunk"] == "batch size 24 instead of 48"


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_csv_keeps_any_text(text):
    row = {
        "metrics": {"m": dict.fromkeys(
            ("ours", "low", "high", "published", "difference", "inside", "trials")
        )},
        "failed": {}, "shrunk": [], "note": text, "label": text,
    }  # fmt: skip
    for name in (
        "data", "stands_in_for", "split", "image_size", "network", "activation", "batchnorm",
        "dropout", "stem", "stage", "stage_used", "batch_size", "sampler", "defense",
        "known_classes", "trials_planned", "panel", "series", "x",
    ):  # fmt: skip
        row[name] = None
    summary = {
        "name": "n", "scale": None, "metrics": [{"name": "m", "attack": None}], "rows": [row]
    }  # fmt: skip
    (line,) = csv.DictReader(StringIO(summary_csv(summary), newline=""))
    assert line["label"] == line["note"] == text


@pytest.mark.parametrize("name", ["table3", "figure5"])
def test_the_studies_of_the_paper_are_pages(name, document):
    summary = summarize(paper.study(name, "paper"), [])
    page = study_page([summary], "Run")
    published = [
        cell["published"]
        for row in summary["rows"]
        for cell in row["metrics"].values()
        if cell["published"] is not None
    ]
    assert len([cells for cells in _cells(page) if cells[5] == "not run"]) == len(published) > 0
    assert page.count("<svg") == (4 if name == "figure5" else 0)
    assert document(page).loads() == []

import json
import re

import pytest

from labelleak.report.comparison import comparison
from labelleak.report.experiments import study_page

NAMES = ("auto", "ilrg", "rlg", "uniform")


@pytest.fixture
def compared(table):
    """Three settings: auto is best in two, of which one is a tie; rlg tells sets only."""
    figures = {
        "FCN-3": {"auto": 0.9, "ilrg": 0.9, "rlg": None, "uniform": 0.4},
        "LeNet-5": {"auto": 0.8, "ilrg": 0.25, "rlg": None, "uniform": 0.5},
        "noisy": {"ilrg": 1.0, "rlg": None, "uniform": 0.5},
    }
    first = table["rows"][0]
    cell = first["metrics"]["ilrg.lnacc"] | {"published": None, "difference": None, "inside": None}

    def metrics(scores):
        found = {
            f"{name}.accuracy": cell
            | {"ours": value, "low": value - 0.1, "high": value, "error": 0.05}
            for name, value in scores.items()
            if value is not None
        }
        return found | {f"{name}.leacc": cell for name in scores}

    fields = {"accuracy": "labels restored", "leacc": "classes told"}
    return table | {
        "source": "",
        "omitted": [],
        "metrics": [
            {
                "name": f"{name}.{field}", "attack": name, "title": f"{name} {field}",
                "description": text + ("; baseline: even" if name == "uniform" else ""),
                "bounds": [0, 1],
            }
            for name in NAMES for field, text in fields.items()
        ],
        "rows": [
            first | {
                "label": label, "metrics": metrics(scores), "failed": {}, "stage_used": stage,
                "defense": "sign" if label == "noisy" else None,
                "flags": {"ilrg": {"no_bias": 7}}, "spoke": {"ilrg": 50},
            }
            for (label, scores), stage in zip(
                figures.items(), ("untrained", "epoch 1 of 1", "untrained"), strict=True
            )
        ],
    }  # fmt: skip


def _map(page):
    """Text and classes of every cell of the map, row by row."""
    body = re.search(r'id="heat">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)[1]
    return [
        [
            (re.sub(r'<span class="who">.*?</span>|<.*?>', "", cell), set(classes.split()))
            for classes, cell in re.findall(r'<td class="([^"]*)">(.*?)</td>', row)
        ]
        for row in body.split("</tr>")[:-1]
    ]


def test_the_map_shows_the_scores_and_marks_the_best(compared):
    rows = _map(study_page([compared], "Run"))
    texts = [[text for text, _ in row] for row in rows]
    assert texts == [
        [".900", ".900", "–", ".400"],
        [".800", ".250", "–", ".500"],
        ["", "1", "–", ".500"],
    ]
    assert [[("best" in classes) for _, classes in row] for row in rows] == [
        [True, True, False, False],
        [True, False, False, False],
        [False, True, False, False],
    ]
    # A color for each tenth; none without a score.
    assert [[c for c in classes if re.fullmatch(r"h\d+", c)] for _, classes in rows[1]] == [
        ["h8"], ["h3"], [], ["h5"],
    ]  # fmt: skip


def test_the_verdict_is_first(compared, document):
    text = document(study_page([compared], "Run")).text
    told = "auto and ilrg restore the most labels, alone or tied, in 2 of 3 settings."
    assert text.index("Run") < text.index(told) < text.index("Every attack in every setting")
    compared["rows"] = compared["rows"][2:]
    text = document(study_page([compared], "Run")).text
    assert "ilrg restores the most labels." in text


def test_nothing_restored_is_no_victory(compared):
    for row in compared["rows"]:
        for name, cell in row["metrics"].items():
            if name.endswith("accuracy"):
                row["metrics"][name] = cell | {"ours": 0.0}
    page = study_page([compared], "Run")
    assert "No attack restored a label." in page
    assert not any("best" in classes for row in _map(page) for _, classes in row)


def test_a_cell_leads_to_what_is_behind_it(compared, document):
    page = study_page([compared], "Run")
    parsed = document(page)
    targets = [a["href"][1:] for tag, a in parsed.tags if tag == "a" and "href" in a]
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert set(targets) <= set(ids)
    row = re.search(r'<tr id="s1-a1".*?</tr>', page, re.DOTALL)[0]
    told = " ".join(re.sub(r"<.*?>", " ", row).split())
    # Accuracy, its error, trials, advantage over the even guess, LeAcc, flags.
    assert told == "ilrg 0.250 0.050 50 −0.250 0.994 no_bias 7"
    assert "95% interval 0.150 to 0.250" in row
    assert "--at:25.00%;--low:15.00%;--high:25.00%;--guess:50.00%" in row
    assert "auto took ilrg 50 times." in parsed.text
    assert "set only" in parsed.text


def test_a_mean_over_some_batches_is_no_score(compared):
    """Such as of an attack that has counts only where one possibility is left."""
    metrics = compared["rows"][0]["metrics"]
    metrics["rlg.accuracy"] = metrics["ilrg.accuracy"] | {"ours": 1.0, "trials": 3}
    page = study_page([compared], "Run")
    assert _map(page)[0][2] == ("–", set())
    assert "auto and ilrg restore" in page


def test_an_attack_that_could_not_run_says_so(compared):
    row = compared["rows"][1]
    row["metrics"] = {k: v for k, v in row["metrics"].items() if not k.startswith("rlg.")}
    row["failed"] = {"rlg": {"failed": 50, "of": 50, "error": "the rank is too high"}}
    page = study_page([compared], "Run")
    assert _map(page)[1][2][0] == "fails"
    assert "rlg could not run in 50 of 50 trials: the rank is too high" in page


def test_studies_of_the_paper_and_single_attacks_are_tables(table, figure, compared):
    assert comparison(table) is None
    assert comparison(figure) is None
    assert comparison(compared) is not None
    alone = [metric for metric in compared["metrics"] if metric["attack"] in ("ilrg", "uniform")]
    assert comparison(compared | {"metrics": alone}) is None


def test_what_is_no_score_of_an_attack_keeps_its_table(compared, document):
    compared["metrics"].append(
        {"name": "psnr", "attack": None, "title": "PSNR", "description": "d", "bounds": [0, None]}
    )
    cell = compared["rows"][0]["metrics"]["ilrg.leacc"]
    compared["rows"][0]["metrics"]["psnr"] = cell | {"ours": 20.5, "low": None, "high": None}
    text = document(study_page([compared], "Run")).text
    assert "Other measures" in text
    assert "PSNR 20.5" in text


def test_a_summary_of_before_errors_and_flags_is_shown(compared):
    for row in compared["rows"]:
        del row["flags"], row["spoke"]
        for name, cell in row["metrics"].items():
            row["metrics"][name] = {k: v for k, v in cell.items() if k != "error"}
    assert "no_bias" not in study_page([compared], "Run")


def test_the_script_holds_what_the_table_shows(compared):
    page = study_page([compared], "</script><b>")
    data = json.loads(re.search(r'type="application/json" id="data">(.*?)</script>', page)[1])
    assert data["measures"]["accuracy"]["values"][1] == [0.8, 0.25, None, 0.5]
    assert data["measures"]["above_guess"]["values"][1] == [0.3, -0.25, None, 0.0]
    assert data["baselines"] == [False, False, False, True]


_CHOOSE = """<script>
const events = [];
addEventListener("error", (event) => events.push(event.message));
onload = () => {
  const set = (name, value) => {
    filters.elements[name].value = value;
    filters.elements[name].dispatchEvent(new Event("change", { bubbles: true }));
  };
  const seen = () => [...heat.tBodies[0].rows].filter((row) => !row.hidden).map((row) =>
    [...row.cells].filter((cell) => !cell.hidden).map((cell) =>
      (cell.classList.contains("best") ? "*" : "")
      + (cell.querySelector(".value") || cell).textContent));
  const told = [seen()];
  set("sort", "1");
  told.push(seen());
  set("kind", "untrained");
  set("measure", "above_guess");
  told.push(seen());
  filters.querySelector("input[value='0']").click();
  told.push(seen(), [...heat.tFoot.querySelectorAll(".wins")].map((cell) => cell.textContent));
  filters.reset();
  setTimeout(() => {
    told.push(seen(), events);
    document.title = JSON.stringify(told);
  }, 50);
};
</script>"""


def test_in_a_browser_it_is_filtered_and_sorted(compared, tmp_path, chromium):
    path = tmp_path / "page.html"
    path.write_text(study_page([compared], "Run").replace("<h1>", f"{_CHOOSE}<h1>"), "utf-8")
    text = re.search(r"<title>(.*?)</title>", chromium(path, "--virtual-time-budget=2000"))[1]
    first, by_ilrg, untrained, without_auto, wins, again, errors = json.loads(text)
    assert errors == []
    assert first == again == [
        ["FCN-3", "*.900", "*.900", "–", ".400"],
        ["LeNet-5", "*.800", ".250", "–", ".500"],
        ["noisy", "", "*1", "–", ".500"],
    ]  # fmt: skip
    assert [row[0] for row in by_ilrg] == ["noisy", "FCN-3", "LeNet-5"]
    assert untrained == [["FCN-3", "*.500", "*.500", "–", "0"], ["noisy", "", "*.500", "–", "0"]]
    assert without_auto == [["FCN-3", "*.500", "–", "0"], ["noisy", "*.500", "–", "0"]]
    assert wins[1] == "2"


def test_it_is_no_wider_than_a_phone(compared, overflow):
    compared["rows"][0]["label"] = "unbreakable" * 30
    assert overflow(study_page([compared], "Run"), 390) == 390

"""The pages of recorded results are made from `results/` while the site is built."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

# The report needs no torch, and so the package need not be installed.
sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
from labelleak.report.experiments import study_page
from labelleak.report.run import read_run

_RECORDED = Path(__file__).parents[2] / "results" / "quick"
_PLACE = "<!-- results -->"
_LEADERBOARD = _RECORDED.parent / "leaderboard"
_LEADERBOARD_PLACE = "<!-- leaderboard -->"
_COLUMNS = {
    "lnacc": "LnAcc",
    "leacc": "LeAcc",
    "accuracy": "accuracy",
    "above_guess": "above an even guess",
    "exact": "exact",
    "certified": "proven",
    "coverage": "coverage",
    "seconds": "time (s)",
}
_BASE_METRICS = ("ilrg.leacc", "ilrg.lnacc", "ilrg.irec")
_PICTURE_METRICS = ("psnr", "psnr_best6", "ssim")


def on_files(files: Files, config: Any) -> Files:
    """Put the pages of the runs, with their figures, beside the others (an event of MkDocs)."""
    for name, folder in (("report", _RECORDED), ("leaderboard", _LEADERBOARD)):
        title, summaries = read_run(folder / "summary.json")
        page = study_page(summaries, title, folder)
        files.append(File.generated(config, f"recorded/{name}.html", content=page))
    for picture in sorted(_RECORDED.glob("pictures/*.png")):
        place = f"recorded/pictures/{picture.name}"
        files.append(File.generated(config, place, content=picture.read_bytes()))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Fill in the tables where a page asks for them (an event of MkDocs)."""
    if _LEADERBOARD_PLACE in markdown:
        content = json.loads((_LEADERBOARD / "summary.json").read_text(encoding="utf-8"))
        tables = [line for row in content["studies"][0]["rows"] for line in _attacks(row)]
        return markdown.replace(_LEADERBOARD_PLACE, "\n".join(tables))
    if _PLACE not in markdown:
        return markdown
    content = json.loads((_RECORDED / "summary.json").read_text(encoding="utf-8"))
    studies = [line for summary in content["studies"] for line in _study(summary)]
    return markdown.replace(_PLACE, "\n".join(studies))


def _attacks(row: dict[str, Any]) -> Iterator[str]:
    """One setting: a line per attack and baseline."""
    if not row["trials"]:
        return
    yield f"## {row['label']}"
    yield ""
    planned = "" if row["trials"] == row["trials_planned"] else f" of {row['trials_planned']}"
    made = "" if row["range"] == "evaluation" else f" Not the evaluation range: {row['range']}."
    if row["earlier"]:
        made += " An earlier run, by another version of the code."
    yield f"{row['trials']}{planned} batches, {row['network']} on {row['data']}.{made}"
    yield ""
    cells = row["metrics"]
    names = dict.fromkeys(name.partition(".")[0] for name in cells)
    columns = [
        key for key in _COLUMNS if any(_value(cells, name, key) is not None for name in names)
    ]
    yield f"| attack | {' | '.join(_COLUMNS[key] for key in columns)} |"
    yield f"|---|{'---|' * len(columns)}"
    for name in names:
        values = [_value(cells, name, key) for key in columns]
        yield f"| {name} | {' | '.join(map(_number, values))} |"
    yield ""
    spoke = ", ".join(f"{name} {number}" for name, number in row.get("spoke", {}).items())
    if spoke:
        yield f"auto: {spoke}."
        yield ""


def _value(cells: dict[str, Any], name: str, key: str) -> float | None:
    """The mean of a score; `above_guess` follows from the even guess that is beside it."""
    if key == "above_guess":
        own, guess = (_value(cells, of, "accuracy") for of in (name, "uniform"))
        return None if own is None or guess is None else own - guess
    value: float | None = cells.get(f"{name}.{key}", {}).get("ours")
    return value


def _study(summary: dict[str, Any]) -> Iterator[str]:
    title, _, rest = summary["title"].partition(": ")
    yield f"## {title}: {rest}" if rest else f"## {title}"
    yield ""
    yield f"Published in {summary['source']}."
    yield ""
    yield "| setting | metric | ours | 95 % interval | published | difference |"
    yield "|---|---|---|---|---|---|"
    for row in summary["rows"]:
        label = f"{row['label']}<br><small>{row['data']}, {row['network']}, {row['stage_used']}, "
        label += f"{row['trials']} trials</small>"
        for metric in summary["metrics"]:
            cell = row["metrics"].get(metric["name"])
            if cell is None or not _shown(row, metric["name"]):
                continue
            values = " | ".join(_values(cell))
            yield f"| {label} | {metric['title']} | {values} |"
            label = ""
    yield ""
    for row in summary["rows"]:
        yield from _pictures(row)
    notes = [row for row in summary["rows"] if row["note"]]
    if notes:
        yield '??? note "Why published figures are outside the interval"'
        yield ""
        yield from (f"    - **{row['label']}**: {row['note']}" for row in notes)
        yield ""
    if summary["omitted"]:
        yield '??? note "Left out, shrunk or replaced"'
        yield ""
        yield from (f"    - {text}" for text in summary["omitted"])
        yield ""


def _pictures(row: dict[str, Any]) -> Iterator[str]:
    """The six best images that were found, above the true ones."""
    if row["pictures"] is None:
        return
    yield f"**{row['label']}**"
    yield ""
    for what, title in (("found", "found"), ("true", "the same images as they are")):
        place = f"recorded/{row['pictures']['files'][what]}"
        yield f"![{row['label']}: {title}]({place}){{ width=360 }}"
        yield ""


def _shown(row: dict[str, Any], name: str) -> bool:
    """What was published; of a row that was not, iLRG's usual metrics; of images, all."""
    published = [n for n, cell in row["metrics"].items() if cell["published"] is not None]
    pictures = () if row["pictures"] is None else _PICTURE_METRICS
    return name in (*pictures, *(published or _BASE_METRICS))


def _values(cell: dict[str, Any]) -> tuple[str, str, str, str]:
    interval = "" if cell["low"] is None else f"{_number(cell['low'])}–{_number(cell['high'])}"
    difference = _number(cell["difference"], sign="+")
    if cell["inside"] is False:
        difference = f"**{difference}**"
    return _number(cell["ours"]), interval, _number(cell["published"]), difference


def _number(value: float | None, sign: str = "") -> str:
    if value is None:
        return ""
    if 0 < abs(value) < 5e-4:
        return f"{value:{sign}.1e}"
    return f"{value:{sign}.3f}"

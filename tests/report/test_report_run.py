import csv
import json

import pytest

from labelleak.errors import UnreadableFile
from labelleak.lab.summary import SUMMARY_SCHEMA
from labelleak.report.run import RUN_SCHEMA, STUDY_SCHEMA, read_run, write_run


def test_a_run_is_a_summary_a_page_and_a_table_for_each_study(tmp_path, table, figure):
    page = write_run(tmp_path, "My run", [table, figure])
    assert {path.name for path in tmp_path.iterdir()} == {
        "summary.json", "report.html", "table1.csv", "figure3.csv"
    }  # fmt: skip
    assert "<h1>My run</h1>" in page.read_text(encoding="utf-8")
    with (tmp_path / "table1.csv").open(newline="", encoding="utf-8") as file:
        assert {line["label"] for line in csv.DictReader(file)} == {
            row["label"] for row in table["rows"]
        }
    assert read_run(tmp_path / "summary.json") == ("My run", [table, figure])


def test_what_cannot_be_shown_leaves_the_files_as_they_were(tmp_path, table):
    write_run(tmp_path, "My run", [table])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(KeyError):
        write_run(tmp_path, "Other", [table | {"rows": [{}]}])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "is no summary of a run"),
        ({"schema": "labelleak/run/2"}, "is no summary of a run"),
        ({"studies": 3}, "has studies of another schema"),
        ({"studies": [{"schema": "other"}]}, "has studies of another schema"),
        ({"studies": [{}]}, "has a name that no file can have"),
        ({"studies": [{"name": "../mine"}]}, "has a name that no file can have"),
        ({"studies": [{"name": "/tmp/mine"}]}, "has a name that no file can have"),
        ({"studies": [{"name": "a\0"}]}, "has a name that no file can have"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, content, message):
    if isinstance(content, dict):
        content = {"schema": RUN_SCHEMA, "title": "x", "studies": []} | content
        if isinstance(content["studies"], list):
            content["studies"] = [{"schema": STUDY_SCHEMA} | one for one in content["studies"]]
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UnreadableFile, match=message) as caught:
        read_run(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_the_studies_are_of_the_schema_that_summaries_have():
    assert STUDY_SCHEMA == SUMMARY_SCHEMA

import pytest
from click.testing import CliRunner

from labelleak import UnreadableFile
from labelleak.cli import labelleak
from labelleak.federated import Policy, RoundRecord, append_record


def _report(*words):
    return CliRunner().invoke(labelleak, ["report", *map(str, words)])


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "records"
    for client in "ab":
        record = RoundRecord(
            1, client, "", "flower", "warned", "failed", "no labels", Policy().as_dict()
        )
        append_record(folder, record)
    return folder


def test_a_folder_of_records_becomes_a_page(folder):
    done = _report(folder)
    assert done.output == f"Page: {folder / 'report.html'}\n"
    assert done.exit_code == 0
    page = (folder / "report.html").read_text()
    assert "2 audits of 2 clients in 1 round" in page


def test_the_page_goes_where_it_is_told(folder, tmp_path):
    out = tmp_path / "page.html"
    assert _report(folder / "client-a.jsonl", "--out", out).output == f"Page: {out}\n"
    assert "1 audit of 1 client" in out.read_text()
    assert not (folder / "report.html").exists()


def test_records_are_not_overwritten(folder):
    path = folder / "client-a.jsonl"
    content = path.read_bytes()
    for source in (folder, path):
        assert "would be overwritten" in str(_report(source, "--out", path).exception)
    assert path.read_bytes() == content


def test_a_broken_line_is_told_and_left_out(folder):
    path = folder / "client-b.jsonl"
    path.write_bytes(path.read_bytes() + b'{"schema": "labelleak/rou')
    done = _report(folder)
    assert done.exit_code == 0
    assert "client-b.jsonl, line 2: is no record, left out" in done.stderr


def test_records_that_lack_something(folder):
    (folder / "client-c.jsonl").write_text('{"schema": "labelleak/round/1", "round": 1}\n')
    assert isinstance(_report(folder).exception, UnreadableFile)
    assert not (folder / "report.html").exists()


def test_a_folder_without_records(tmp_path):
    assert "holds no records of rounds" in str(_report(tmp_path).exception)


def test_the_page_of_a_run_stays_in_its_folder(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    done = _report(tmp_path, "--out", tmp_path / "page.html")
    assert done.exit_code == 2
    assert "stay in its folder" in done.stderr

import json
import math
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from labelleak import UnreadableFile
from labelleak.federated import Policy, RoundRecord, append_record, read_rounds


def record(number=1, client="a", **fields):
    values = {"label": "", "framework": "", "action": "sent", "verdict": "within", "reason": "so"}
    return RoundRecord(number, client, policy=Policy().as_dict(), **{**values, **fields})


def test_records_come_back_in_order(tmp_path):
    folder = tmp_path / "deep" / "records"
    for number in (1, 2):
        for client in "ba":
            append_record(folder, record(number, client, epsilon=2.5, delta=1e-5))
    found = read_rounds(folder)
    assert [(entry["client"], entry["round"]) for entry in found] == [
        *(("a", 1), ("a", 2)),
        *(("b", 1), ("b", 2)),
    ]
    assert found[0]["epsilon"] == 2.5
    assert found[0]["schema"] == "labelleak/round/1"
    assert read_rounds(folder / "client-a.jsonl") == found[:2]


def test_infinite_numbers_become_none(tmp_path):
    path = append_record(tmp_path, record(epsilon=math.inf, audit={"x": [math.nan, 1.0]}))
    assert "NaN" not in path.read_text()
    assert "Inf" not in path.read_text()
    (found,) = read_rounds(path)
    assert found["epsilon"] is None
    assert found["audit"] == {"x": [None, 1.0]}


@pytest.mark.usefixtures("unchecked")
def test_numbers_of_numpy_and_torch_become_plain_ones(tmp_path):
    rates = {"learning_rate": np.float32(0.5), "momentum": torch.tensor([0.25, math.inf])}
    append_record(tmp_path, record(np.int64(3), epsilon=np.float32(2.5), audit=rates))
    (found,) = read_rounds(tmp_path)
    assert (found["round"], found["epsilon"]) == (3, 2.5)
    assert found["audit"] == {"learning_rate": 0.5, "momentum": [0.25, None]}


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
def test_only_the_owner_reads_them(tmp_path):
    assert stat.S_IMODE(append_record(tmp_path, record()).stat().st_mode) == 0o600


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
def test_a_folder_made_for_records_is_the_owners_alone(tmp_path):
    path = append_record(tmp_path / "records", record())
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    # A file that others could read no longer lets them.
    path.chmod(0o644)
    append_record(tmp_path / "records", record())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(sys.platform == "win32", reason="links of POSIX")
@pytest.mark.parametrize("kind", ["symlink_to", "hardlink_to", "fifo", "folder"])
def test_what_somebody_planted_is_not_written_to(tmp_path, kind):
    folder, victim = tmp_path / "records", tmp_path / "victim"
    folder.mkdir()
    victim.write_text("kept")
    place = folder / "client-a.jsonl"
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        getattr(place, kind)(victim)
    with pytest.raises(UnreadableFile, match="cannot be written"):
        append_record(folder, record())
    assert victim.read_text() == "kept"


def test_records_of_before_there_were_runs_are_read(tmp_path):
    path = append_record(tmp_path, record(run="7", task="train"))
    content = json.loads(path.read_text())
    new = {"run", "task", "unaudited", "leaks"}
    path.write_text(json.dumps({key: content[key] for key in content.keys() - new}) + "\n")
    (found,) = read_rounds(path)
    assert {key: found[key] for key in new} == {"run": "", "task": "", "unaudited": [], "leaks": []}


@pytest.mark.parametrize(
    "client", ["../../etc/x", "..", "a/b", "x" * 5000, "\udcff", "\0", "", "ü"]
)
def test_no_name_of_a_client_leaves_the_folder(tmp_path, client):
    folder = tmp_path / "records"
    path = append_record(folder, record(client=client))
    assert path.parent == folder
    assert list(folder.iterdir()) == [path]
    assert read_rounds(folder)[0]["client"] == client


def test_long_names_that_differ_late_have_files_of_their_own(tmp_path):
    for end in "ab":
        append_record(tmp_path, record(client="x" * 300 + end))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_line_that_was_cut_off_is_left_out_with_a_notice(tmp_path):
    path = append_record(tmp_path, record(1))
    append_record(tmp_path, record(2))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.warns(UserWarning, match="line 2: is no record"):
        assert [entry["round"] for entry in read_rounds(tmp_path)] == [1]
    append_record(tmp_path, record(3))
    with pytest.warns(UserWarning, match="line 2"):
        assert [entry["round"] for entry in read_rounds(tmp_path)] == [1, 3]


def test_lines_of_another_schema_are_left_out(tmp_path):
    path = append_record(tmp_path, record())
    with path.open("a") as file:
        file.write('{"schema": "labelleak/round/9"}\n\n[1]\n')
    with pytest.warns(UserWarning, match="is no record"):
        assert len(read_rounds(path)) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("round", "1"),
        ("policy", None),
        ("audit", "x"),
        ("client", 7),
        ("time", None),
        ("leaks", {}),
    ],
)
def test_a_record_with_a_value_of_another_type_is_left_out(tmp_path, field, value):
    path = append_record(tmp_path, record())
    broken = {**record().as_dict(), field: value}
    path.write_text(path.read_text() + json.dumps(broken) + "\n")
    with pytest.warns(UserWarning, match="line 2: is no record, left out"):
        assert len(read_rounds(path)) == 1


def test_nothing_to_read(tmp_path):
    with pytest.raises(UnreadableFile, match="holds no records"):
        read_rounds(tmp_path)
    with pytest.raises(UnreadableFile, match="no such file"):
        read_rounds(tmp_path / "none.jsonl")


def test_what_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UnreadableFile, match="cannot be written"):
        append_record(tmp_path / "file", record())


def test_several_processes_write_whole_lines(tmp_path):
    program = (
        "import sys\n"
        "from labelleak.federated import Policy, RoundRecord, append_record\n"
        "for number in range(30):\n"
        "    append_record(sys.argv[1], RoundRecord(number, 'a', sys.argv[2] * 5000, '', 'sent',\n"
        "                  'within', 'so', policy={}))\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), letter]) for letter in "xy"
    ]
    assert [process.wait(120) for process in running] == [0, 0]
    found = read_rounds(tmp_path)
    for letter in "xy":
        rounds = [entry["round"] for entry in found if entry["label"] == letter * 5000]
        assert rounds == list(range(30))
    assert len(found) == 60


def test_several_threads_write_whole_lines(tmp_path):
    def write(number):
        append_record(tmp_path, record(number, label="x" * 5000))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(400)))
    assert sorted(entry["round"] for entry in read_rounds(tmp_path)) == list(range(400))


def test_a_record_is_one_line_of_json(tmp_path):
    path = append_record(tmp_path, record(reason="two\nlines"))
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["reason"] == "two\nlines"

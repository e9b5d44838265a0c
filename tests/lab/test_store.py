import json
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelleak.errors import LabelLeakError, UnreadableFile
from labelleak.lab.store import FILE_NAME, Store, read_records

RECORDS = [{"key": f"k{i}", "text": "ü" * i, "value": i / 7} for i in range(5)]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def write(folder, records=RECORDS):
    with Store(folder) as store:
        for record in records:
            store.append(record)


def test_what_is_written_is_read(folder):
    write(folder)
    assert read_records(folder) == RECORDS
    assert read_records(folder / FILE_NAME) == RECORDS


def test_a_store_goes_on_where_it_was(folder):
    write(folder, RECORDS[:2])
    with Store(folder) as store:
        assert len(store) == 2
        assert "k1" in store
        assert "k2" not in store
        for record in RECORDS:
            store.append(record)
        assert store.records() == RECORDS
    assert read_records(folder) == RECORDS


def test_no_key_is_there_twice(folder):
    write(folder)
    write(folder, [{"key": "k0", "text": "another"}])
    assert read_records(folder) == RECORDS
    path = folder / FILE_NAME
    path.write_bytes(path.read_bytes() * 2)  # two runs put together by hand
    assert read_records(folder) == RECORDS


@given(end=st.integers(0, 10**6))
def test_a_file_cut_off_anywhere_keeps_its_whole_lines(tmp_path_factory, end):
    folder = tmp_path_factory.mktemp("run")
    write(folder)
    path = folder / FILE_NAME
    content = path.read_bytes()
    cut = content[: end % (len(content) + 1)]
    path.write_bytes(cut)
    whole = RECORDS[: cut.count(b"\n")]
    assert read_records(folder) == whole
    write(folder)
    assert path.read_bytes() == content


def test_one_run_at_a_time(folder):
    with Store(folder) as store:
        store.append(RECORDS[0])
        with pytest.raises(LabelLeakError, match="another run writes to it"), Store(folder):
            pass
        assert read_records(folder) == RECORDS[:1]  # reading is free
        program = f"from labelleak.lab.store import Store\nwith Store({str(folder)!r}): pass"
        other = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
        assert "another run writes to it" in other.stderr
        store.append(RECORDS[1])
    write(folder)
    assert read_records(folder) == RECORDS


def test_killed_while_writing(folder):
    """Kill -9: every line but the last is whole, and the next run has what there was."""
    program = (
        "import itertools\nfrom labelleak.lab.store import Store\n"
        f"with Store({str(folder)!r}) as store:\n"
        "    for i in itertools.count():\n"
        "        store.append({'key': str(i), 'text': 'x' * 100_000})\n"
    )
    path = folder / FILE_NAME
    writer = subprocess.Popen([sys.executable, "-c", program])
    try:
        until = time.monotonic() + 60
        while not (path.exists() and path.stat().st_size > 10**6):
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    lines = path.read_bytes().split(b"\n")
    assert [json.loads(line)["key"] for line in lines[:-1]] == [
        str(i) for i in range(len(lines) - 1)
    ]
    with Store(folder) as store:
        assert len(store) == len(lines) - 1
        store.append({"key": "next"})
    assert [r["key"] for r in read_records(folder)][-2:] == [str(len(lines) - 2), "next"]


@pytest.mark.parametrize("line", ["{", "3", "[]", '{"schema": 1}', "\x00", "[" * 100_000], ids=len)
def test_a_broken_line_is_named(folder, line):
    write(folder)
    path = folder / FILE_NAME
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[2:], ""]), encoding="utf-8")
    content = path.read_bytes()
    for attempt in (lambda: read_records(folder), Store(folder).__enter__):
        with pytest.raises(UnreadableFile, match="line 3 is not a record"):
            attempt()
    assert path.read_bytes() == content


def test_a_record_that_cannot_be_written_leaves_the_file_as_it_was(folder, monkeypatch):
    class Full:
        """A file on a disk that is full in the middle of a line."""

        def __init__(self, file):
            self.file = file

        def write(self, line):
            return self.file.write(line[:5])

        def __getattr__(self, name):
            return getattr(self.file, name)

    with Store(folder) as store:
        store.append(RECORDS[0])
        with monkeypatch.context() as patch:
            patch.setattr(store, "_file", Full(store._file))
            with pytest.raises(UnreadableFile, match="No space left"):
                store.append(RECORDS[1])
        assert "k1" not in store
        with pytest.raises(ValueError, match="JSON compliant"):
            store.append({"key": "nan", "value": float("nan")})
        store.append(RECORDS[2])
    assert read_records(folder) == [RECORDS[0], RECORDS[2]]


@pytest.mark.parametrize(
    "line", [b"[" * 100_000, b'{"key": ' + b"[" * 100_000, b"1", b'{"key": []}', b"{}", b"\xff"]
)
def test_a_line_that_is_no_record_is_named(folder, line):
    write(folder)
    path = folder / FILE_NAME
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(UnreadableFile, match="line 6 is not a record of a trial"):
        read_records(folder)


def test_no_place_for_a_store(folder):
    folder.write_text("a file")
    with pytest.raises(UnreadableFile, match="cannot be written"), Store(folder):
        pass
    with pytest.raises(UnreadableFile, match="no such file"):
        read_records(folder.with_name("none"))


def test_a_closed_store_takes_nothing(folder):
    with pytest.raises(ValueError, match="`with`"):
        Store(folder).append(RECORDS[0])
    assert not folder.exists()

import os
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from labelleak import storage
from labelleak.errors import UnreadableFile
from labelleak.storage import (
    check_file,
    check_writable,
    read_json,
    read_whole,
    what_is_at,
    write_json,
    write_whole,
)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "record.json"
    write_json(path, {"counts": [2, 1, 0, 3]})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"bad": float("nan")})
    assert read_json(path) == {"counts": [2, 1, 0, 3]}
    assert [item.name for item in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize("place", ["missing/r.json", "file/r.json", ".", "\0"])
@pytest.mark.parametrize("write", [lambda path: write_json(path, {}), check_writable])
def test_a_place_that_cannot_be_written_to_is_named(tmp_path, place, write):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UnreadableFile, match="cannot be written"):
        write(tmp_path / place)
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_a_link_is_replaced_and_never_followed(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    write_whole(link, "new\r\n")
    assert not link.is_symlink()
    assert link.read_bytes() == b"new\r\n"
    assert target.read_text() == "old"


def test_text_is_utf_8_and_bytes_stay_as_they_are(tmp_path):
    path = tmp_path / "file"
    write_whole(path, "ε \udcff")
    assert path.read_bytes() == "ε \\udcff".encode()
    write_whole(path, b"\xff\0")
    assert path.read_bytes() == b"\xff\0"


def test_inputs_are_not_writable(tmp_path):
    path = tmp_path / "input"
    path.write_text("kept")
    check_writable(tmp_path / "output", [path])
    with pytest.raises(UnreadableFile, match="would be overwritten"):
        check_writable(tmp_path / "x" / ".." / "input", [tmp_path / "none", path])
    assert [item.name for item in tmp_path.iterdir()] == ["input"]


@pytest.mark.parametrize("text", ["{", "[" * 10**5, "", "\xff"])
def test_what_is_no_json_is_one_line(tmp_path, text):
    path = tmp_path / "file"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UnreadableFile, match="is not JSON"):
        read_json(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UnreadableFile, match=r"none\.json: no such file"):
        read_json(tmp_path / "none.json")


def test_a_file_may_be_the_owners_alone(tmp_path):
    path = tmp_path / "counts.json"
    path.touch(0o644)
    write_json(path, {}, private=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    write_json(tmp_path / "other.json", {})
    plain = tmp_path / "plain"
    plain.touch()
    assert (tmp_path / "other.json").stat().st_mode == plain.stat().st_mode


def test_threads_write_into_one_folder(tmp_path):
    """Every name that is written to at first must be another one."""

    def write(number):
        path = tmp_path / f"{number}.txt"
        write_whole(path, f"{number} " * 500)
        return path.read_text() == f"{number} " * 500

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(write, range(400)))
    assert len(list(tmp_path.iterdir())) == 400


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
class TestNoFile:
    """What is no regular file may never end, or wait for ever."""

    @pytest.fixture
    def places(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "folder").mkdir()
        with socket.socket(socket.AF_UNIX) as one:
            # A long path is no address.
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(tmp_path)
                one.bind("socket")
            yield {kind: tmp_path / kind for kind in ("pipe", "folder", "socket")} | {
                "device": Path("/dev/zero")
            }

    @pytest.mark.parametrize("kind", ["pipe", "folder", "socket", "device"])
    def test_it_is_refused_as_what_it_is(self, places, tmp_path, kind):
        assert what_is_at(places[kind]) == f"a {kind}"
        link = tmp_path / "link"
        link.symlink_to(places[kind])
        for read in (read_whole, read_json, check_file):
            with pytest.raises(UnreadableFile, match=f"link: is a {kind}, and no file"):
                read(link)

    def test_a_file_that_becomes_a_pipe_is_not_waited_for(self, places, monkeypatch):
        monkeypatch.setattr(storage, "check_file", lambda _: None)
        with pytest.raises(UnreadableFile, match="pipe: is a pipe, and no file"):
            read_whole(places["pipe"])


def test_no_more_is_read_than_may_be(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"1234")
    assert read_whole(path, 4) == read_whole(path) == b"1234"
    with pytest.raises(UnreadableFile, match="file: is too large: at most 3 bytes are read"):
        read_whole(path, 3)


def test_nothing_is_nothing(tmp_path):
    assert what_is_at(tmp_path / "none") == what_is_at("a\0b") == what_is_at("x" * 5000) == ""
    with pytest.raises(UnreadableFile, match="no such file"):
        check_file("a\0b")

import pytest

from labelleak.errors import UnreadableFile
from labelleak.storage import check_writable, read_json, write_json, write_whole


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


def test_a_link_is_written_through(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    write_whole(link, "new\r\n")
    assert link.is_symlink()
    assert target.read_bytes() == b"new\r\n"


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
    with pytest.raises(UnreadableFile, match=r"none\.json: No such file"):
        read_json(tmp_path / "none.json")

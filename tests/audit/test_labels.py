import re

import pytest
import torch

from labelleak import storage
from labelleak.audit.labels import read_labels
from labelleak.errors import UnreadableFile


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"0 1 2", [0, 1, 2]),
        (b"\xef\xbb\xbf3,0\r\n\r\n  2,\r\n", [3, 0, 2]),
        (b"007\n", [7]),
        (b"1\t2\x0c3\r4", [1, 2, 3, 4]),
    ],
)
def test_labels_are_read(tmp_path, content, expected):
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    found = read_labels(path, 8)
    assert found.tolist() == expected
    assert found.dtype == torch.int64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no labels"),
        (b"\xef\xbb\xbf\n ,,\n", "holds no labels"),
        (b"0\n\n1 8", "line 3: '8' is no label: integers from 0 to 7"),
        (b"0\r\n-1", "line 2: '-1'"),
        (b"1.0", "line 1: '1.0'"),
        ("\u0663".encode(), "line 1: '\u0663'"),
        (b"0" * 25 + b"99", "line 1: '000"),
        (b"9" * 5000, "line 1: '999"),
        (b"0 1 \xff", "is no text file"),
    ],
)
def test_what_is_no_label_is_named_with_its_line(tmp_path, content, message):
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match=re.escape(message)) as error:
        read_labels(path, 8)
    assert len(str(error.value)) < 400


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_MOST_WORDS", 5)
    path = tmp_path / "labels.txt"
    path.write_text("0 1 2 3")
    with pytest.raises(UnreadableFile, match="at most 5 bytes are read"):
        read_labels(path, 8)

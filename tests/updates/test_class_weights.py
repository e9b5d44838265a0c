import pytest
import torch

from labelleak.errors import UnreadableFile
from labelleak.updates.class_weights import read_class_weights


def test_numbers_may_be_separated_in_any_way(tmp_path):
    path = tmp_path / "weights.txt"
    path.write_bytes(b"\xef\xbb\xbf1, 2.5\r\n\r\n1e-3,4\n")
    weights = read_class_weights(path)
    assert weights.dtype == torch.float64
    assert weights.tolist() == [1.0, 2.5, 0.001, 4.0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"1\n-2", "line 2: '-2' is no class weight"),
        (b"0", "line 1: '0'"),
        (b"nan", "'nan'"),
        (b"inf", "'inf'"),
        (b"1 9e999", "'9e999'"),
        (b"1;2", "'1;2'"),
        (b" \n,", "holds no class weights"),
        (b"\xff\xfe\x00", "is no text file of class weights"),
    ],
)
def test_anything_but_positive_numbers_is_named_by_its_line(tmp_path, content, words):
    path = tmp_path / "weights.txt"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match=words.replace("(", r"\(")):
        read_class_weights(path)

import json

import labelleak as ll
from command_line import labelleak


def test_the_list_holds_every_attack_with_its_source():
    rows = json.loads(labelleak("attacks", "--format", "json").out)
    assert [row["name"] for row in rows] == list(ll.list_attacks())
    assert all(row["reference"] and row["needs"] and row["gives"] for row in rows)


def test_the_list_says_of_each_attack_what_it_needs():
    text = labelleak("attacks").text
    for name, entry in ll.list_attacks().items():
        assert f"{name}: {entry.title}" in text
        assert entry.reference in text
        assert f"assumes {entry.assumes}" in text
        assert f"package {entry.package}" in text


def test_the_list_has_the_papers_own_comparison_first_and_ours_last():
    names = list(ll.list_attacks())
    assert names[:4] == ["ilrg", "rlg", "gradinversion", "idlg"]
    assert names.index("llg") < names.index("rlu") < names.index("exact")
    # Other tests may have registered attacks of their own, which come last.
    first = names.index("exact")
    assert names[first : first + 9] == [
        "exact",
        "virtual",
        "synthetic",
        "virtual-batches",
        "likelihood",
        "calibrated",
        "pooled",
        "damped",
        "mbi",
    ]

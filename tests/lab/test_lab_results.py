import pandas
import pytest

from experiments import experiment
from labelleak import lab
from labelleak.errors import LabelLeakError


def test_a_table_has_a_row_for_each_trial_and_attack(tmp_path):
    one = experiment(
        attacks=("ilrg", "gradinversion", "ebi"), baselines=("uniform",), measures=("seconds",),
        network={"name": "fcn-3"}, batch={"size": 40}, trials=2,
    )  # fmt: skip
    told = []
    results = lab.run_all([one], tmp_path, progress=lambda *event: told.append(event))
    table = results.to_pandas()
    assert told[-1] == ("trials", 2, 2)
    assert table["attack"].tolist() == ["ilrg", "gradinversion", "ebi", "uniform"] * 2
    assert not table["found"].any()
    for row, record in zip(table.to_dict("records")[::4], results.records, strict=True):
        assert row["accuracy"] == record["attacks"]["ilrg"]["counts"]["accuracy"]
        assert row["seconds"] == record["measures"]["ilrg.seconds"]
        assert (row["trial"], row["code"]) == (record["trial"], one.code)
    means = results.summary()["rows"][0]["metrics"]["ilrg.accuracy"]["ours"]
    assert means == pytest.approx(table[table["attack"] == "ilrg"]["accuracy"].mean())


def test_what_was_there_is_told_and_other_experiments_are_left_out(tmp_path):
    one, other = experiment(trials=1), experiment("b", network={"name": "fcn-2"}, trials=1)
    lab.run_all([one], tmp_path)
    both = lab.run_all([one, other], tmp_path)
    assert both.to_pandas().set_index("experiment")["found"].to_dict() == {"a": True, "b": False}
    read = lab.read_results([other], tmp_path)
    assert [row["experiment"] for row in read.rows()] == ["b"]
    assert read.found == {record["key"] for record in both.records}


def test_without_pandas_the_message_says_so(tmp_path, monkeypatch):
    results = lab.Results((), (), {}, frozenset())
    assert isinstance(results.to_pandas(), pandas.DataFrame)
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(LabelLeakError, match="to_pandas needs pandas: pip install pandas"):
        results.to_pandas()


def test_a_name_that_the_lab_does_not_have():
    with pytest.raises(AttributeError, match=r"'labelleak\.lab' has no attribute 'nothing'"):
        _ = lab.nothing

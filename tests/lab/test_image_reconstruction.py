import hashlib
import io
import json

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from labelleak.errors import UnreadableFile
from labelleak.lab.definition import Experiment
from labelleak.lab.keys import TRIAL_SCHEMA
from labelleak.lab.store import Store, read_records
from labelleak.lab.trial import run_trial


def experiment(labels="restored", **fields):
    return Experiment.model_validate(
        {
            "name": labels,
            "data": "mnist-sample",
            "network": {"name": "fcn-2"},
            "batch": {"size": 8},
            "attacks": ["ilrg"],
            "inversion": {"labels": labels, "iterations": 20},
            "trials": 1,
            "range": "all",
            **fields,
        }
    )


@pytest.fixture(scope="module")
def records():
    return {
        name: run_trial(experiment(name), 0) for name in ("shared", "free", "restored", "given")
    }


def picture(record, what):
    content = record["files"][record["pictures"]["files"][what]]
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image) / 255


def test_pictures_show_the_six_best_over_the_true_ones(records):
    for record in records.values():
        pictures = record["pictures"]
        ranked = sorted(range(8), key=lambda index: -pictures["psnr"][index])
        assert pictures["best"] == ranked[:6]
        found, true = picture(record, "found"), picture(record, "true")
        assert found.shape == true.shape == (28 + 4, 6 * 30 + 2)
        for place, index in enumerate(pictures["best"]):
            part = np.s_[2:30, 2 + 30 * place : 30 + 30 * place]
            error = ((found[part] - true[part]) ** 2).mean()
            assert -10 * np.log10(error) == pytest.approx(pictures["psnr"][index], abs=0.2)
        assert picture(record, "all").shape == picture(record, "all_true").shape
        assert record["measures"]["psnr"] == pytest.approx(np.mean(pictures["psnr"]))
        best = [pictures["psnr"][index] for index in ranked[:6]]
        assert record["measures"]["psnr_best6"] == pytest.approx(np.mean(best))


def test_right_restored_labels_are_as_good_as_the_true_ones(records):
    restored, given = records["restored"], records["given"]
    assert restored["attacks"]["ilrg"]["counts"]["exact"]
    assert restored["pictures"]["exact"] is given["pictures"]["exact"] is True
    assert records["free"]["pictures"]["exact"] is None
    assert restored["measures"] == given["measures"]
    assert restored["measures"]["psnr"] > records["shared"]["measures"]["psnr"]


def test_a_store_keeps_pictures_in_files_of_their_own(records, tmp_path):
    record = records["restored"]
    with Store(tmp_path) as store:
        store.append(record)
    (kept,) = read_records(tmp_path)
    assert kept == {name: value for name, value in record.items() if name != "files"}
    for name in record["pictures"]["files"].values():
        assert (tmp_path / name).read_bytes() == record["files"][name]


def test_a_record_does_not_come_without_its_pictures(records, tmp_path):
    (tmp_path / "pictures").write_text("in the way")
    with Store(tmp_path) as store, pytest.raises(UnreadableFile, match="cannot be written"):
        store.append(records["restored"])
    assert read_records(tmp_path) == []


# The name, the number of trials, and what experiments had no field for at first.
NEWER = {
    "loss",
    "targets",
    "name",
    "trials",
    "inversion",
    "time_limit",
    "baselines",
    "local",
    "auxiliary_per_class",
} | {"range"}


def test_keys_of_experiments_without_inversion_are_as_they_were():
    plain = experiment(inversion=None)
    content = plain.model_dump(mode="json", exclude=NEWER)
    text = json.dumps([TRIAL_SCHEMA, content, 3], sort_keys=True, separators=(",", ":"))
    assert plain.definition_key(3) == hashlib.sha256(text.encode()).hexdigest()
    assert experiment("free").definition_key(3) != experiment("shared").definition_key(3)


def test_inversion_of_a_defended_gradient_is_refused():
    with pytest.raises(ValidationError, match="uses an undefended gradient"):
        experiment(defense={"name": "sign"})

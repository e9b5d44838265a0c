import json

import pytest
import torch
from PIL import Image

from inverting import SHAPE, Client
from labelleak.errors import UnreadableFile
from labelleak.inversion import IG, assess, match
from labelleak.inversion.running import (
    SCHEMA,
    InversionSettings,
    check_run,
    run_inversion,
    write_run,
)


@pytest.fixture
def client(digits):
    return Client(digits, [4, 9])


@pytest.fixture
def settings(digits):
    return InversionSettings(IG(iterations=40), SHAPE, digits.mean, digits.std, seed=3)


def test_images_are_put_into_the_order_of_the_true_ones(client, settings):
    run = run_inversion(client.seen, settings, labels=client.labels, truth=client.truth)
    assert torch.equal(run.images, run.found.images[run.order])
    assert match(run.images, client.truth).tolist() == [0, 1]
    assert run.quality == assess(run.images, client.truth)
    assert (run.settings, run.batch_size) == (settings, 2)
    assert run.seconds > 0


def test_without_the_truth_there_is_no_order_and_no_score(client, settings):
    run = run_inversion(client.seen, settings)
    assert torch.equal(run.images, run.found.images)
    assert (run.order, run.quality) == (None, None)
    record = run.as_dict({"before": "b"}, {"name": "fcn-2"}, "cpu")
    assert (record["order"], record["score"]) == (None, None)


def test_the_record_is_plain_json(client, settings):
    run = run_inversion(client.seen, settings, labels=client.labels, truth=client.truth)
    record = run.as_dict({"before": "b"}, {"name": "fcn-2"}, "cpu")
    content = json.loads(json.dumps(record, allow_nan=False))
    assert content["schema"] == SCHEMA
    assert content["settings"] == {
        "iterations": 40, "learning_rate": 0.1, "total_variation": 1e-4, "restarts": 1, "seed": 3,
        "dtype": "float32",
    }  # fmt: skip
    assert content["result"]["attack"] == "exact"
    assert content["order"] == run.order.tolist()
    assert content["score"]["psnr"] == list(run.quality.psnr)


def test_every_image_and_the_record_are_written(client, settings, tmp_path):
    images = client.truth
    folder = tmp_path / "out" / "pictures"
    check_run(folder, SHAPE, images)
    assert not folder.exists()
    whole = write_run(folder, images, {"a": 1})
    assert json.loads((folder / "record.json").read_text()) == {"a": 1}
    with Image.open(whole) as picture:
        assert picture.size == (2 * 30 + 2, 30 + 2)
    assert sorted(path.name for path in folder.iterdir()) == [
        "image-000.png", "image-001.png", "images.png", "record.json"
    ]  # fmt: skip


def test_a_folder_that_cannot_be_written_to_is_told_before_and_after(client, tmp_path):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "pictures"
    with pytest.raises(UnreadableFile, match="file is no folder"):
        check_run(folder, SHAPE, None)
    with pytest.raises(UnreadableFile, match="cannot be written: Not a directory"):
        write_run(folder, client.truth, {})

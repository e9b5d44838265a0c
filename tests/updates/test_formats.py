"""Shards by their index, files of other formats, and what a file may claim at most."""

import json
import zipfile

import numpy as np
import pytest
import torch
from update_files import refused, save, tensors

from labelleak import observe, observe_update
from labelleak.errors import InvalidObservation, MissingKnowledge, UnreadableFile
from labelleak.training import LocalTraining
from labelleak.updates import Limits, open_tensors, read_observation

STEP = {"training": LocalTraining(learning_rate=0.1, steps=1)}


def sharded(folder, content, ending=".safetensors", stem="model"):
    """Two shards and their index, as transformers writes a model that is large."""
    parts = [{}, {}]
    for number, (name, value) in enumerate(content.items()):
        parts[number % 2][name] = value
    places = {}
    for number, part in enumerate(parts, 1):
        file = f"{stem}-{number:05d}-of-00002{ending}"
        save(part, folder / file)
        places |= dict.fromkeys(part, file)
    path = folder / f"{stem}{ending}.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": places}))
    return path


class TestShards:
    @pytest.mark.parametrize("kind", ["gradients", "weights"])
    def test_of_both(self, tmp_path, ending, kind):
        ending = ".bin" if ending == ".pt" else ending
        paths = [sharded(tmp_path, tensors(n), ending, f"model{n}") for n in (0, 1)]
        told = STEP if kind == "weights" else {}
        observation = read_observation(*paths, kind=kind, **told)
        if kind == "weights":
            expected = observe_update(None, tensors(0), tensors(1), learning_rate=0.1)
        else:
            expected = observe(tensors(0), tensors(1))
        assert observation.head.name == "fc"
        assert torch.equal(observation.gradient.weight, expected.gradient.weight)
        assert torch.equal(observation.gradient.bias, expected.gradient.bias)

    def test_shapes_and_values(self, tmp_path):
        file = open_tensors(sharded(tmp_path, tensors(0)))
        assert file.shapes == {name: tuple(v.shape) for name, v in tensors(0).items()}
        for name, value in tensors(0).items():
            assert torch.equal(file.tensor(name), value)

    def test_wrappers(self, tmp_path):
        content = {f"module.{name}": value for name, value in tensors(0).items()}
        assert open_tensors(sharded(tmp_path, content)).shapes.keys() == tensors(0).keys()

    @pytest.mark.parametrize(
        "file",
        ["../a.safetensors", "/tmp/a.safetensors", "x/a.safetensors", "..", "a.index.json",
         "a.npz", "a.pkl", "", "a\\..\\b.safetensors\x00", ".safetensors/../../b.safetensors"],
    )  # fmt: skip
    def test_files_that_are_elsewhere_or_of_another_kind(self, tmp_path, before, file):
        path = sharded(tmp_path, tensors(0))
        content = json.loads(path.read_text())
        content["weight_map"]["fc.weight"] = file
        path.write_text(json.dumps(content))
        refused(before, path, "shards are .safetensors or .bin files beside it|no such file")

    def test_a_shard_that_is_missing(self, tmp_path, before):
        path = sharded(tmp_path, tensors(0))
        (tmp_path / "model-00002-of-00002.safetensors").unlink()
        refused(before, path, "model-00002-of-00002.safetensors: no such file")

    def test_a_tensor_that_is_not_where_it_says(self, tmp_path, before):
        path = sharded(tmp_path, tensors(0))
        content = json.loads(path.read_text())
        content["weight_map"]["more.weight"] = "model-00001-of-00002.safetensors"
        path.write_text(json.dumps(content))
        refused(before, path, "'more.weight' is not in 'model-00001-of-00002.safetensors'")

    @pytest.mark.parametrize(
        "content",
        ["", "{", "[]", "null", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}',
         '{"weight_map": {}}', "[" * 100_000, '{"weight_map": {"a": null}}'],
    )  # fmt: skip
    def test_no_index(self, tmp_path, before, content):
        (tmp_path / "model.safetensors.index.json").write_text(content)
        refused(
            before,
            tmp_path / "model.safetensors.index.json",
            "is not JSON|no weight_map|no named tensors",
        )

    def test_limits(self, tmp_path, before):
        path = sharded(tmp_path, tensors(0))
        refused(before, path, "an index of at most 9 bytes", limits=Limits(index_bytes=9))
        refused(before, path, "names 2 files: at most 1", limits=Limits(shards=1))
        refused(before, path, "holds 6 tensors: at most 3 are", limits=Limits(tensors=3))


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("model.h5", r"\.h5 files hold weights of Keras: .* numpy\.savez"),
        ("model.weights.h5", "weights of Keras"),
        ("model.keras", "weights of Keras"),
        ("model.hdf5", "weights of Keras"),
        ("model.msgpack", r"Flax in MessagePack: .* safetensors\.flax\.save_file"),
        ("model.pkl", "a pickle, and reading it could run its code: .* numpy.savez"),
        ("MODEL.PKL", "a pickle"),
        ("model.pickle", "a pickle"),
        ("model.joblib", "a pickle"),
        ("model.npy", "one array without a name: .* numpy.savez"),
        ("model.onnx", "made for inference"),
        ("model.gguf", "made for inference"),
    ],
)
@pytest.mark.parametrize("side", ["before", "update"])
def test_other_formats_are_named(tmp_path, before, name, match, side):
    (tmp_path / name).write_bytes(b"anything")
    paths = {"before": before, "update": before, side: tmp_path / name}
    refused(**paths, match=match)


def test_another_format_that_is_not_there(tmp_path, before):
    refused(before, tmp_path / "none.h5", "no such file")


class TestLimits:
    def test_tensors(self, tmp_path, before, ending):
        path = save(tensors(0), tmp_path / f"update{ending}")
        refused(before, path, "holds 6 tensors: at most 5 are read", limits=Limits(tensors=5))

    def test_names(self, tmp_path, before, ending):
        path = save(tensors(0), tmp_path / f"update{ending}")
        with pytest.raises(UnreadableFile, match="a tensor's name is too long"):
            open_tensors(path, limits=Limits(name_length=10))
        open_tensors(path, limits=Limits(name_length=17))

    @pytest.mark.parametrize("ending", [".npz", ".pt"])
    def test_members_of_an_archive(self, tmp_path, before, ending):
        path = tmp_path / f"update{ending}"
        if ending == ".npz":
            np.savez(path, **{name: value.numpy() for name, value in tensors(0).items()})
        else:
            torch.save(tensors(0), path)
        refused(before, path, r"an archive of \d+ files: at most 5", limits=Limits(members=5))

    def test_the_directory_of_an_archive_is_not_read_if_it_is_too_large(self, tmp_path, before):
        path = tmp_path / "update.npz"
        with zipfile.ZipFile(path, "w") as archive:
            for number in range(3000):
                archive.writestr(f"{number:050}.npy", b"")
        refused(before, path, "an archive of too many files: at most 5", limits=Limits(members=5))

    def test_a_table_of_tensors(self, tmp_path, before):
        path = save(tensors(0), tmp_path / "update.safetensors")
        refused(before, path, "at most 99 are read", limits=Limits(header_bytes=99))

    def test_the_header_of_an_array(self, tmp_path, before):
        name = "x" * 500
        np.savez(tmp_path / "update.npz", **{"fc.weight": np.zeros(3, np.dtype([(name, "f4")]))})
        refused(before, tmp_path / "update.npz", "an array with a header of .* characters: at most")

    def test_steps_of_a_pickle(self, tmp_path, before):
        path = save(tensors(0), tmp_path / "update.pt")
        refused(before, path, "holds too many tensors or other objects", limits=Limits(opcodes=100))
        assert open_tensors(path, limits=Limits(opcodes=6 * 60)).shapes

    def test_a_pickle(self, tmp_path, before):
        path = save(tensors(0), tmp_path / "update.pt")
        limits = Limits(pickle_bytes=100)
        refused(before, path, "data.pkl' in it claims .* at most 100 are read", limits=limits)


class TestDifferences:
    @pytest.mark.parametrize("rate", [0.1, 1e-3])
    def test_are_the_weights_after_less_those_before(self, tmp_path, before, ending, rate):
        start = tensors(0)
        after = {name: value + rate * tensors(1)[name] for name, value in start.items()}
        change = {name: value - start[name] for name, value in after.items()}
        told = {"training": LocalTraining(learning_rate=rate, batch_size=4, steps=1)}
        observation = read_observation(
            before, save(change, tmp_path / f"change{ending}"), kind="difference", **told
        )
        expected = observe_update(None, start, after, training=told["training"])
        torch.testing.assert_close(observation.gradient.weight, expected.gradient.weight)
        torch.testing.assert_close(observation.gradient.bias, expected.gradient.bias)
        assert observation.batch_size == 4
        ratio = observation.gradient.rounding / expected.gradient.rounding
        assert 0.5 < ratio < 3

    def test_in_a_coarse_format_are_less_exact(self, tmp_path, before):
        change = {name: 1e-3 * value for name, value in tensors(1).items()}
        found = [
            read_observation(
                before,
                save({n: v.to(dtype) for n, v in change.items()}, tmp_path / "change.pt"),
                kind="difference",
                **STEP,
            ).gradient
            for dtype in (torch.float32, torch.bfloat16)
        ]
        error = (found[1].weight - found[0].weight).square().mean().sqrt()
        assert error < found[1].rounding < 40 * error
        assert found[0].rounding < 0.1 * found[1].rounding

    def test_of_which_one_copy_changed(self, tmp_path, ending):
        before = {f"{key}.{n}": v for key in ("a", "b") for n, v in tensors(0).items()}
        change = {name: torch.zeros_like(value) for name, value in before.items()}
        change |= {f"b.{name}": value for name, value in tensors(1).items()}
        observation = read_observation(
            save(before, tmp_path / f"before{ending}"),
            save(change, tmp_path / f"change{ending}"),
            kind="difference",
            **STEP,
        )
        assert observation.head.name == "b.fc"

    def test_need_a_learning_rate(self, before):
        told = {"kind": "difference", "training": LocalTraining(steps=1)}
        refused(before, before, "--learning-rate F", MissingKnowledge, **told)

    def test_of_nothing(self, tmp_path, before):
        zeros = {name: torch.zeros_like(value) for name, value in tensors(0).items()}
        path = save(zeros, tmp_path / "change.safetensors")
        refused(before, path, "zero everywhere", InvalidObservation, kind="difference", **STEP)


def test_present_classes_and_instances(tmp_path, before):
    update = save(tensors(1), tmp_path / "update.safetensors")
    observation = read_observation(
        before,
        update,
        present_classes=torch.tensor([0, 3]),
        training=LocalTraining(batch_size=8),
        instances=6,
    )
    assert observation.present_classes.tolist() == [0, 3]
    assert observation.num_instances == 6

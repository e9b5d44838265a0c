import os
import struct
from itertools import product

import pytest
import torch
from update_files import ENDINGS, MODEL, entry, raw_safetensors, save, tensors

from labelleak.loss import Loss
from labelleak.training import LocalTraining
from labelleak.updates import files, observe, observe_update, open_tensors, read_observation


class TestRoundTrip:
    @pytest.mark.parametrize("endings", list(product(ENDINGS, ENDINGS)), ids=" ".join)
    def test_gradients(self, tmp_path, endings):
        state, gradients = tensors(0), tensors(1)
        before = save(state, tmp_path / f"before{endings[0]}")
        update = save(gradients, tmp_path / f"update{endings[1]}")
        observation = read_observation(
            before,
            update,
            loss=Loss(label_smoothing=0.1),
            training=LocalTraining(batch_size=24),
        )
        expected = observe(state, gradients)
        assert observation.head.name == "fc"
        for part in ("head", "gradient"):
            found, wanted = getattr(observation, part), getattr(expected, part)
            assert torch.equal(found.weight, wanted.weight)
            assert torch.equal(found.bias, wanted.bias)
        assert observation.batch_size == 24
        assert observation.loss.label_smoothing == 0.1
        assert observation.model is None
        assert observation.gradients is None

    def test_weights(self, tmp_path, ending):
        state, after = tensors(0), tensors(1)
        observation = read_observation(
            save(state, tmp_path / f"before{ending}"),
            save(after, tmp_path / f"after{ending}"),
            kind="weights",
            training=LocalTraining(learning_rate=0.05, steps=3),
        )
        expected = observe_update(
            None, state, after, training=LocalTraining(learning_rate=0.05, steps=3)
        )
        assert torch.equal(observation.gradient.weight, expected.gradient.weight)
        assert torch.equal(observation.gradient.bias, expected.gradient.bias)
        assert observation.local_steps == 3

    def test_local_steps_of_gradients(self, tmp_path, before, ending):
        update = save(tensors(1), tmp_path / f"update{ending}")
        observation = read_observation(before, update, training=LocalTraining(steps=4))
        assert observation.local_steps == 4
        assert torch.equal(observation.gradient.weight, tensors(1)["fc.weight"])

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_dtypes(self, tmp_path, ending, dtype):
        before = save(tensors(0, dtype), tmp_path / f"before{ending}")
        update = save(tensors(1), tmp_path / f"update{ending}")
        observation = read_observation(before, update)
        assert observation.head.weight.dtype == dtype
        assert torch.equal(observation.head.weight, tensors(0, dtype)["fc.weight"])
        assert observation.gradient.weight.dtype == torch.float32

    @pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "gradients"])
    def test_a_state_dict_inside(self, tmp_path, before, key):
        content = {"epoch": 3, "step": torch.tensor(7.0), key: tensors(1), "note": "hello"}
        observation = read_observation(before, save(content, tmp_path / "update.pt"))
        assert torch.equal(observation.gradient.weight, tensors(1)["fc.weight"])

    @pytest.mark.parametrize("key", ["network", "state_dict"])
    @pytest.mark.parametrize("beside", [{}, {"loss": torch.ones(3), "step": torch.tensor(7.0)}])
    def test_a_state_dict_beside_statistics(self, tmp_path, before, key, beside):
        content = {**beside, "optimizer": {"momentum": torch.ones(4)}, key: tensors(1)}
        observation = read_observation(before, save(content, tmp_path / "update.pt"))
        assert torch.equal(observation.gradient.weight, tensors(1)["fc.weight"])

    def test_statistics_beside_a_state_dict(self, tmp_path, before):
        content = {**tensors(1), "model": {"step": torch.tensor(7.0)}}
        observation = read_observation(before, save(content, tmp_path / "update.pt"))
        assert torch.equal(observation.gradient.weight, tensors(1)["fc.weight"])

    def test_parameters_that_require_grad(self, tmp_path, before):
        content = {name: torch.nn.Parameter(value) for name, value in tensors(1).items()}
        observation = read_observation(before, save(content, tmp_path / "update.pt"))
        assert torch.equal(observation.gradient.weight, tensors(1)["fc.weight"])
        assert not observation.gradient.weight.requires_grad

    def test_a_module_s_state_dict(self, tmp_path):
        layers = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6))
        layers.append(torch.nn.Linear(6, 3))
        before = save(layers.state_dict(), tmp_path / "before.pt")
        gradients = {name: value.detach() + 1.0 for name, value in layers.named_parameters()}
        observation = read_observation(before, save(gradients, tmp_path / "update.pth"))
        assert observation.head.name == "2"
        assert torch.equal(observation.gradient.weight, layers[2].weight + 1.0)

    def test_tensors_that_are_views(self, tmp_path, before):
        pool = torch.arange(100.0)
        content = {"fc.weight": pool[3:63].reshape(6, 10).T[::2], "fc.bias": pool[90::2]}
        observation = read_observation(before, save(content, tmp_path / "update.pt"))
        assert torch.equal(observation.gradient.weight, content["fc.weight"])
        assert torch.equal(observation.gradient.bias, content["fc.bias"])

    def test_tensors_that_share_their_data(self, tmp_path, before):
        content = {**tensors(1), "decoder.weight": tensors(1)["fc.weight"]}
        content["fc.weight"] = content["decoder.weight"]
        observation = read_observation(before, save(content, tmp_path / "update.pt"))
        assert torch.equal(observation.gradient.weight, content["fc.weight"])

    @pytest.mark.parametrize("wrapped", ["before", "update", "both"])
    def test_wrappers(self, tmp_path, ending, wrapped):
        def named(seed, part):
            prefix = "module." if wrapped in (part, "both") else ""
            return {prefix + name: value for name, value in tensors(seed).items()}

        before = save(named(0, "before"), tmp_path / f"before{ending}")
        update = save(named(1, "update"), tmp_path / f"update{ending}")
        observation = read_observation(before, update)
        assert observation.head.name == "fc"
        assert torch.equal(observation.gradient.weight, tensors(1)["fc.weight"])

    def test_a_head_without_bias(self, tmp_path, ending):
        state = {name: value for name, value in tensors(0).items() if name != "fc.bias"}
        observation = read_observation(
            save(state, tmp_path / f"before{ending}"),
            save(tensors(1), tmp_path / f"update{ending}"),
        )
        assert observation.head.bias is None
        assert not observation.has_bias

    def test_no_bias_gradient(self, tmp_path, before, ending):
        gradients = {"fc.weight": tensors(1)["fc.weight"]}
        observation = read_observation(before, save(gradients, tmp_path / f"update{ending}"))
        assert observation.gradient.bias is None

    def test_no_bias_after_the_steps(self, tmp_path, before, ending):
        after = {"fc.weight": tensors(1)["fc.weight"]}
        options = {"kind": "weights", "training": LocalTraining(learning_rate=0.1, steps=1)}
        update = save(after, tmp_path / f"update{ending}")
        observation = read_observation(before, update, **options)
        expected = observe_update(None, tensors(0), after, learning_rate=0.1)
        assert observation.gradient.bias is None
        assert torch.equal(observation.gradient.weight, expected.gradient.weight)
        assert observation.gradient.rounding == pytest.approx(expected.gradient.rounding)

    @pytest.mark.parametrize("prefix", ["", "module."])
    def test_a_named_head(self, tmp_path, ending, prefix):
        state = {prefix + name: value for name, value in tensors(0).items()}
        before = save(state, tmp_path / f"before{ending}")
        update = save(tensors(1), tmp_path / f"update{ending}")
        for head in ("hidden", "module.hidden", "module.hidden.weight", "_orig_mod.hidden"):
            observation = read_observation(before, update, head=head)
            assert observation.head.name == "hidden"
            assert torch.equal(observation.gradient.weight, tensors(1)["hidden.weight"])

    def test_paths_may_be_strings_and_endings_upper_case(self, tmp_path, before):
        update = tmp_path / "update.PT"
        torch.save(tensors(1), update)
        assert read_observation(str(before), str(update)).classes == 5

    def test_the_update_may_hold_the_head_alone(self, tmp_path, before, ending):
        gradients = {name: value for name, value in tensors(1).items() if name.startswith("fc")}
        observation = read_observation(before, save(gradients, tmp_path / f"update{ending}"))
        assert torch.equal(observation.gradient.weight, gradients["fc.weight"])


class TestOnlyTheHeadIsRead:
    def test_open_tensors_reads_none(self, tmp_path, ending, monkeypatch):
        path = save(tensors(0), tmp_path / f"model{ending}")
        reads = record_reads(monkeypatch)
        opened = open_tensors(path)
        assert opened.path == path
        assert opened.shapes == MODEL
        assert reads == []
        assert torch.equal(opened.tensor("conv.weight"), tensors(0)["conv.weight"])
        assert reads == ["conv.weight"]

    def test_read_observation(self, tmp_path, ending, monkeypatch):
        before = save(tensors(0), tmp_path / f"before{ending}")
        update = save(tensors(1), tmp_path / f"update{ending}")
        reads = record_reads(monkeypatch)
        read_observation(before, update)
        assert reads == ["fc.weight", "fc.bias"] * 2

    def test_what_else_there_is_may_be_broken(self, tmp_path, before, ending):
        gradients = tensors(1)
        gradients["conv.weight"].fill_(float("nan"))
        gradients["hidden.weight"] = torch.zeros(2, dtype=torch.int64)
        gradients["hidden.bias"] = torch.zeros(3, dtype=torch.complex64)
        if ending == ".safetensors":
            gradients["gate.weight"] = torch.zeros(3, 3).to(torch.float8_e4m3fn)
        else:
            gradients["embedding.weight"] = torch.eye(3).to_sparse()
            gradients["huge.weight"] = torch.zeros(1).expand(10**6, 10**6)
        read_observation(before, save(gradients, tmp_path / f"update{ending}"))

    def test_gigabytes_of_other_tensors_take_no_memory(self, tmp_path):
        resource = pytest.importorskip("resource")
        size = 1 << 30
        header = {
            "conv.weight": entry(size // 4),
            "fc.weight": entry(2, 3, offsets=[size, size + 24]),
        }
        path = raw_safetensors(tmp_path / "model.safetensors", header)
        with path.open("ab") as file:
            # A hole, which takes no space on the disk.
            file.truncate(file.tell() + size)
            file.seek(0, os.SEEK_END)
            file.write(struct.pack("<6f", *range(6)))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert open_tensors(path).tensor("fc.weight").sum() == 15.0
        # In KiB, or in bytes on macOS.
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < size / 8 / 1024


def record_reads(monkeypatch):
    reads = []

    open_file = files._open

    def opened(*arguments):
        shapes, read, usual = open_file(*arguments)
        return shapes, lambda name: (reads.append(name), read(name))[1], usual

    monkeypatch.setattr(files, "_open", opened)
    return reads

"""NumPy arrays, in memory and in files; kernels of Keras and Flax; tensors in order."""

import io
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from update_files import MODEL, refused, save, tensors
from update_models import named, train

from labelleak import observe, observe_update, restore
from labelleak.errors import InvalidObservation
from labelleak.training import LocalTraining
from labelleak.updates import Limits, open_tensors, read_observation
from labelleak.updates.layout import as_torch

STEP = {"kind": "weights", "training": LocalTraining(learning_rate=0.1, steps=1)}


def arrays(named_tensors):
    return {name: value.numpy() for name, value in named_tensors.items()}


class TestInMemory:
    def test_gradients_by_name_and_in_order(self, model):
        gradients = named(model)
        for given_ in (arrays(gradients), list(arrays(gradients).values())):
            observation = observe(model, given_)
            assert torch.equal(observation.gradient.weight, gradients["3.weight"])
            assert torch.equal(observation.gradient.bias, gradients["3.bias"])
            assert observation.gradients.keys() == gradients.keys()

    @pytest.mark.parametrize("before", ["dict", "arrays", "list"])
    @pytest.mark.parametrize("after", ["dict", "arrays", "list", "list of arrays"])
    def test_weights(self, model, before, after):
        state, (end, gradients) = model.state_dict(), train(model, 1, 0.1)
        forms = {
            "dict": dict,
            "arrays": arrays,
            "list": lambda part: list(part.values()),
            "list of arrays": lambda part: list(arrays(part).values()),
        }
        observation = observe_update(
            model, forms[before](state), forms[after](end), learning_rate=0.1
        )
        assert observation.head.name == "3"
        assert (observation.gradient.weight - gradients[0]["3.weight"]).norm() < 1e-5
        assert observation.gradients.keys() == gradients[0].keys()

    def test_parameters_without_the_statistics_of_batchnorm(self, model):
        end, gradients = train(model, 1, 0.1)
        sent = [value for name, value in end.items() if name in gradients[0]]
        observation = observe_update(model, model.state_dict(), sent, learning_rate=0.1)
        assert (observation.gradient.weight - gradients[0]["3.weight"]).norm() < 1e-5

    def test_lists_on_both_sides_and_no_names(self, model):
        state, (end, gradients) = model.state_dict(), train(model, 1, 0.1)
        lists = [
            [value for name, value in part.items() if name in gradients[0]] for part in (state, end)
        ]
        observation = observe_update(None, *lists, learning_rate=0.1)
        assert observation.head.name == "arr_4"
        assert torch.equal(observation.head.bias, state["3.bias"])
        assert (observation.gradient.weight - gradients[0]["3.weight"]).norm() < 1e-5

    @pytest.mark.parametrize("number", [0, 1, 5, 7, 8])
    def test_a_wrong_number(self, model, number):
        sent = [np.ones(1)] * number
        with pytest.raises(InvalidObservation, match=rf"{number} arrays in order for 9 tensors"):
            observe_update(model, model.state_dict(), sent, learning_rate=0.1)

    def test_another_order(self, model):
        sent = list(arrays(train(model, 1, 0.1)[0]).values())
        sent[0], sent[1] = sent[1], sent[0]
        with pytest.raises(InvalidObservation, match=r"array 0 is 20, and '0\.weight' .* 20x6"):
            observe_update(model, model.state_dict(), sent, learning_rate=0.1)

    @pytest.mark.parametrize(
        "change",
        [
            lambda array: array[::-1][::-1],
            np.asfortranarray,
            lambda array: array.astype(">f4"),
            lambda array: array.astype(np.float64),
            lambda array: np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape),
            lambda array: [array][0].copy(order="F")[:, ::1],
        ],
        ids=["reversed twice", "Fortran", "big-endian", "double", "read-only", "view"],
    )
    def test_arrays_of_any_layout(self, model, change):
        gradients = arrays(named(model))
        expected = gradients["3.weight"].copy()
        gradients["3.weight"] = change(gradients["3.weight"])
        found = observe(model, gradients).gradient.weight
        assert torch.equal(found.float(), torch.from_numpy(expected))

    def test_bfloat16_of_jax(self, model, tmp_path):
        """NumPy has no such type, and a file of it says that entries are two bytes."""
        gradients = named(model)
        half = gradients["3.weight"].bfloat16()
        sent = {**gradients, "3.weight": half.view(torch.int16).numpy().view("V2")}
        found = observe(model, sent).gradient.weight
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, half)
        np.savez(tmp_path / "update.npz", **sent)
        assert torch.equal(open_tensors(tmp_path / "update.npz").tensor("3.weight"), half)

    @pytest.mark.parametrize("dtype", [object, "U3", "M8[s]", [("a", "f4")]])
    def test_arrays_of_something_else(self, model, dtype):
        gradients = {**named(model), "3.weight": np.zeros((5, 20), dtype=dtype)}
        with pytest.raises(InvalidObservation, match=r"3\.weight is an array of .* needed"):
            observe(model, gradients)

    def test_arrays_that_are_changed_later(self, model):
        """They may share memory, and nothing is written to it."""
        gradients = arrays(named(model))
        kept = {name: value.copy() for name, value in gradients.items()}
        restore(observe(model, gradients, batch_size=4), "idlg")
        assert all(np.array_equal(kept[name], value) for name, value in gradients.items())


def keras_like(state, names, *, kernel="kernel", separator="/", suffix=""):
    """The two layers of a state dict as Keras or Flax keep them."""
    return {
        f"{name}{separator}{kind if kind == 'bias' else kernel}{suffix}": np.ascontiguousarray(
            state[f"{number}.{kind}"].numpy().T
        )
        for name, number in zip(names, ("0", "3"), strict=True)
        for kind in ("weight", "bias")
    }


STYLES = {
    "Keras 3": (("sequential/dense", "sequential/dense_1"), {}),
    "Keras 2": (("dense", "dense_1"), {"suffix": ":0"}),
    "Flax": (("params.Dense_0", "params.Dense_1"), {"separator": "."}),
    "renamed": (("dense", "dense_1"), {"kernel": "weight", "separator": "."}),
    "functional": (("model/hidden", "model/logits"), {}),
}


@pytest.mark.parametrize("style", STYLES)
class TestKernels:
    @pytest.fixture
    def pair(self, model, style):
        state, (end, gradients) = model.state_dict(), train(model, 1, 0.1)
        names, options = STYLES[style]
        before, after = (keras_like(part, names, **options) for part in (state, end))
        return before, after, gradients[0]["3.weight"], names[1].replace("/", ".")

    def assert_read(self, observation, expected, name):
        assert observation.head.name in (name, name.removeprefix("params."))
        assert observation.gradient.weight.shape == (5, 20)
        assert (observation.gradient.weight - expected).norm() < 1e-5

    @pytest.mark.parametrize("ending", [".npz", ".safetensors"])
    @pytest.mark.parametrize("named_head", [True, False])
    def test_files(self, tmp_path, pair, ending, named_head):
        before, after, expected, name = pair
        paths = [tmp_path / f"{part}{ending}" for part in ("before", "after")]
        for path, part in zip(paths, (before, after), strict=True):
            if ending == ".npz":
                np.savez(path, **part)
            else:
                save({key: torch.from_numpy(value) for key, value in part.items()}, path)
        observation = read_observation(*paths, head=name if named_head else None, **STEP)
        self.assert_read(observation, expected, name)

    def test_in_memory(self, pair):
        before, after, expected, name = pair
        self.assert_read(observe_update(None, before, after, learning_rate=0.1), expected, name)

    def test_in_order(self, pair):
        before, after, expected, _ = pair
        lists = [list(part.values()) for part in (before, after)]
        observation = observe_update(None, *lists, learning_rate=0.1)
        assert (observation.gradient.weight - expected).norm() < 1e-5

    def test_one_side_as_torch_has_it(self, pair, model):
        """The server is in PyTorch, and the client's layer has the same name."""
        _, after, expected, name = pair
        before = {f"{name}.weight": model[3].weight, f"{name}.bias": model[3].bias}
        observation = observe_update(None, before, after, learning_rate=0.1)
        assert (observation.gradient.weight - expected).norm() < 1e-5


def test_parameters_of_flax_are_nested(model):
    state, (end, gradients) = model.state_dict(), train(model, 1, 0.1)
    before, after = (
        {
            "params": {
                f"Dense_{place}": {
                    "kernel": part[f"{number}.weight"].numpy().T,
                    "bias": part[f"{number}.bias"].numpy(),
                }
                for place, number in enumerate("03")
            }
        }
        for part in (state, end)
    )
    observation = observe_update(None, before, after, learning_rate=0.1)
    assert observation.head.name == "params.Dense_1"
    assert (observation.gradient.weight - gradients[0]["3.weight"]).norm() < 1e-5


def test_dicts_without_end():
    nested = {}
    nested["more"] = nested
    with pytest.raises(InvalidObservation, match="nested too deeply"):
        observe(nested, nested)


class TestLayout:
    def test_conv1d_of_gpt_turns_no_head(self):
        """transformers keeps its weights as (features, outputs), and the head as torch does."""
        shapes = {
            "h.0.attn.c_attn.weight": (8, 24),
            "h.0.attn.c_attn.bias": (24,),
            "h.0.mlp.c_fc.base_layer.weight": (8, 32),
            "h.0.mlp.c_fc.base_layer.bias": (32,),
            "score.weight": (3, 8),
        }
        assert not any(stored.is_kernel for stored in as_torch(shapes).values())

    def test_one_bias_that_fits_as_in_torch_decides(self):
        shapes = {"a.weight": (4, 6), "a.bias": (6,), "b.weight": (3, 4), "b.bias": (3,)}
        assert not any(stored.is_kernel for stored in as_torch(shapes).values())

    def test_a_name_that_is_taken(self):
        shapes = {"fc.kernel": (6, 4), "fc.weight": (3, 4)}
        assert {name: stored.name for name, stored in as_torch(shapes).items()} == {
            name: name for name in shapes
        }

    def test_convolutions(self):
        stored = as_torch({"conv/kernel": (3, 5, 2, 7)})["conv.weight"]
        assert stored.shape((3, 5, 2, 7)) == (7, 2, 3, 5)

    @given(
        st.dictionaries(
            st.text(max_size=12) | st.sampled_from(["a.weight", "a.bias", "a/kernel", "a/bias:0"]),
            st.lists(st.integers(0, 5), max_size=4).map(tuple),
            max_size=6,
        )
    )
    def test_nothing_is_lost(self, shapes):
        stored = as_torch(shapes)
        assert sorted(kept.name for kept in stored.values()) == sorted(shapes)


class TestNpz:
    @pytest.fixture(params=[np.savez, np.savez_compressed], ids=["stored", "compressed"])
    def write(self, request):
        return request.param

    def test_by_name(self, tmp_path, write, before):
        for ending, seed in (("before", 0), ("after", 1)):
            write(tmp_path / f"{ending}.npz", **arrays(tensors(seed)))
        expected = observe_update(None, tensors(0), tensors(1), learning_rate=0.1)
        for first in (before, tmp_path / "before.npz"):
            observation = read_observation(first, tmp_path / "after.npz", **STEP)
            assert torch.equal(observation.gradient.weight, expected.gradient.weight)
            assert torch.equal(observation.gradient.bias, expected.gradient.bias)

    def test_only_what_is_asked_for_is_read(self, tmp_path):
        np.savez(tmp_path / "m.npz", **arrays(tensors(0)), more=np.array([{}, 1], dtype=object))
        file = open_tensors(tmp_path / "m.npz")
        assert file.shapes == {**MODEL, "more": (2,)}
        assert torch.equal(file.tensor("fc.weight"), tensors(0)["fc.weight"])

    @pytest.mark.parametrize("number", [12, 3])
    def test_in_order_on_both_sides(self, tmp_path, write, number):
        """More than ten: arr_10 comes after arr_9, and not after arr_1."""
        layers = [nn.Linear(6, 7), *(nn.Linear(7, 7) for _ in range(number)), nn.Linear(7, 3)]
        torch.manual_seed(0)
        parts = [
            [value.detach().numpy() for layer in layers for value in layer.parameters()],
            [
                (value.detach() + 0.01 * torch.randn(value.shape)).numpy()
                for layer in layers
                for value in layer.parameters()
            ],
        ]
        for name, part in zip(("before", "after"), parts, strict=True):
            write(tmp_path / f"{name}.npz", *part)
        observation = read_observation(tmp_path / "before.npz", tmp_path / "after.npz", **STEP)
        assert observation.head.name == f"arr_{2 * number + 2}"
        expected = (parts[0][-2].astype(float) - parts[1][-2]) / 0.1
        assert np.allclose(observation.gradient.weight, expected)

    def test_in_order_beside_a_state_dict(self, tmp_path, write):
        before = save(tensors(0), tmp_path / "before.pt")
        write(tmp_path / "after.npz", *arrays(tensors(1)).values())
        expected = observe_update(None, tensors(0), tensors(1), learning_rate=0.1)
        observation = read_observation(before, tmp_path / "after.npz", **STEP)
        assert observation.head.name == "fc"
        assert torch.equal(observation.gradient.weight, expected.gradient.weight)

    def test_in_order_beside_sorted_names(self, tmp_path, before):
        np.savez(tmp_path / "after.npz", *arrays(tensors(1)).values())
        refused(
            before, tmp_path / "after.npz", "safetensors sorts by name", InvalidObservation, **STEP
        )

    @pytest.mark.parametrize("name", ["fc.weight", "fc.bias"])
    def test_objects_are_not_unpickled(self, tmp_path, before, name):
        content = {**arrays(tensors(1)), name: np.array([[1.0, {}]] * 5, dtype=object)}
        if name == "fc.bias":
            content[name] = np.array([1, 2, 3, 4, {}], dtype=object)
        else:
            content[name] = np.array([[1, 2, 3, 4, 5, {}]] * 5, dtype=object)
        np.savez(tmp_path / "update.npz", **content)
        refused(before, tmp_path / "update.npz", "holds Python objects, and reading them could run")

    def damaged(self, path, change):
        """An archive of which one member is other bytes."""
        file = io.BytesIO()
        np.save(file, np.ones((5, 6), np.float32))
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("fc.weight.npy", change(file.getvalue()))
        return path

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (lambda data: data[:-4], "another size than it claims"),
            (lambda data: data + b"more", "another size than it claims"),
            (lambda data: data.replace(b"(5, 6)", b"(99999999999, 6)"), "they are not of the same"),
            (lambda data: data.replace(b"(5, 6), ", b"(5, -6),"), "negative size"),
            (lambda data: data.replace(b"'<f4'", b"'O'  "), "holds Python objects"),
            (lambda data: b"\x93NUMPY\x09\x00" + data[8:], "not readable|not known"),
            (lambda _: b"", "not readable"),
        ],
    )
    def test_damaged(self, tmp_path, before, change, match):
        refused(before, self.damaged(tmp_path / "update.npz", change), match)

    def test_no_archive(self, tmp_path, before):
        (tmp_path / "update.npz").write_bytes(b"hello")
        refused(before, tmp_path / "update.npz", r"no archive as numpy\.savez writes it")

    @pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
    def test_a_name_twice(self, tmp_path, before):
        np.savez(tmp_path / "update.npz", **arrays(tensors(1)))
        with zipfile.ZipFile(tmp_path / "update.npz", "a") as archive:
            archive.writestr("fc.weight.npy", b"")
        refused(before, tmp_path / "update.npz", "two of its arrays have one name")

    def test_a_bomb(self, tmp_path, before):
        np.savez_compressed(tmp_path / "update.npz", **{"fc.weight": np.zeros(10**6)})
        assert (tmp_path / "update.npz").stat().st_size < 10**4
        limits = Limits(unpacked_bytes=10**6)
        refused(before, tmp_path / "update.npz", "claims 8000128 bytes: at most", limits=limits)


@pytest.mark.parametrize("classes", [5, 10])
def test_counts_of_a_client_of_flower(classes):
    """Arrays in the order of the state dict, as its clients send them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, classes))
    labels = torch.randint(classes, (9,))
    before = [value.clone().numpy() for value in model.state_dict().values()]
    F.cross_entropy(model(torch.randn(9, 20)), labels).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    after = [value.numpy() for value in model.state_dict().values()]
    observation = observe_update(model, before, after, learning_rate=0.1, batch_size=9)
    counts = restore(observation, "pooled").counts
    assert torch.equal(counts, torch.bincount(labels, minlength=classes))

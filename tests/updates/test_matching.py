"""Names that differ between the model and the update: copies, prefixes, PEFT, several dicts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from update_files import refused, save, tensors
from update_models import CLASSES, named, train

from labelleak import capture, observe, observe_update, restore
from labelleak.errors import AmbiguousHead, InvalidObservation, UnreadableFile
from labelleak.training import LocalTraining
from labelleak.updates import read_observation

PREFIXES = ["", "model.", "net.", "backbone.", "base_model.model.", "module.", "a.b.c.d."]
STEP = {"kind": "weights", "training": LocalTraining(learning_rate=0.1, steps=1)}


class Twice(nn.Module):
    """A head that is there twice, and runs once."""

    def __init__(self, old, new):
        super().__init__()
        self.body = nn.Linear(8, 12)
        first, second = nn.Linear(12, CLASSES), nn.Linear(12, CLASSES)
        second.load_state_dict(first.state_dict())
        first.requires_grad_(False)
        self.classifier = nn.ModuleDict()
        for name, layer in ((old, first), (new, second)):
            node = self.classifier
            *way, last = name.split(".")
            for part in way:
                node[part] = nn.ModuleDict()
                node = node[part]
            node[last] = layer
        self.used = [second]

    def forward(self, inputs):
        return self.used[0](F.relu(self.body(inputs)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("original_module", "modules_to_save.default"),
        ("original_module", "modules_to_save.other_adapter"),
        ("teacher", "student"),
        ("ema", "online"),
        ("head", "head_dist"),
    ],
)
class TestACopyThatIsNotTrained:
    @pytest.fixture
    def seen(self, old, new):
        torch.manual_seed(0)
        model = Twice(old, new)
        inputs, labels = torch.randn(6, 8), torch.randint(CLASSES, (6,))
        F.cross_entropy(model(inputs), labels).backward()
        gradients = {name: value.grad for name, value in model.named_parameters()}
        return model, inputs, labels, gradients

    @pytest.mark.parametrize("frozen", ["left out", "None", "zeros"])
    def test_gradients(self, seen, new, frozen):
        model, _, labels, gradients = seen
        if frozen == "left out":
            gradients = {name: value for name, value in gradients.items() if value is not None}
        elif frozen == "zeros":
            gradients = {
                name: torch.zeros_like(model.get_parameter(name)) if value is None else value
                for name, value in gradients.items()
            }
        observation = observe(model, gradients, batch_size=6)
        assert observation.head.name == f"classifier.{new}"
        counts = torch.bincount(labels, minlength=CLASSES)
        assert torch.equal(restore(observation).counts, counts)
        named_head = observe(model, gradients, head=f"classifier.{new}")
        assert torch.equal(named_head.gradient.weight, observation.gradient.weight)

    def test_weights(self, seen, new):
        model, _, _, gradients = seen
        before = {name: value.clone() for name, value in model.state_dict().items()}
        after = {
            name: value if gradients[name] is None else value - 0.1 * gradients[name]
            for name, value in before.items()
        }
        observation = observe_update(model, before, after, learning_rate=0.1)
        assert observation.head.name == f"classifier.{new}"
        assert (observation.gradient.weight - gradients[f"classifier.{new}.weight"]).norm() < 1e-5

    def test_files(self, seen, new, tmp_path, ending):
        model, _, _, gradients = seen
        before = {name: value.clone() for name, value in model.state_dict().items()}
        after = {
            name: value.clone() if gradients[name] is None else value - 0.1 * gradients[name]
            for name, value in before.items()
        }
        observation = read_observation(
            save(before, tmp_path / f"before{ending}"),
            save(after, tmp_path / f"after{ending}"),
            **STEP,
        )
        assert observation.head.name == f"classifier.{new}"

    def test_capture(self, seen, new):
        model, inputs, labels, gradients = seen
        observation = capture(model, inputs, labels)
        assert observation.head.name == f"classifier.{new}"
        assert (observation.gradient.weight - gradients[f"classifier.{new}.weight"]).norm() < 1e-6


def test_two_copies_that_are_both_trained():
    model = nn.ModuleDict({name: nn.Linear(6, 3) for name in ("teacher", "student")})
    with pytest.raises(
        AmbiguousHead, match=r"2 layers of one shape changed, .* teacher .*, student"
    ):
        observe(model, named(model))
    assert observe(model, named(model), head="student").head.name == "student"


def test_a_hidden_layer_that_was_trained_beside_a_frozen_head_is_none():
    """Only copies of one shape are told apart by what was trained."""
    shapes = {"trunk.weight": (8, 30), "left.weight": (5, 8), "right.weight": (4, 8)}
    model = {name: torch.randn(shape) for name, shape in shapes.items()}
    with pytest.raises(AmbiguousHead, match=r"left \(5 classes\), right \(4 classes\)"):
        observe(model, {"left.weight": torch.ones(5, 8)})


class TestAPrefix:
    @pytest.mark.parametrize("prefix", PREFIXES)
    @pytest.mark.parametrize("side", ["model", "update"])
    def test_gradients(self, model, side, prefix):
        gradients = named(model)
        state, sent = model.state_dict(), {prefix + name: g for name, g in gradients.items()}
        if side == "model":
            state, sent = {prefix + name: value for name, value in state.items()}, gradients
        for head in (None, "3", f"{prefix}3", "3.weight"):
            observation = observe(state, sent, head=head)
            assert torch.equal(observation.gradient.weight, gradients["3.weight"])
            assert torch.equal(observation.gradient.bias, gradients["3.bias"])
            # The whole update has the names of the model.
            assert set(observation.gradients) <= set(state) | {
                name.removeprefix("module.") for name in state
            }

    @pytest.mark.parametrize("prefix", PREFIXES)
    @pytest.mark.parametrize("with_model", [True, False])
    def test_weights(self, model, prefix, with_model):
        after, gradients = train(model, 1, 0.1)
        after = {prefix + name: value for name, value in after.items()}
        observation = observe_update(
            model if with_model else None, model.state_dict(), after, learning_rate=0.1
        )
        assert observation.head.name == "3"
        assert observation.gradients.keys() == gradients[0].keys()
        assert (observation.gradient.weight - gradients[0]["3.weight"]).norm() < 1e-5

    @pytest.mark.parametrize("prefixes", [("model.", "net."), ("a.b.", "c."), ("x.", "x.y.")])
    def test_another_one_on_either_side(self, model, prefixes):
        state, sent = (
            {prefix + name: value for name, value in part.items()}
            for prefix, part in zip(prefixes, (model.state_dict(), named(model)), strict=True)
        )
        observation = observe(state, sent)
        assert observation.head.name == f"{prefixes[0]}3"
        assert torch.equal(observation.gradient.weight, named(model)["3.weight"])

    @pytest.mark.parametrize("prefix", PREFIXES)
    @pytest.mark.parametrize("head", [None, "fc", "fc.weight"])
    def test_files(self, tmp_path, before, ending, prefix, head):
        after = {prefix + name: value for name, value in tensors(1).items()}
        observation = read_observation(
            before, save(after, tmp_path / f"after{ending}"), head=head, **STEP
        )
        expected = observe_update(None, tensors(0), tensors(1), learning_rate=0.1)
        assert observation.head.name == "fc"
        assert torch.equal(observation.gradient.weight, expected.gradient.weight)
        assert torch.equal(observation.gradient.bias, expected.gradient.bias)

    def test_the_head_alone(self, model):
        sent = {f"net.{name}": value for name, value in named(model).items() if "3" in name}
        observation = observe(model, sent)
        assert torch.equal(observation.gradient.weight, named(model)["3.weight"])

    def test_a_suffix_in_the_middle_of_a_word_is_none(self, model):
        sent = {f"x{name}": value for name, value in named(model).items()}
        with pytest.raises(InvalidObservation, match=r"no gradient for 3\.weight"):
            observe(model, sent)

    def test_another_shape_is_none(self, model):
        sent = {"net.3.weight": torch.ones(5, 19), "other.3.weight": torch.ones(5, 20)}
        observation = observe(model, sent)
        assert torch.equal(observation.gradient.weight, torch.ones(5, 20))

    def test_two_of_one_shape(self, tmp_path, before):
        sent = {
            f"{prefix}{name}": value + number
            for number, prefix in enumerate(("one.", "two."))
            for name, value in tensors(1).items()
        }
        update = save(sent, tmp_path / "update.safetensors")
        message = refused(before, update, r"2 layers of one shape changed", AmbiguousHead)
        assert "one.fc (5 classes), two.fc (5 classes)" in message
        for number, name in enumerate(("one.fc", "two.fc")):
            observation = read_observation(before, update, head=name)
            assert torch.equal(observation.gradient.weight, tensors(1)["fc.weight"] + number)

    def test_two_of_which_one_changed(self, tmp_path, before):
        sent = {f"teacher.{name}": value for name, value in tensors(0).items()}
        sent |= {f"student.{name}": value for name, value in tensors(1).items()}
        observation = read_observation(before, save(sent, tmp_path / "after.safetensors"), **STEP)
        assert observation.head.name == "student.fc"
        expected = observe_update(None, tensors(0), tensors(1), learning_rate=0.1)
        assert torch.equal(observation.gradient.weight, expected.gradient.weight)


@settings(max_examples=50)
@given(
    prefix=st.lists(st.sampled_from(["model", "net", "0", "base_model", "fc"]), max_size=3),
    side=st.sampled_from(["model", "update"]),
    alone=st.booleans(),
)
def test_any_prefix_on_one_side(prefix, side, alone):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = {"body.weight": torch.randn(9, 7), "body.bias": torch.randn(9)}
        state |= {"fc.weight": torch.randn(4, 9), "fc.bias": torch.randn(4)}
    sent = {name: 3.0 + value for name, value in state.items() if not alone or "fc" in name}
    expected = sent["fc.weight"]
    put = "".join(f"{part}." for part in prefix)
    if side == "update":
        sent = {put + name: value for name, value in sent.items()}
    else:
        state = {put + name: value for name, value in state.items()}
    assert torch.equal(observe(state, sent).gradient.weight, expected)


class TestAdapter:
    """A file of PEFT: the low-rank factors, and what is named in modules_to_save."""

    @pytest.fixture
    def base(self):
        shapes = {
            "bert.embeddings.word_embeddings.weight": (50, 8),
            "bert.encoder.layer.0.attention.self.query.weight": (8, 8),
            "bert.encoder.layer.0.output.dense.weight": (8, 16),
            "bert.encoder.layer.0.intermediate.dense.weight": (16, 8),
            "bert.pooler.dense.weight": (8, 8),
            "classifier.weight": (3, 8),
            "classifier.bias": (3,),
        }
        generator = torch.Generator().manual_seed(0)
        return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}

    def adapter(self, base, *, change=0.01):
        name = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_{}.weight"
        return {
            name.format("A"): torch.randn(2, 8),
            name.format("B"): torch.randn(8, 2),
            "base_model.model.classifier.weight": base["classifier.weight"] + change,
            "base_model.model.classifier.bias": base["classifier.bias"] + change,
        }

    def test_against_the_base_model(self, tmp_path, base, ending):
        observation = read_observation(
            save(base, tmp_path / f"base{ending}"),
            save(self.adapter(base), tmp_path / f"adapter_model{ending}"),
            **STEP,
        )
        assert observation.head.name == "classifier"
        assert (observation.gradient.weight + 0.1).abs().max() < 1e-5

    def test_against_the_whole_model_with_its_adapter(self, tmp_path, base):
        state = {f"base_model.model.{name}": value for name, value in base.items()}
        for kind in ("weight", "bias"):
            value = state.pop(f"base_model.model.classifier.{kind}")
            start = "base_model.model.classifier"
            # The copy that was trained in the rounds before is no longer the original.
            state[f"{start}.original_module.{kind}"] = value + 0.5
            state[f"{start}.modules_to_save.default.{kind}"] = value
        observation = read_observation(
            save(state, tmp_path / "model.safetensors"),
            save(self.adapter(base), tmp_path / "adapter_model.safetensors"),
            **STEP,
        )
        assert observation.head.name == "base_model.model.classifier.modules_to_save.default"
        assert (observation.gradient.weight + 0.1).abs().max() < 1e-5

    def test_that_leaves_the_head_as_it_is(self, tmp_path, base):
        adapter = {n: value for n, value in self.adapter(base).items() if "lora" in n}
        paths = [
            save(base, tmp_path / "base.safetensors"),
            save(adapter, tmp_path / "adapter_model.safetensors"),
        ]
        with pytest.raises(UnreadableFile, match=r"'classifier.weight', .*see modules_to_save"):
            read_observation(*paths, **STEP)


class TestTwoStateDicts:
    """What self-supervised trainers write: {"teacher": ..., "student": ...}."""

    @pytest.mark.parametrize(
        "keys", [("teacher", "student"), ("student", "teacher"), ("ema", "model_2"), ("G", "D")]
    )
    @pytest.mark.parametrize("kind", ["gradients", "weights"])
    def test_of_which_both_changed(self, tmp_path, kind, keys):
        told = STEP if kind == "weights" else {}
        before = {key: tensors(0) for key in keys}
        update = {key: tensors(number) for number, key in enumerate(keys, 1)}
        paths = [save(before, tmp_path / "b.pt"), save(update, tmp_path / "a.pt")]
        message = refused(*paths, "2 layers of one shape changed", AmbiguousHead, **told)
        assert all(f"{key}.fc (5 classes)" in message for key in keys)
        for key in keys:
            observation = read_observation(*paths, head=f"{key}.fc", **told)
            assert observation.head.name == f"{key}.fc"

    @pytest.mark.parametrize("keys", [("teacher", "student"), ("student", "teacher")])
    def test_of_which_one_changed(self, tmp_path, keys):
        paths = [
            save({key: tensors(0) for key in keys}, tmp_path / "b.pt"),
            save({key: tensors(int(key == "student")) for key in keys}, tmp_path / "a.pt"),
        ]
        observation = read_observation(*paths, **STEP)
        assert observation.head.name == "student.fc"
        expected = observe_update(None, tensors(0), tensors(1), learning_rate=0.1)
        assert torch.equal(observation.gradient.weight, expected.gradient.weight)

    @pytest.mark.parametrize("key", ["model", "state_dict"])
    @pytest.mark.parametrize("first", [True, False])
    def test_the_one_that_checkpoints_call_so_is_named(self, tmp_path, key, first):
        def content(seed):
            found = {key: tensors(seed), "model_ema": tensors(seed + 5)}
            return found if first else dict(reversed(found.items()))

        paths = [save(content(n), tmp_path / f"{n}.pt") for n in (0, 1)]
        observation = read_observation(*paths, **STEP)
        assert observation.head.name == f"{key}.fc"
        expected = observe_update(None, tensors(0), tensors(1), learning_rate=0.1)
        assert torch.equal(observation.gradient.weight, expected.gradient.weight)

    def test_in_memory(self):
        before = {key: tensors(0) for key in ("teacher", "student")}
        after = {key: tensors(number) for number, key in enumerate(before, 1)}
        with pytest.raises(AmbiguousHead, match="2 layers of one shape changed"):
            observe_update(None, before, after, learning_rate=0.1)
        after["teacher"] = tensors(0)
        assert observe_update(None, before, after, learning_rate=0.1).head.name == "student.fc"

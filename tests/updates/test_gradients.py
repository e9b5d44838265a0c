import pytest
import torch
from torch import nn
from update_models import batches, named

from labelleak import capture, observe, observe_update
from labelleak.errors import AmbiguousHead, InvalidObservation
from labelleak.loss import Loss


class TestObserve:
    def test_gradients_by_name(self, model):
        gradients = named(model)
        observation = observe(model, gradients, batch_size=24, loss=Loss(label_smoothing=0.1))
        assert observation.head.name == "3"
        assert torch.equal(observation.head.weight, model[3].weight)
        assert torch.equal(observation.head.bias, model[3].bias)
        assert torch.equal(observation.gradient.weight, gradients["3.weight"])
        assert torch.equal(observation.gradient.bias, gradients["3.bias"])
        assert observation.batch_size == 24
        assert observation.loss.label_smoothing == 0.1
        assert observation.model is model
        assert observation.gradients.keys() == gradients.keys()

    @pytest.mark.parametrize("kind", [list, tuple])
    def test_gradients_in_the_order_of_the_parameters(self, model, kind):
        images, labels = batches(1)[0]
        loss = nn.CrossEntropyLoss()(model(images), labels)
        observation = observe(model, kind(torch.autograd.grad(loss, list(model.parameters()))))
        expected = capture(model, images, labels).gradient
        assert (observation.gradient.weight - expected.weight).norm() <= 1e-6
        assert (observation.gradient.bias - expected.bias).norm() <= 1e-6
        assert list(observation.gradients) == [name for name, _ in model.named_parameters()]

    def test_the_gradients_that_the_parameters_hold(self, model):
        images, labels = batches(1)[0]
        model[0].weight.requires_grad_(False)
        nn.CrossEntropyLoss()(model(images), labels).backward()
        observation = observe(model, [value.grad for value in model.parameters()])
        assert torch.equal(observation.gradient.weight, model[3].weight.grad)
        assert "0.weight" not in observation.gradients
        assert "0.bias" in observation.gradients

    def test_a_state_dict(self, model):
        gradients = named(model)
        observation = observe(model.state_dict(), gradients)
        assert observation.model is None
        assert torch.equal(observation.head.weight, model[3].weight)
        assert torch.equal(observation.gradient.weight, gradients["3.weight"])

    def test_a_named_head(self, model):
        gradients = named(model)
        observation = observe(model, gradients, head="0")
        assert observation.classes == 20
        assert torch.equal(observation.gradient.weight, gradients["0.weight"])

    def test_nothing_requires_grad(self, model):
        gradients = {name: value.requires_grad_() for name, value in named(model).items()}
        observation = observe(model, gradients)
        for tensor in (
            observation.head.weight,
            observation.head.bias,
            observation.gradient.weight,
            observation.gradient.bias,
            *observation.gradients.values(),
        ):
            assert not tensor.requires_grad

    def test_no_bias_gradient(self, model):
        observation = observe(model, named(model, **{"3.bias": None}))
        assert observation.gradient.bias is None
        assert not observation.has_bias

    @pytest.mark.parametrize("number", [0, 3, 5, 7])
    def test_wrong_number(self, model, number):
        with pytest.raises(InvalidObservation, match=f"{number} gradients for 6 parameters"):
            observe(model, [torch.ones(1)] * number)

    @pytest.mark.usefixtures("unchecked")
    def test_a_generator(self, model):
        with pytest.raises(InvalidObservation, match="gradients are a generator: pass a dict"):
            observe(model, (torch.ones(1) for _ in range(6)))

    def test_a_list_for_a_state_dict(self, model):
        with pytest.raises(InvalidObservation, match="pass the model itself"):
            observe(model.state_dict(), list(named(model).values()))

    @pytest.mark.parametrize(
        "gradients", [{}, {"weight": torch.ones(5, 20)}, {"0.weight": torch.ones(20, 6)}]
    )
    def test_names_do_not_match(self, model, gradients):
        with pytest.raises(InvalidObservation, match=r"no gradient for 3\.weight: names do not"):
            observe(model, gradients)

    def test_a_frozen_head(self, model):
        with pytest.raises(InvalidObservation, match="the final layer is frozen"):
            observe(model, named(model, **{"3.weight": None, "3.bias": None}))

    def test_zeros(self, model):
        zeros = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
        with pytest.raises(InvalidObservation, match="zero everywhere"):
            observe(model, zeros)

    def test_another_shape(self, model):
        with pytest.raises(InvalidObservation, match="5x19 and the head 5x20"):
            observe(model, named(model, **{"3.weight": torch.ones(5, 19), "3.bias": torch.ones(5)}))

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_not_finite(self, model, value):
        gradients = named(model)
        gradients["3.bias"][2] = value
        with pytest.raises(InvalidObservation, match="bias has NaN or infinite entries"):
            observe(model, gradients)

    def test_ambiguous(self):
        model = nn.ModuleDict({name: nn.Linear(4, 3) for name in ("left", "right")})
        with pytest.raises(AmbiguousHead, match=r"left \(3 classes\), right \(3 classes\)"):
            observe(model, named(model))
        assert observe(model, named(model), head="right").head.name == "right"


def test_weights_are_not_taken_for_gradients():
    """The learning rate was forgotten."""
    model = torch.nn.Linear(6, 4)
    after = {name: value + 0.01 for name, value in model.state_dict().items()}
    with pytest.raises(InvalidObservation, match=r"weights after training.*--learning-rate"):
        observe(model, after)
    observe_update(model, model.state_dict(), after, learning_rate=0.1)

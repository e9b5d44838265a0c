from copy import deepcopy

import pytest
import torch
from torch import nn
from update_models import CLASSES, batches, named, train

from labelleak import Flag, observe, observe_update, restore
from labelleak.errors import InvalidObservation, MissingKnowledge
from labelleak.loss import Loss
from labelleak.training import LocalTraining


class TestObserveUpdate:
    @pytest.mark.parametrize("learning_rate", [1e-3, 0.1, 1])
    def test_one_step_is_its_gradient(self, model, learning_rate):
        after, gradients = train(model, 1, learning_rate)
        observation = observe_update(
            model, model.state_dict(), after, learning_rate=learning_rate, batch_size=8
        )
        assert observation.local_steps == 1
        assert observation.gradients.keys() == gradients[0].keys()
        for name, found in observation.gradients.items():
            assert found.dtype == torch.float64
            expected = gradients[0][name].double()
            # What float32 weights leave of a step this small.
            rounding = model.get_parameter(name).abs().max() * 2**-23 / learning_rate
            assert (found - expected).abs().max() <= rounding + 1e-7
        assert torch.equal(observation.gradient.weight, observation.gradients["3.weight"])
        assert torch.equal(observation.gradient.bias, observation.gradients["3.bias"])
        assert torch.equal(observation.head.weight, model[3].weight)

    @pytest.mark.parametrize("steps", [2, 5])
    def test_several_steps_are_the_mean_of_their_gradients(self, model, steps):
        after, gradients = train(model, steps, 0.1)
        observation = observe_update(
            model,
            model.state_dict(),
            after,
            training=LocalTraining(learning_rate=0.1, steps=steps, batch_size=8),
        )
        assert observation.local_steps == steps
        assert observation.num_instances == 8 * steps
        for name, found in observation.gradients.items():
            expected = torch.stack([step[name].double() for step in gradients]).mean(dim=0)
            assert (found - expected).abs().max() <= 1e-5

    def test_several_steps_are_flagged(self, model):
        after, _ = train(model, 2, 0.1)
        update = {"before": model.state_dict(), "after": after}
        twice = LocalTraining(learning_rate=0.1, steps=2, batch_size=8)
        several = observe_update(model, **update, training=twice)
        assert Flag.SEVERAL_STEPS in restore(several, "ilrg").flags
        one = observe_update(model, **update, learning_rate=0.1, batch_size=16)
        assert Flag.SEVERAL_STEPS not in restore(one, "ilrg").flags

    def test_sign(self, model):
        after, _ = train(model, 1, 0.1)
        labels = batches(1)[0][1]
        observation = observe_update(model, model.state_dict(), after, learning_rate=0.1)
        counts = torch.bincount(labels, minlength=CLASSES)
        # The logits of the classes that the batch is full of are pushed up.
        assert observation.gradient.bias[counts.argmax()] < 0 < observation.gradient.bias.max()

    @pytest.mark.parametrize("with_model", [True, False])
    def test_what_no_optimizer_changes_is_left_out(self, model, with_model):
        model.register_buffer("moments", torch.ones(3))
        after, gradients = train(model, 1, 0.1)
        after["moments"] = 2.0 * after["moments"]
        assert not torch.equal(after["1.running_mean"], model[1].running_mean)
        observation = observe_update(
            model if with_model else None, model.state_dict(), after, learning_rate=0.1
        )
        unknown = set() if with_model else {"moments"}
        assert observation.gradients.keys() == gradients[0].keys() | unknown

    def test_entries_that_are_no_tensors(self, model):
        after, gradients = train(model, 1, 0.1)
        before = {**model.state_dict(), "_extra_state": None, "epoch": 3}
        observation = observe_update(None, before, {**after, "epoch": 4}, learning_rate=0.1)
        assert observation.gradients.keys() == gradients[0].keys()

    def test_half_precision(self, model):
        after, gradients = train(model, 1, 1.0)
        before, after = (
            {name: value.bfloat16() for name, value in state.items()}
            for state in (model.state_dict(), after)
        )
        gradient = observe_update(None, before, after, learning_rate=1.0).gradient
        expected = gradients[0]["3.weight"]
        assert gradient.weight.dtype == torch.float64
        assert (gradient.weight - expected).norm() <= 0.1 * expected.norm()

    def test_model_and_knowledge(self, model):
        after, _ = train(model, 1, 0.1)
        observation = observe_update(
            model,
            model.state_dict(),
            after,
            learning_rate=0.1,
            present_classes=torch.tensor([0, 1]),
            loss=Loss(reduction="sum"),
        )
        assert observation.model is model
        assert observation.loss.reduction == "sum"
        assert observation.present_classes.tolist() == [0, 1]

    def test_a_named_head(self, model):
        after, _ = train(model, 1, 0.1)
        observation = observe_update(
            None, model.state_dict(), after, learning_rate=0.1, head="0.weight"
        )
        assert observation.head.name == "0"
        assert observation.classes == 20

    @pytest.mark.parametrize(
        ("kind", "change"),
        [("weight", "rename"), ("weight", "drop"), ("weight", "reshape"), ("bias", "reshape")],
    )
    def test_names_or_shapes_do_not_match(self, model, kind, change):
        after, _ = train(model, 1, 0.1)
        value = after.pop(f"3.{kind}")
        if change != "reshape":
            del after["3.bias"]
        if change == "rename":
            after[f"fc.{kind}"] = value
        elif change == "reshape":
            after[f"3.{kind}"] = value[:-1]
        with pytest.raises(InvalidObservation, match=rf"3\.{kind} is not the same tensor before"):
            observe_update(None, model.state_dict(), after, learning_rate=0.1)

    def test_the_same_weights(self, model):
        state = model.state_dict()
        with pytest.raises(InvalidObservation, match="zero everywhere"):
            observe_update(model, state, state, learning_rate=0.1)

    def test_a_bias_that_was_not_sent(self, model):
        after, gradients = train(model, 1, 0.1)
        del after["3.bias"]
        observation = observe_update(model, model.state_dict(), after, learning_rate=0.1)
        assert observation.head.bias is not None
        assert observation.gradient.bias is None
        assert observation.gradients.keys() == gradients[0].keys() - {"3.bias"}
        assert Flag.NO_BIAS in restore(observation).flags

    @pytest.mark.parametrize(
        "change",
        [
            lambda value: value.to(torch.complex64),
            lambda value: value.long(),
            lambda value: value.to(torch.float8_e4m3fn),
            lambda value: value.to_sparse(),
            lambda value: value.to("meta"),
        ],
    )
    @pytest.mark.parametrize("name", ["3.weight", "3.bias"])
    def test_weights_of_another_kind(self, model, change, name):
        after, _ = train(model, 1, 0.1)
        after[name] = change(after[name])
        with pytest.raises(InvalidObservation, match=f"{name} after the steps is torch.*plain"):
            observe_update(None, model.state_dict(), after, learning_rate=0.1)

    @pytest.mark.parametrize("coarse", ["before", "after", "both"])
    @pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
    def test_rounding_is_that_of_the_coarser_side(self, model, coarse, stored):
        after, _ = train(model, 1, 1.0)
        states = {"before": model.state_dict(), "after": after}
        for side, state in states.items():
            if coarse in (side, "both"):
                # On the side of the server only the dtype tells: a new head may be zeros.
                kept = torch.bfloat16 if side == "before" else stored
                states[side] = {name: value.bfloat16().to(kept) for name, value in state.items()}
        gradient = observe_update(None, **states, learning_rate=1.0).gradient
        exact = observe_update(None, model.state_dict(), after, learning_rate=1.0).gradient
        error = (gradient.weight - exact.weight).square().mean().sqrt()
        assert error <= gradient.rounding <= 40 * error
        assert exact.rounding < 1e-3 * gradient.rounding

    def test_a_head_of_zeros_is_not_taken_for_a_coarse_one(self, model):
        with torch.no_grad():
            model[3].weight.zero_()
        after, gradients = train(model, 1, 0.1)
        gradient = observe_update(None, model.state_dict(), after, learning_rate=0.1).gradient
        assert gradient.rounding < 1e-5 * gradients[0]["3.weight"].abs().max()

    def test_weight_decay_is_flagged(self, model):
        model = deepcopy(model)
        before = deepcopy(model.state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
        images, labels = batches(1)[0]
        nn.CrossEntropyLoss()(model(images), labels).backward()
        optimizer.step()
        found = restore(observe_update(None, before, model.state_dict(), learning_rate=0.1))
        assert Flag.SUMS_NOT_ZERO in found.flags
        assert "weight decay" in Flag.SUMS_NOT_ZERO.text

    @pytest.mark.parametrize("rate", [0.0, -0.1, float("nan"), float("inf")])
    def test_learning_rate(self, model, rate):
        after, _ = train(model, 1, 0.1)
        with pytest.raises(InvalidObservation, match="it must be positive and finite"):
            observe_update(model, model.state_dict(), after, learning_rate=rate)

    def test_a_learning_rate_too_small_for_the_difference(self, model):
        after, _ = train(model, 1, 0.1)
        with pytest.raises(InvalidObservation, match="NaN or infinite"):
            observe_update(model, model.state_dict(), after, learning_rate=1e-320)

    def test_what_is_missing_or_given_twice(self, model):
        after, _ = train(model, 1, 0.1)
        update = {"before": model.state_dict(), "after": after}
        with pytest.raises(MissingKnowledge, match="the learning rate is not known"):
            observe_update(model, **update)
        with pytest.raises(MissingKnowledge, match="the number of local steps is not known"):
            observe_update(model, **update, training=LocalTraining(learning_rate=0.1))
        with pytest.raises(InvalidObservation, match="given twice"):
            observe_update(model, **update, learning_rate=0.1, training=LocalTraining(steps=1))
        with pytest.raises(InvalidObservation, match="the batch size is given twice"):
            observe(model, named(model), batch_size=8, training=LocalTraining(steps=2))

    def test_steps_are_counted_from_the_number_of_samples(self, model):
        after, _ = train(model, 3, 0.1)
        told = LocalTraining(learning_rate=0.1, batch_size=8)
        seen = observe_update(model, model.state_dict(), after, training=told, instances=24)
        assert (seen.local_steps, seen.num_instances) == (3, 24)

    def test_a_schedule_of_learning_rates(self, model):
        after, _ = train(model, 3, 0.1)
        update = {"before": model.state_dict(), "after": after}
        constant, scheduled = (
            observe_update(model, **update, training=LocalTraining(learning_rate=rate, steps=3))
            for rate in (0.1, [0.05, 0.1, 0.15])
        )
        torch.testing.assert_close(scheduled.gradient.weight, constant.gradient.weight)
        assert constant.training.step_sizes == (0.1, 0.1, 0.1)
        assert scheduled.training.step_sizes == (0.05, 0.1, 0.15)
        assert scheduled.local_steps == 3
        assert scheduled.after["3.bias"] is after["3.bias"]

    def test_weight_decay_of_one_step_is_taken_off_exactly(self, model):
        after, gradients = train(model, 1, 0.1)
        before = model.state_dict()
        decayed = {
            name: after[name] - 0.1 * 0.5 * before[name] if name in gradients[0] else after[name]
            for name in after
        }
        observation = observe_update(
            model,
            before,
            decayed,
            training=LocalTraining(learning_rate=0.1, steps=1, weight_decay=0.5, proximal=3.0),
        )
        for name, expected in gradients[0].items():
            assert (observation.gradients[name] - expected).abs().max() <= 1e-5

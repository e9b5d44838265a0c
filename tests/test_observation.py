import dataclasses
import math

import numpy as np
import pytest
import torch

from labelleak.errors import InvalidObservation, LabelLeakError
from labelleak.numerics import root_mean_square
from labelleak.observation import Auxiliary, Head, HeadGradient, Observation
from labelleak.training import LocalTraining
from synthetic import told, untrained

WEIGHT, BIAS = torch.ones(4, 3), torch.ones(4)
FORMATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def observation(**knowledge):
    layers = {"head": Head(WEIGHT, BIAS), "gradient": HeadGradient(WEIGHT, BIAS)}
    return Observation(**(layers | told(**knowledge)))


def with_entry(value, index=0):
    tensor = torch.ones(4, 3)
    tensor.view(-1)[index] = value
    return tensor


@pytest.mark.parametrize("layer", [Head, HeadGradient])
@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [
        (torch.ones(3), None, "weight is 3: a matrix classes x features"),
        (torch.ones(2, 3, 4), None, "weight is 2x3x4: a matrix classes x features"),
        (torch.tensor(1.0), None, "weight is a single number: a matrix"),
        (torch.ones(1, 3), None, "weight is 1x3: at least two classes and one feature"),
        (torch.ones(4, 0), None, "weight is 4x0: at least two classes and one feature"),
        (WEIGHT, torch.ones(3), "bias is 3 beside a weight of 4x3: 4 entries"),
        (WEIGHT, torch.ones(4, 1), "bias is 4x1 beside a weight of 4x3: 4 entries"),
        (WEIGHT, torch.ones(4, device="meta"), "weight is on cpu and its bias on meta"),
        (WEIGHT.long(), None, r"weight is torch.int64 .*: a plain tensor of floating-point"),
        (WEIGHT, BIAS.int(), r"bias is torch.int32 \(strided, cpu\): a plain tensor"),
        (WEIGHT.to(torch.complex64), None, r"weight is torch.complex64 .*: a plain tensor"),
        (WEIGHT.to(torch.float8_e4m3fn), None, "weight is torch.float8_e4m3fn .*: a plain tensor"),
        (WEIGHT.to_sparse(), None, r"weight is torch.float32 \(sparse_coo, cpu\): a plain tensor"),
        (WEIGHT.to("meta"), None, r"weight is torch.float32 \(strided, meta\): a plain tensor"),
        (with_entry(math.nan), None, "weight has NaN or infinite entries"),
        (with_entry(math.inf, 11), None, "weight has NaN or infinite entries"),
        (WEIGHT, torch.tensor([0.0, 0.0, -math.inf, 0.0]), "bias has NaN or infinite entries"),
    ],
)
def test_a_broken_layer_is_refused_in_one_line(layer, weight, bias, message, unchecked):
    with pytest.raises(InvalidObservation, match=message) as refused:
        layer(weight, bias)
    what = "head" if layer is Head else "gradient"
    assert str(refused.value).startswith(f"the {what}'s ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("bias", [None, torch.zeros(4)])
def test_a_gradient_of_all_zeros_is_refused_in_one_line(bias):
    with pytest.raises(InvalidObservation, match="zero everywhere") as refused:
        HeadGradient(torch.zeros(4, 3), bias)
    assert "\n" not in str(refused.value)


def test_one_entry_of_either_tensor_makes_a_gradient():
    HeadGradient(torch.zeros(4, 3), BIAS)
    HeadGradient(WEIGHT, torch.zeros(4))


@pytest.mark.parametrize("layer", [Head, HeadGradient])
def test_parameters_are_taken_as_numbers_in_the_same_memory(layer):
    weight, bias = torch.nn.Parameter(WEIGHT.clone()), torch.nn.Parameter(BIAS.clone())
    taken = layer(weight, bias)
    assert not taken.weight.requires_grad
    assert not taken.bias.requires_grad
    assert taken.weight.data_ptr() == weight.data_ptr()
    assert weight.requires_grad


@pytest.mark.parametrize("layer", [Head, HeadGradient])
def test_arrays_are_refused_in_one_line(layer, unchecked):
    with pytest.raises(InvalidObservation, match="weight is a ndarray: a tensor is needed"):
        layer(np.ones((4, 3)))
    with pytest.raises(InvalidObservation, match="bias is a list: a tensor is needed"):
        layer(WEIGHT, [1.0, 1.0, 1.0, 1.0])


def test_an_untouched_head_may_be_all_zeros():
    assert Head(torch.zeros(4, 3)).classes == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layer", [Head, HeadGradient])
def test_entries_up_to_the_largest_of_single_precision(layer, dtype):
    largest = torch.finfo(torch.float32).max
    assert layer(torch.full((4, 3), -largest, dtype=dtype)).weight.dtype == dtype
    huge = torch.full((4, 3), 1.0001 * largest, dtype=torch.float64)
    with pytest.raises(InvalidObservation, match=r"entries of 3e\+38: at most 3e\+38 can be read"):
        layer(huge)


@pytest.mark.parametrize("value", [0.0, 1e-200, -1e-40])
def test_a_bias_gradient_of_zeros_was_not_sent(value):
    gradient = HeadGradient(WEIGHT, torch.full((4,), value, dtype=torch.float64))
    assert gradient.bias is None
    assert not Observation(Head(WEIGHT, BIAS), gradient).has_bias


def on_meta_device():
    """A gradient on another device than the head; meta is the only one on every machine."""
    gradient = HeadGradient(WEIGHT)
    object.__setattr__(gradient, "weight", torch.ones(4, 3, device="meta"))
    return gradient


@pytest.mark.parametrize(
    ("knowledge", "message"),
    [
        ({"gradient": HeadGradient(torch.ones(4, 2))}, "gradient is 4x2 and the head 4x3"),
        ({"gradient": HeadGradient(torch.ones(5, 3))}, "gradient is 5x3 and the head 4x3"),
        ({"head": Head(WEIGHT)}, "there is a bias gradient, and the head has no bias"),
        ({"gradient": on_meta_device()}, "head is on cpu and the gradient on meta: move one"),
        ({"batch_size": 0}, "batch size 0: it must be at least 1"),
        ({"batch_size": -3}, "batch size -3: it must be at least 1"),
        *(
            ({"batch_size": value}, "batch size .*: it must be a whole number, at least 1")
            for value in (2.5, 4.0, "4", True, math.nan, torch.tensor(2.0), np.float64(4))
        ),
        *(
            ({"local_steps": value}, "local steps .*: it must be a whole number, at least 1")
            for value in (2.5, "4", False)
        ),
        ({"local_steps": 0}, "local steps 0: it must be at least 1"),
        ({"batch_size": 2**53}, "fewer than 2.*53 instances can be counted"),
        ({"batch_size": 2**40, "local_steps": 2**14}, "fewer than 2.*53 instances"),
        ({"batch_size": 10**400}, "fewer than 2.*53 instances"),
        ({"reduction": "none"}, "reduction 'none': use 'mean' or 'sum'"),
        ({"label_smoothing": 1.0}, "label smoothing 1.0: it must be at least 0 and below 1"),
        ({"label_smoothing": -0.1}, "label smoothing -0.1: it must be"),
        ({"label_smoothing": math.nan}, "label smoothing nan: it must be"),
        ({"class_weights": torch.ones(3)}, "class weights 3 for 4 classes: one weight per class"),
        ({"class_weights": torch.ones(4, 1)}, "class weights 4x1: one weight per class"),
        ({"class_weights": torch.tensor([1.0, 0.0, 1.0, 1.0])}, "must be positive and finite"),
        ({"class_weights": torch.tensor([1.0, -1.0, 1.0, 1.0])}, "must be positive and finite"),
        ({"class_weights": torch.tensor([1.0, math.nan, 1.0, 1.0])}, "positive and finite"),
        ({"class_weights": torch.tensor([1.0, math.inf, 1.0, 1.0])}, "positive and finite"),
        ({"present_classes": torch.tensor([], dtype=torch.int64)}, "a non-empty list of class"),
        ({"present_classes": torch.tensor([[0]])}, "a non-empty list of class indices"),
        ({"present_classes": torch.tensor([0.0, 1.0])}, "2 of torch.float32: a non-empty list"),
        ({"present_classes": torch.tensor([True])}, "1 of torch.bool: a non-empty list"),
        ({"present_classes": [0, 1]}, "present_classes is a list: a tensor is needed"),
        ({"class_weights": [1.0] * 4}, "class_weights is a list: a tensor is needed"),
        (
            {"present_classes": torch.tensor([0, 4])},
            r"holds 0\.\.4, and the head has classes 0\.\.3",
        ),
        ({"present_classes": torch.tensor([-1, 2])}, r"present_classes holds -1\.\.2"),
        ({"present_classes": torch.tensor([2, 0, 2])}, "present_classes names a class twice"),
        (
            {"present_classes": torch.arange(3), "batch_size": 2},
            "3 classes are said to be present among 2 instances: the batch size is too small",
        ),
    ],
)
def test_contradictions_are_refused_in_one_line(knowledge, message, unchecked):
    with pytest.raises(InvalidObservation, match=message) as refused:
        observation(**knowledge)
    assert "\n" not in str(refused.value)


def test_an_invalid_observation_is_an_error_of_the_project_and_a_value_error():
    assert issubclass(InvalidObservation, LabelLeakError)
    assert issubclass(InvalidObservation, ValueError)


def test_present_classes_may_fill_the_instances_of_all_steps():
    known = observation(present_classes=torch.arange(4), batch_size=2, local_steps=2)
    assert known.num_instances == 4


@pytest.mark.parametrize("kind", [int, np.int64, np.uint8, torch.tensor])
def test_whole_numbers_of_any_kind_become_int(kind, unchecked):
    seen = observation(batch_size=kind(8), local_steps=kind(3))
    assert (seen.batch_size, seen.local_steps, seen.num_instances) == (8, 3, 24)
    assert {type(seen.batch_size), type(seen.local_steps)} == {int}
    assert observation(batch_size=2**53 - 1).num_instances == 2**53 - 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_present_classes_of_any_integer_type_become_int64(dtype):
    seen = observation(present_classes=torch.tensor([0, 2], dtype=dtype))
    assert torch.equal(seen.present_classes, torch.tensor([0, 2]))


def test_what_an_observation_knows_of_itself():
    head = Head(torch.ones(4, 3), torch.ones(4), name="fc")
    seen = observation(head=head, batch_size=8, local_steps=3)
    assert (head.classes, head.features, seen.classes, seen.num_instances) == (4, 3, 4, 24)
    unknown = dataclasses.replace(seen, training=LocalTraining(steps=3))
    assert (unknown.batch_size, unknown.num_instances) == (None, None)


def test_the_scale_is_that_of_a_summed_loss():
    assert observation(batch_size=8).scale == 1
    assert observation(batch_size=8, reduction="sum").scale == 8
    assert observation(reduction="sum").scale == 1


@pytest.mark.parametrize(
    ("head", "gradient", "expected"),
    [(BIAS, BIAS, True), (BIAS, None, False), (None, None, False)],
)
def test_a_bias_counts_only_together_with_its_gradient(head, gradient, expected):
    seen = Observation(Head(WEIGHT, head), HeadGradient(WEIGHT, gradient))
    assert seen.has_bias is expected


@pytest.mark.parametrize("seen", [Head(WEIGHT), HeadGradient(WEIGHT), observation()])
def test_what_was_seen_cannot_be_changed(seen):
    field = dataclasses.fields(seen)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(seen, field, None)


def test_rounding_is_that_of_the_dtype_unless_given():
    # A third is exact in no format.
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64) / 3
    for dtype in FORMATS:
        rounded, epsilon = weight.to(dtype), torch.finfo(dtype).eps
        expected = pytest.approx(4 * epsilon * root_mean_square(rounded))
        for stored in FORMATS:
            finer = torch.finfo(stored).eps <= epsilon
            if finer and {dtype, stored} != {torch.half, torch.bfloat16}:
                assert HeadGradient(rounded.to(stored)).rounding == expected
    assert HeadGradient(weight, rounding=0.25).rounding == 0.25


def test_the_size_of_a_gradient_is_that_of_a_typical_entry():
    for rounding in (math.nan, 0.1):
        assert HeadGradient(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), rounding=rounding).size == 2.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_implied_rounding_covers_that_of_a_real_gradient(dtype):
    exact = untrained(20, 30, 8).gradient()
    rounded = HeadGradient(exact.weight.to(dtype))
    error = root_mean_square(rounded.weight.double() - exact.weight)
    assert 0 < error <= rounded.rounding


@pytest.mark.parametrize(
    ("knowledge", "message"),
    [
        ({"local_epochs": 0}, "local epochs 0: it must be at least 1"),
        ({"local_steps": 5, "local_epochs": 2}, "2 local epochs in 5 local steps"),
        ({"learning_rates": (0.1, 0.1), "local_steps": 1}, "2 learning rates for 1 local steps"),
        ({"learning_rates": (0.0,)}, "learning rate 0.0: it must be positive"),
        ({"learning_rates": (math.inf,)}, "learning rate inf: it must be positive"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_in_one_line(knowledge, message):
    with pytest.raises(InvalidObservation, match=message) as refused:
        observation(**knowledge)
    assert "\n" not in str(refused.value)


def test_instances_are_the_different_samples_of_all_steps():
    assert observation(batch_size=8, local_steps=6).num_instances == 48
    assert observation(batch_size=8, local_steps=6, local_epochs=3).num_instances == 16
    assert observation(local_steps=6).num_instances is None


def test_a_short_last_batch_makes_fewer_instances():
    seen = observation(batch_size=32, local_steps=8, local_epochs=2, instances=100)
    assert seen.num_instances == 100
    for wrong in (0, 2**53):
        with pytest.raises(InvalidObservation, match="instances"):
            observation(batch_size=32, instances=wrong)
    assert observation(instances=100).batch_size == 100
    assert observation(instances=100, local_steps=8, local_epochs=2).batch_size == 25


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (torch.ones(0, 3), torch.tensor([], dtype=torch.int64), "needs samples"),
        (torch.ones(2, 3), torch.tensor([[0], [1]]), "labels in a row"),
        (torch.ones(3, 3), torch.tensor([0, 1]), "inputs are 3x3 and labels 2"),
        (torch.ones(2, 3), torch.tensor([0, -1]), "class indices"),
        (torch.ones(2, 3), torch.tensor([0.0, 1.0]), "class indices"),
    ],
)
def test_broken_auxiliary_data_is_refused_in_one_line(inputs, labels, message, unchecked):
    with pytest.raises(InvalidObservation, match=message) as refused:
        Auxiliary(inputs, labels)
    assert "\n" not in str(refused.value)


def test_auxiliary_labels_must_be_classes_of_the_head():
    auxiliary = Auxiliary(torch.ones(2, 3), torch.tensor([0, 4]))
    with pytest.raises(
        InvalidObservation, match=r"labels run to 4, and the head has classes 0\.\.3"
    ):
        observation(auxiliary=auxiliary)


def test_auxiliary_labels_of_any_integer_dtype_are_kept_as_int64():
    labels = Auxiliary(torch.ones(2, 3), torch.tensor([3, 0], dtype=torch.uint8)).labels
    assert labels.dtype == torch.int64
    assert labels.tolist() == [3, 0]


def test_auxiliary_inputs_that_are_not_finite_are_refused():
    with pytest.raises(InvalidObservation, match="NaN or infinite"):
        Auxiliary(torch.tensor([[1.0], [math.nan]]), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((), "sizes must be positive"), ((3, 0), "sizes must be positive"), ((1, 3), "are 3 each")],
)
def test_an_input_shape_that_cannot_be_is_refused(shape, message):
    auxiliary = Auxiliary(torch.ones(2, 3), torch.tensor([0, 1]))
    with pytest.raises(InvalidObservation, match=message):
        observation(input_shape=shape, auxiliary=auxiliary)

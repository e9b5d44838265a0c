from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labelleak.attacks import list_attacks, registry, restore
from labelleak.attacks.registry import Need
from labelleak.errors import InvalidObservation, MissingKnowledge
from labelleak.observation import HeadGradient
from labelleak.restoration import Flag
from labelleak.training import LocalTraining
from synthetic import losses, one_embedding, rng, untrained

# `labelleak.attacks` is the function of that name.

SMALL = untrained(20, 40, 6)
# More samples than features: no attack by rank.
LARGE = untrained(20, 8, 64, spread=1.0)
LARGE.embeddings += 0.1 * torch.rand(64, 8, generator=rng(), dtype=torch.float64)


def noisy(batch, strength, seed=0):
    """Gaussian noise, relative to a typical entry of the weight gradient."""
    gradient, generator = batch.gradient(), rng(seed)
    deviation = strength * gradient.weight.square().mean().sqrt()
    tensors = [
        tensor + deviation * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        for tensor in (gradient.weight, gradient.bias)
    ]
    return HeadGradient(*tensors)


def test_an_unknown_attack_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match="no attack named 'irlg': choose auto, ") as refused:
        restore(SMALL.observe(), "irlg")
    assert all(name in str(refused.value) for name in list_attacks())
    assert "\n" not in str(refused.value)


def test_hyper_parameters_reach_the_attack():
    batch = untrained(20, 40, 6, seed=2)
    assert int(batch.present.sum()) > 1
    assert int(restore(batch.observe(), "idlg", variant="original").present.sum()) == 1
    assert int(restore(batch.observe(), "gradinversion", variant="original").present.sum()) == 6


@pytest.mark.parametrize("attack", list_attacks())
def test_a_hyper_parameter_that_an_attack_does_not_have_is_refused_in_one_line(attack, unchecked):
    observation = SMALL.observe_for(list_attacks()[attack].needs)
    with pytest.raises(ValueError, match=f"^attack '{attack}': .*'strength'") as refused:
        restore(observation, attack, strength=1)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("attack", ["auto", "exact", "ilrg"])
@pytest.mark.parametrize("limit", [0, -1.0, float("nan")])
def test_a_time_limit_is_positive_whatever_the_attack(attack, limit):
    with pytest.raises(ValueError, match="it must be a positive number of seconds"):
        restore(SMALL.observe(), attack, time_limit=limit)


def test_a_time_limit_reaches_the_attacks_that_search_and_them_only(monkeypatch):
    seen = {}

    def searching(observation, *, time_limit=60.0):
        seen["limit"] = time_limit
        return ilrg.rule(observation)

    ilrg = list_attacks()["ilrg"]
    monkeypatch.setitem(registry._ATTACKS, "exact", replace(ilrg, name="exact", rule=searching))
    restore(SMALL.observe(), "exact", time_limit=3.0)
    assert seen["limit"] == 3.0
    restore(SMALL.observe(), "exact")
    assert seen["limit"] == 60.0
    assert restore(SMALL.observe(), "ilrg", time_limit=3.0).attack == "ilrg"


@pytest.mark.parametrize(
    "given",
    [
        (torch.nn.Linear(3, 2), {"weight": torch.ones(2, 3), "bias": torch.ones(2)}),
        (torch.nn.Linear(3, 2).state_dict(), [torch.ones(2, 3)]),
        (SMALL.gradient(),),
        ("update.safetensors",),
        (SMALL.observe(), 24),
    ],
)
@pytest.mark.parametrize("hyper_parameters", [{}, {"batch_size": 24}])
@pytest.mark.usefixtures("unchecked")
def test_what_is_no_observation_is_told_how_to_become_one(given, hyper_parameters):
    with pytest.raises(InvalidObservation) as error:
        restore(*given, **hyper_parameters)
    assert "restore(observe(model, gradients, batch_size=K))" in str(error.value)
    assert "\n" not in str(error.value)


def test_auto_takes_no_hyper_parameters():
    with pytest.raises(ValueError, match="'auto' takes no hyper-parameters: name the attack"):
        restore(SMALL.observe(), variant="original")


def test_a_type_error_inside_an_attack_is_not_dressed_up(monkeypatch):
    def broken(observation, **hyper_parameters):
        raise TypeError("unsupported operand")

    entry = replace(list_attacks()["idlg"], rule=broken)
    monkeypatch.setitem(registry._ATTACKS, "idlg", entry)
    with pytest.raises(TypeError, match="unsupported operand"):
        restore(SMALL.observe(), "idlg", variant="original")


@pytest.mark.parametrize(
    "observation",
    [SMALL.observe(bias=False), SMALL.observe(HeadGradient(SMALL.gradient().weight))],
)
def test_missing_knowledge_is_named(observation):
    message = "^attack 'ilrg' needs the final layer's bias and its gradient$"
    with pytest.raises(MissingKnowledge, match=message):
        restore(observation, "ilrg")


def test_all_missing_knowledge_is_named_at_once(monkeypatch):
    entry = replace(list_attacks()["ilrg"], needs=(Need.BIAS, Need.BATCH_SIZE))
    monkeypatch.setitem(registry._ATTACKS, "ilrg", entry)
    message = "the final layer's bias and its gradient and the batch size .*--batch-size K"
    with pytest.raises(MissingKnowledge, match=message):
        restore(SMALL.observe(bias=False, batch_size=None), "ilrg")


def test_a_missing_scale_is_named():
    with pytest.raises(MissingKnowledge, match="summed loss needs the batch size"):
        restore(SMALL.observe(reduction="sum", batch_size=None), "ilrg")


EXACT = one_embedding(10, 30, 24)


def test_an_exact_gradient_raises_no_flag():
    for dtype in (torch.float32, torch.float64):
        assert restore(EXACT.observe(dtype=dtype)).flags == ()


@pytest.mark.parametrize(
    ("flag", "observation"),
    [
        (Flag.SUMS_NOT_ZERO, EXACT.observe(noisy(EXACT, 0.1))),
        (Flag.DEFENSE_SUSPECTED, EXACT.observe(noisy(EXACT, 0.1))),
        (Flag.NO_BIAS, EXACT.observe(bias=False)),
        (Flag.NO_BIAS, EXACT.observe(HeadGradient(EXACT.gradient().weight))),
        (Flag.SEVERAL_STEPS, EXACT.observe(batch_size=12, local_steps=2)),
        (Flag.UNKNOWN_BATCH_SIZE, EXACT.observe(batch_size=None)),
        (Flag.SET_ONLY, EXACT.observe(bias=False)),
    ],
)
def test_every_flag_of_an_observation_is_raised_where_it_should_be(flag, observation):
    assert flag in restore(observation, "idlg").flags


@pytest.mark.parametrize(
    ("flag", "observation"),
    [
        ((Flag.SEVERAL_STEPS, Flag.SET_ONLY), EXACT.observe(batch_size=12, local_steps=2)),
        ((Flag.UNKNOWN_BATCH_SIZE, Flag.SET_ONLY), EXACT.observe(batch_size=None)),
        ((Flag.NO_BIAS, Flag.SET_ONLY), SMALL.observe(bias=False)),
        (
            (Flag.NO_BIAS, Flag.SEVERAL_STEPS, Flag.SET_ONLY),
            SMALL.observe(bias=False, local_steps=2),
        ),
        (
            (Flag.NO_BIAS, Flag.UNKNOWN_BATCH_SIZE, Flag.SET_ONLY),
            SMALL.observe(bias=False, batch_size=None),
        ),
    ],
)
def test_no_other_flag_is_raised_and_the_order_is_fixed(flag, observation):
    assert restore(observation, "idlg").flags == flag


@pytest.mark.parametrize("tensor", ["weight", "bias"])
def test_sums_of_either_tensor_must_be_zero(tensor):
    gradient, off = EXACT.gradient(), noisy(EXACT, 1.0)
    changed = {"weight": gradient.weight, "bias": gradient.bias, tensor: getattr(off, tensor)}
    assert Flag.SUMS_NOT_ZERO in restore(EXACT.observe(HeadGradient(**changed)), "idlg").flags


FORMATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize("stored", [*FORMATS, None], ids=str)
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("classes", [2, 10, 500])
def test_rounding_is_no_sum_that_is_not_zero(classes, dtype, stored):
    """Also where a coarse gradient is stored in a finer format."""
    for size in (1, 16, 64):
        exact = untrained(classes, 64, size).gradient(dtype)
        gradient = HeadGradient(exact.weight.to(stored or dtype), exact.bias.to(stored or dtype))
        observation = untrained(classes, 64, size).observe(gradient)
        assert Flag.SUMS_NOT_ZERO not in restore(observation, "idlg").flags


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("size", [1, 8, 64])
def test_a_network_in_half_precision_has_sums_of_zero(size, autocast):
    """There the predictions are rounded and do not sum to one."""
    for seed in range(5):
        batch = untrained(20, 40, size, seed)
        dtype = torch.float32 if autocast else torch.bfloat16
        head = torch.nn.Linear(40, 20, dtype=dtype)
        with torch.no_grad():
            head.weight.copy_(batch.weight)
            head.bias.copy_(batch.bias)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            logits = head(batch.embeddings.to(dtype))
            torch.nn.functional.cross_entropy(logits, batch.labels).backward()
        gradient = HeadGradient(head.weight.grad, head.bias.grad)
        observation = replace(batch.observe(dtype=dtype), gradient=gradient)
        assert Flag.SUMS_NOT_ZERO not in restore(observation, "idlg").flags


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("rounding", [float("nan"), 1e3])
def test_noise_of_a_tenth_is_no_rounding_of_any_format(dtype, rounding):
    gradient = noisy(untrained(20, 40, 16), 0.2)
    gradient = HeadGradient(gradient.weight.to(dtype), gradient.bias.to(dtype), rounding)
    observation = untrained(20, 40, 16).observe(gradient)
    assert Flag.SUMS_NOT_ZERO in restore(observation, "idlg").flags


def test_a_gradient_of_the_bias_alone_has_no_sums_to_miss():
    batch = untrained(10, 30, 24)
    gradient = batch.gradient()
    gradient = HeadGradient(torch.zeros_like(gradient.weight), gradient.bias)
    assert Flag.SUMS_NOT_ZERO not in restore(batch.observe(gradient), "mbi").flags


def test_a_set_that_yields_counts_is_not_a_set_only():
    one = untrained(10, 30, 1)
    assert Flag.SET_ONLY not in restore(one.observe(), "idlg").flags
    several = untrained(10, 30, 24)
    assert Flag.SET_ONLY in restore(several.observe(), "idlg").flags
    assert Flag.SET_ONLY not in restore(several.observe(), "ilrg").flags
    assert Flag.SET_ONLY not in restore(several.observe(batch_size=None), "ilrg").flags


def test_flags_of_the_attack_are_kept():
    found = restore(EXACT.observe(noisy(EXACT, 3.0)), "ilrg")
    assert {Flag.SUMS_NOT_ZERO, Flag.TOTAL_DOES_NOT_FIT} <= set(found.flags)
    assert list(found.flags) == [flag for flag in Flag if flag in found.flags]
    assert found.unreliable


LOSSES = losses(20)


def ten_classes(**options):
    """One sample of each of ten classes: shares of 0.1, predictions of about 0.05."""
    batch = untrained(20, 40, 10, **options)
    batch.labels = torch.arange(0, 20, 2)
    return batch


def test_a_batch_size_below_the_classes_that_are_there_is_refused():
    batch = ten_classes()
    message = "batch size 5 is too small: the gradient shows at least 10 classes in the batch"
    for attack in ("auto", *list_attacks()):
        with pytest.raises(InvalidObservation, match=message) as refused:
            restore(batch.observe(batch_size=5), attack)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_a_batch_size_that_is_too_small_is_seen_under_every_mean_loss(loss):
    """With a summed loss, too small a batch size makes the gradient too large."""
    batch = ten_classes(scale=0.1)
    with pytest.raises(InvalidObservation, match="batch size 3 is too small"):
        restore(batch.observe_under(loss, batch_size=3))


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0])
def test_the_true_batch_size_is_never_refused(loss, scale):
    """With label smoothing a confident network has negative entries for absent classes."""
    for size in (1, 2, 7, 20):
        for seed in range(3):
            batch = untrained(20, 40, size, seed, scale=scale, spread=1.0)
            assert restore(batch.observe_under(loss), "idlg").attack == "idlg"


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_rounding_does_not_make_the_true_batch_size_too_small(loss, dtype):
    for seed in range(5):
        batch = untrained(20, 40, 1, seed, scale=20.0, spread=1.0)
        observation = batch.observe_under(loss)
        gradient = observation.gradient
        rounded = HeadGradient(gradient.weight.to(dtype), gradient.bias.to(dtype))
        assert restore(replace(observation, gradient=rounded), "idlg").attack == "idlg"


def test_rounding_of_the_bias_alone_does_not_either():
    """Features are nearly zero, and single precision rounds 0.1 up, beyond the bound."""
    batch = untrained(4, 3, 1)
    bias = torch.tensor([0.3, -0.1, -0.1, -0.1])
    observation = batch.observe(
        HeadGradient(torch.full((4, 3), 1e-30), bias), dtype=torch.float32, label_smoothing=0.4
    )
    assert restore(observation, "idlg").attack == "idlg"


@given(
    seed=st.integers(0, 10**6),
    strength=st.floats(1e-6, 100),
    size=st.sampled_from([1, 2, 8]),
    classes=st.sampled_from([2, 10, 100]),
)
def test_noise_does_not_make_the_true_batch_size_too_small(seed, strength, size, classes):
    batch = untrained(classes, 64, size, seed)
    observation = batch.observe(noisy(batch, strength, seed))
    assert restore(observation, "idlg").attack == "idlg"


def test_a_batch_size_cannot_be_checked_without_a_bias_or_unknown():
    batch = ten_classes()
    assert restore(batch.observe(bias=False, batch_size=5), "idlg").attack == "idlg"
    assert restore(batch.observe(batch_size=None), "idlg").attack == "idlg"


def test_local_steps_count_towards_the_batch_size():
    batch = ten_classes()
    with pytest.raises(InvalidObservation, match="batch size 8 is too small"):
        restore(batch.observe(batch_size=4, local_steps=2))
    assert restore(batch.observe(batch_size=5, local_steps=2), "ilrg").attack == "ilrg"


@pytest.mark.parametrize("attack", list_attacks())
def test_an_attack_that_models_the_steps_is_not_said_to_take_them_for_one(attack):
    needs = {*list_attacks()[attack].needs, Need.BATCH_SIZE} - {Need.ONE_SAMPLE}
    seen = untrained(6, 12, 6).observe_for(needs)
    training = LocalTraining(learning_rate=0.05, batch_size=seen.batch_size, steps=2)
    observation = replace(seen, training=training)
    if Need.ONE_SAMPLE in list_attacks()[attack].needs:
        with pytest.raises(MissingKnowledge, match="one sample"):
            restore(observation, attack)
        return
    if attack in ("exact", "virtual-batches"):
        with pytest.raises(MissingKnowledge, match="one local step"):
            restore(observation, attack)
        return
    few = {"virtual": {"trainings": 12}, "synthetic": {"trainings": 24}}.get(attack, {})
    flags = restore(observation, attack, **few).flags
    models = ("rlu", "decaf", "likelihood", "dimitrov", "virtual", "synthetic")
    assert (Flag.SEVERAL_STEPS in flags) is (attack not in models)

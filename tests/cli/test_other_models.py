"""Models and files as users have them, audited from the command line: the right counts, or a line.

The prefix, the copy, the kernel and the layout come from what people report of their own models.
"""

import json
import re
from collections import OrderedDict
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from command_line import labelleak

K = 6


SEED = 3


@pytest.fixture
def audit(tmp_path):
    """Audits two files of arrays; gives the record, or the one line of a refusal."""

    def run(before, after, *options, ending="safetensors"):
        for name, content in (("before", before), ("after", after)):
            path = tmp_path / f"{name}.{ending}"
            if ending == "pt":
                torch.save(content, path)
            elif ending == "npz":
                np.savez(path, **{key: value.numpy() for key, value in content.items()})
            else:
                save_file({key: value.contiguous() for key, value in content.items()}, path)
        done = labelleak(
            "audit", "--before", tmp_path / f"before.{ending}", "--update",
            tmp_path / f"after.{ending}", "--learning-rate", "0.1", "--batch-size", K,
            "--format", "json", "--attack", "exact", *options
        )  # fmt: skip
        if done.status == 2:
            assert (done.out, done.err.count("\n")) == ("", 1)
            return done.err
        assert (done.status, done.err) == (0, "")
        return json.loads(done.out)

    return run


def step(seed, names, sizes):
    """State dicts before and after a step of a network of such layers, and the true counts."""
    torch.manual_seed(seed)
    layers = OrderedDict()
    for name, (inputs, outputs) in zip(names, pairwise(sizes), strict=True):
        layers[name] = nn.Linear(inputs, outputs)
        layers[f"act{name}"] = nn.ReLU()
    layers.popitem()
    net = nn.Sequential(layers)
    labels = torch.randint(0, sizes[-1], (K,))
    nn.functional.cross_entropy(net(torch.randn(K, sizes[0])), labels).backward()
    before = {name: value.detach().clone() for name, value in net.state_dict().items()}
    after = {name: p.detach() - 0.1 * p.grad for name, p in net.named_parameters()}
    return before, after, torch.bincount(labels, minlength=sizes[-1]).tolist()


def as_kernels(state, separator, kernel="kernel"):
    """Kernels as Keras and Flax keep them: (features, classes)."""
    return {
        separator.join(name.replace("weight", kernel).split(".")): value.T.contiguous()
        if value.ndim == 2
        else value
        for name, value in state.items()
    }


SQUARE = (24, 24, 24, 24)


@pytest.mark.parametrize("names", [("0", "2", "4"), ("a", "b", "c")])
@pytest.mark.parametrize("kernels", [False, True])
def test_layers_of_one_shape_are_listed_and_the_named_one_is_read(audit, names, kernels):
    before, after, truth = step(SEED, names, SQUARE)
    if kernels:
        before, after = (as_kernels(state, "/") for state in (before, after))
    line = audit(before, after)
    listed = ", ".join(f"{name} (24 classes)" for name in names)
    assert f"3 layers of one shape changed, candidates are: {listed}; choose the one" in line
    # What the line says to do, done.
    option = re.search(r"\(on the command line (--head) NAME\)", line)[1]
    record = audit(before, after, option, names[-1])
    assert (record["head"], record["counts"]) == (names[-1], truth)


@pytest.mark.parametrize("names", [("fc1", "fc2", "fc3"), ("dense", "dense_1", "out")])
def test_a_usual_name_tells_layers_of_one_shape_apart(audit, names):
    before, after, truth = step(SEED, names, SQUARE)
    record = audit(before, after)
    assert (record["head"], record["counts"]) == (names[-1], truth)


PREFIXES = ("module.", "model.", "net.", "backbone.", "base_model.model.", "a.b.c.")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_may_stand_on_one_side_only(audit, prefix):
    plain, after, truth = step(SEED, ("body", "fc"), (32, 64, 10))
    longer = {prefix + name: value for name, value in after.items()}
    first = {prefix + name: value for name, value in plain.items()}
    for before, update, ending in ((plain, longer, "pt"), (first, after, "npz")):
        for options in ((), ("--head", "fc")):
            assert audit(before, update, *options, ending=ending)["counts"] == truth


@pytest.mark.parametrize(
    ("names", "separator", "kernel", "head"),
    [
        (("dense", "dense_1"), "/", "kernel", "dense_1"),
        (("params.Dense_0", "params.Dense_1"), ".", "kernel", "params.Dense_1"),
        (("dense", "dense_1"), ".", "weight", "dense_1"),
        (("encoder", "head"), "/", "kernel", "head"),
    ],
)
@pytest.mark.parametrize("ending", ["safetensors", "npz"])
def test_kernels_are_turned(audit, names, separator, kernel, head, ending):
    before, after, truth = step(SEED, ("one", "two"), (32, 64, 10))
    before, after = (
        as_kernels(
            {
                name.replace("one", names[0]).replace("two", names[1]): value
                for name, value in state.items()
            },
            separator,
            kernel,
        )
        for state in (before, after)
    )
    for options in ((), ("--head", head)):
        record = audit(before, after, *options, ending=ending)
        assert (record["counts"], record["features"]) == (truth, 64)


@pytest.mark.parametrize(
    "keys", [("teacher", "student"), ("student", "teacher"), ("ema", "online")]
)
def test_of_two_state_dicts_the_one_that_moved_is_named(audit, keys):
    plain, after, truth = step(SEED, ("body", "fc"), (32, 64, 10))
    moved = keys[1]
    before = dict.fromkeys(keys, plain)
    record = audit(before, {**before, moved: after}, ending="pt")
    assert (record["head"], record["counts"]) == (f"{moved}.fc", truth)
    average = {name: 0.99 * plain[name] + 0.01 * after[name] for name in plain}
    both = {keys[0]: average, moved: after}
    assert all(f"{key}.fc (10 classes)" in audit(before, both, ending="pt") for key in keys)
    record = audit(before, both, "--head", f"{moved}.fc", ending="pt")
    assert (record["head"], record["counts"]) == (f"{moved}.fc", truth)


@pytest.mark.parametrize("hidden", [8, 64])
def test_one_logit_is_refused_by_name_and_no_hidden_layer_is_read(audit, hidden):
    before, after, _ = step(SEED, ("0", "2"), (32, hidden, 2))
    one = [{n: v[:1] if n.startswith("2") else v for n, v in s.items()} for s in (before, after)]
    for options in ((), ("--head", "2")):
        assert "2 is one logit" in audit(*one, *options)

"""The benchmark of devices: what counts as the same, and that a path which differs is named."""

import sys

import pytest
import torch

import devices
import labelleak


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0 + 1e-6]), True),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.1]), False),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), False),
        (torch.tensor([1, 2]), torch.tensor([1.0, 2.0]), False),
        (torch.tensor([1.0]), torch.tensor([1.0, 1.0]), False),
        (None, torch.tensor([1.0]), False),
        (None, None, True),
        (0.5, 0.5 + 1e-7, True),
        (0.5, 0.6, False),
        ("exact", "auto", False),
    ],
)
def test_what_is_the_same(one, other, same):
    assert devices.agree(one, other, 1e-5) is same


def test_a_result_on_another_device_is_named():
    here, there = {"a": torch.ones(1), "b": 1}, {"a": torch.ones(1), "c": 1}
    found = devices.differences(here, there, "meta", 1e-6)
    assert found == ["a: is on cpu", "b: on one side only", "c: on one side only"]


def test_a_path_that_fails_is_a_difference():
    def path(device):
        raise RuntimeError(f"no kernel on {device}\nmore")

    assert devices.compared(path, "cpu", 1e-6)["differs"] == ["cpu: RuntimeError: no kernel on cpu"]


def test_every_attack_is_a_path_and_those_of_a_kind_agree_on_the_cpu(monkeypatch, capsys):
    names = devices.paths()
    assert {f"attack {name}" for name in labelleak.list_attacks()} <= set(names)
    only = ["attack ilrg", "capture focal", "training, adamw", "defense", "ceiling"]
    monkeypatch.setattr(sys, "argv", ["devices.py", "--device", "cpu", "--only", *only])
    with pytest.raises(SystemExit) as ended:
        devices.main()
    assert ended.value.code == 0, capsys.readouterr().out
    assert "10 of 10 paths give the same on cpu" in capsys.readouterr().out


@pytest.mark.parametrize("device", ["meta", "mps"])
def test_a_device_that_the_package_does_not_offer_is_refused(monkeypatch, capsys, device):
    monkeypatch.setattr(sys, "argv", ["devices.py", "--device", device])
    with pytest.raises(SystemExit) as ended:
        devices.main()
    assert ended.value.code == 2
    assert f"invalid choice: '{device}'" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_one_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["devices.py", "--device", "cuda"])
    with pytest.raises(SystemExit, match="no CUDA GPU here"):
        devices.main()

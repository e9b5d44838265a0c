"""Run a model and leave it as it was, and the global state around it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn

MODEL_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)
"""What a model raises whose inputs do not fit it, or that asks what it must not."""


@contextmanager
def isolated(model: nn.Module) -> Iterator[None]:
    """Run forward passes without gradients, and restore modes and buffers afterward.

    Inside, passes write to copies of the buffers, of BatchNorm's running statistics for example,
    and every module may be set to training or evaluation mode. Random numbers are the caller's.

    Args:
        model: Any network; on exit its modules are in the modes and hold the buffers of before.
    """
    modes = [(module, module.training) for module in model.modules()]
    # Not torch.func.functional_call, which takes no DataParallel and keeps no buffer that is None.
    kept = [(module, dict(module._buffers)) for module in model.modules()]
    copies: dict[Tensor, Tensor] = {}
    for module, buffers in kept:
        for name, value in buffers.items():
            if value is not None:
                # A buffer that two modules share stays shared.
                module._buffers[name] = copies.setdefault(value, value.clone())
    try:
        with torch.no_grad():
            yield
    finally:
        for module, buffers in kept:
            module._buffers.clear()
            module._buffers.update(buffers)
        for module, mode in modes:
            module.training = mode


def draws_random_numbers(model: nn.Module, inputs: Tensor) -> bool:
    """Whether a forward pass takes numbers from a global generator, or cannot be made at all.

    Args:
        model: Any network on the CPU, in the mode that is asked about; it is left as it was.
        inputs: Some that it takes.
    """
    with undisturbed():
        model = deepcopy(model)
        before = _drawn_from()
        try:
            model(inputs)
        except MODEL_ERRORS:
            return True
        return _drawn_from() != before


@contextmanager
def undisturbed(device: torch.device | str = "cpu") -> Iterator[None]:
    """Isolate global state and restore it on exit; inside, it is that of a fresh run.

    Generators of random numbers (torch, NumPy, Python), gradient mode, default device, autocast.

    Args:
        device: Where to compute: its generator, default device and autocast.
    """
    device = torch.device(device)
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with (
            torch.random.fork_rng(
                devices=[] if device.type == "cpu" else [device], device_type=_generator(device)
            ),
            plain_mode(device),
        ):
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


@contextmanager
def plain_mode(device: torch.device | str = "cpu") -> Iterator[None]:
    """What of global state a thread has of its own, as in a fresh run: gradients are recorded.

    Args:
        device: Where to compute: its default device and autocast.
    """
    device = torch.device(device)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.device(device),
        torch.autocast(device.type, enabled=False),
    ):
        yield


def _drawn_from() -> tuple[object, ...]:
    """The states of the global generators, to be compared."""
    numpy_state = np.random.get_state(legacy=False)
    return (
        torch.get_rng_state().numpy().tobytes(),
        repr({**numpy_state, "state": None}) + repr(numpy_state["state"]["pos"]),
        numpy_state["state"]["key"].tobytes(),
        random.getstate(),
    )


def _generator(device: torch.device) -> str:
    """Kind of device whose generators `fork_rng` knows; it always keeps that of the CPU."""
    return "cuda" if device.type == "cpu" else device.type

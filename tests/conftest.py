"""Settings of every test run: instruction sets, threads, the clock, and checked signatures.

`LABELLEAK_TEST_THREADS` is the number of threads of PyTorch (1). `LABELLEAK_TEST_CLOCK` says how
many times faster than real time the clock runs (1): at 5, this machine seems five times slower.
"""

import os
import time

import jaxtyping
import pytest

# Some virtual machines announce AMX and then refuse its instructions: a bfloat16 product would end
# the tests. PyTorch reads this when it is imported.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

import torch
from hypothesis import HealthCheck, settings

# Shapes and types in signatures are checked while the tests run. The hook comes before the package
# is imported.
jaxtyping.install_import_hook("labelleak", "typechecker.check")

# A slow machine draws its examples slowly: that is no failure.
settings.register_profile("labelleak", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("labelleak")

torch.set_num_threads(int(os.environ.get("LABELLEAK_TEST_THREADS", "1")))


def _run_faster(name: str, factor: float) -> None:
    """Replace a clock of the `time` module by one that runs so many times faster."""
    real = getattr(time, name)
    setattr(time, name, lambda: factor * real())


if (speed := float(os.environ.get("LABELLEAK_TEST_CLOCK", "1"))) != 1.0:
    # Before the package is imported: `now=time.monotonic` is a default argument there.
    _run_faster("monotonic", speed)
    _run_faster("perf_counter", speed)


@pytest.fixture
def unchecked():
    """Signatures are not checked, as outside the tests: for what the code itself must refuse."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)

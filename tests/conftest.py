"""Settings of every test run.

Two environment variables: LABELLEAK_TEST_THREADS, threads of PyTorch (default 1), and
LABELLEAK_TEST_CLOCK, how many times faster the clock runs (default 1). At 5, the machine seems
five times slower.
"""

import gc
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

# No failure because a slow machine draws examples slowly.
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


def pytest_collection_finish():
    """Thousands of collected tests stay: the garbage collector does not go through them again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def unchecked():
    """Signatures are not checked, as outside the tests: for what the code itself must refuse."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)

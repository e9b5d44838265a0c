import os

import jaxtyping
import pytest

# Some virtual machines announce AMX and then refuse its instructions: a bfloat16 product would end
# the tests. Set before PyTorch is imported.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

import torch
from hypothesis import settings

# Shapes and types in signatures are checked while the tests run; before anything is imported.
jaxtyping.install_import_hook("labelleak", "typechecker.check")

settings.register_profile("labelleak", deadline=None)
settings.load_profile("labelleak")

torch.set_num_threads(1)


@pytest.fixture
def unchecked():
    """Signatures are not checked, as outside the tests: for what the code itself must refuse."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)

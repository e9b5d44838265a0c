import jaxtyping
import pytest
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

import pytest

from labelleak.lab.datasets import load


@pytest.fixture(scope="session")
def digits():
    return load("mnist-sample")

"""Losses of other packages by their name, and who may name one."""

import importlib.metadata
import sys

import pytest
import torch

from labelleak.errors import InvalidObservation
from labelleak.loss import Loss
from labelleak.loss_plugins import loss_plugin, plugged_loss
from labelleak.plugins import finding


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package with a loss, on the path and with its entry point."""
    (tmp_path / "losses_of_a_test.py").write_text(
        "from labelleak import Loss\n\ndef smooth(by=0.1):\n    return Loss(label_smoothing=by)\n"
    )
    folder = tmp_path / "some_losses-1.2.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: some-losses\nVersion: 1.2\n")
    (folder / "entry_points.txt").write_text(
        "[labelleak.losses]\nsmooth = losses_of_a_test:smooth\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    finding.entry_points.cache_clear()
    yield
    finding.entry_points.cache_clear()
    sys.modules.pop("losses_of_a_test", None)


@pytest.mark.usefixtures("installed")
def test_an_entry_point_names_a_loss():
    assert "smooth" in {
        one.name for one in importlib.metadata.entry_points(group="labelleak.losses")
    }
    plugin = loss_plugin("smooth", {})
    assert (plugin.package, plugin.module) == ("some-losses 1.2", "losses_of_a_test")
    residual = plugged_loss("smooth", {"by": 0.4}).residual(torch.zeros(1, 2), torch.tensor([0]))
    expected = Loss(label_smoothing=0.4).residual(torch.zeros(1, 2), torch.tensor([0]))
    torch.testing.assert_close(residual, expected)


@pytest.mark.usefixtures("installed", "unchecked")
@pytest.mark.parametrize("name", ["losses_of_a_test:smooth", "smooth"])
def test_what_files_and_messages_hold_imports_nothing(name):
    for told in (name, {"kind": name}, {"kind": "custom", "function": name}):
        with pytest.raises(InvalidObservation):
            Loss.of(told)
    assert "losses_of_a_test" not in sys.modules

import pytest
import torch
from torch import nn
from update_models import named, train

from labelleak import observe, observe_update

WRAPPERS = {
    "none": ("", lambda model: model),
    "DataParallel": ("module.", nn.DataParallel),
    "compile": ("_orig_mod.", lambda model: torch.compile(model, backend="eager")),
    "both": (
        "_orig_mod.module.",
        lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
    ),
}


@pytest.mark.parametrize("update", WRAPPERS)
@pytest.mark.parametrize("wrapped", WRAPPERS)
class TestWrappers:
    """Server and client may wrap the model differently."""

    def test_gradients(self, model, wrapped, update):
        gradients = {WRAPPERS[update][0] + name: value for name, value in named(model).items()}
        outer = WRAPPERS[wrapped][1](model)
        for server in (outer, outer.state_dict()):
            observation = observe(server, gradients)
            assert observation.head.name == "3"
            assert torch.equal(observation.gradient.weight, named(model)["3.weight"])
            assert observation.gradients.keys() == named(model).keys()
        assert observe(outer, gradients).model is model
        assert observe(outer, list(named(model).values())).gradients.keys() == named(model).keys()

    def test_weights(self, model, wrapped, update):
        after, gradients = train(model, 1, 0.1)
        after = {WRAPPERS[update][0] + name: value for name, value in after.items()}
        outer = WRAPPERS[wrapped][1](model)
        for head in (None, "3", "module.3", "3.weight", "module.3.bias", "_orig_mod.module.3"):
            observation = observe_update(
                outer, outer.state_dict(), after, learning_rate=0.1, head=head
            )
            assert observation.head.name == "3"
            assert observation.model is model
            assert observation.gradients.keys() == gradients[0].keys()

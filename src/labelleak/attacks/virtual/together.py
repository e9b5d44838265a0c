"""Virtual clients that train together, as one network with a batch of weights: for a GPU."""

from collections.abc import Sequence
from copy import deepcopy

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call, vmap

from labelleak.attacks.virtual.drawing import Drawn
from labelleak.attacks.virtual.simulation import Recipe
from labelleak.isolation import undisturbed
from labelleak.local_steps import take_steps


def train_together(recipe: Recipe, drawn: Sequence[Drawn]) -> list[dict[str, Tensor]]:
    """State dicts of virtual clients, as `Recipe.trained` gives them one by one.

    All have as many samples. A step of all of them is one pass through the network, in which every
    tensor has one more dimension; optimizers step on every entry by itself, whosever it is.

    Args:
        recipe: Of the virtual clients.
        drawn: What they train on.

    Raises:
        RuntimeError: The network has an operation that is not made for batches of weights.
    """
    with undisturbed(recipe.device):
        torch.manual_seed(drawn[0].seed)
        return _trained(recipe, drawn)


def _trained(recipe: Recipe, drawn: Sequence[Drawn]) -> list[dict[str, Tensor]]:
    prepared = [recipe.prepared(one) for one in drawn]
    _check_buffers(recipe.model, prepared[0][0][:1])
    many = _Many(deepcopy(recipe.model), len(drawn))
    inputs = torch.cat([own for own, _, _ in prepared])
    labels = torch.cat([own for _, own, _ in prepared])
    starts = torch.arange(len(drawn), device="cpu")[:, None] * len(prepared[0][1])
    batches = [
        starts + torch.stack(places)
        for places in zip(*(batches for _, _, batches in prepared), strict=True)
    ]
    value = recipe.observation.loss.value

    def sum_of_losses(logits: Tensor, labels: Tensor) -> Tensor:
        # Of the sum, every client's weights have the gradient of their own loss.
        return torch.stack([value(*one) for one in zip(logits, labels, strict=True)]).sum()

    take_steps(many, inputs, labels, batches, recipe.observation.training, sum_of_losses)
    return many.state_dicts()


def _check_buffers(model: nn.Module, inputs: Tensor) -> None:
    """Refuse a model that puts another tensor in a buffer's place, which would go unseen."""
    model = deepcopy(model)
    before = [id(value) for value in model.buffers()]
    if before:
        model(torch.cat([inputs, inputs]))
    if [id(value) for value in model.buffers()] != before:
        raise RuntimeError("a buffer of the model is replaced in training")


class _Many(nn.Module):
    """A network of which each of a number of clients has weights of its own."""

    def __init__(self, model: nn.Module, clients: int) -> None:
        super().__init__()
        self.clients = clients
        trained = {name: own for name, own in model.named_parameters() if own.requires_grad}
        self.names = list(trained)
        self.weights = nn.ParameterList(self._repeated(own) for own in trained.values())
        self.kept = {name: self._repeated(own) for name, own in model.named_buffers()}
        # In a list, so that its own weights are not among those that are trained.
        self._model = [model]

    def _repeated(self, value: Tensor) -> Tensor:
        return value.detach().expand(self.clients, *value.shape).clone()

    def _own(self) -> dict[str, Tensor]:
        return {**dict(zip(self.names, self.weights, strict=True)), **self.kept}

    def forward(
        self, inputs: Shaped[Tensor, "clients batch *input"]
    ) -> Float[Tensor, "clients batch classes"]:
        """Logits of every client's batch."""

        def one(own: dict[str, Tensor], batch: Tensor) -> Tensor:
            logits: Tensor = functional_call(self._model[0], own, (batch,))
            return logits

        logits: Tensor = vmap(one, randomness="different")(self._own(), inputs)
        return logits

    def state_dicts(self) -> list[dict[str, Tensor]]:
        """Those of the clients, with all that the network's own has."""
        own = self._own()
        model = self._model[0]
        every = [
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        ]
        first: dict[int, str] = {}
        # A tensor that two layers share has two names, and is in `own` under the first.
        names = {name: first.setdefault(id(value), name) for name, value in every}
        return [
            {
                name: own[names[name]].detach()[client] if names.get(name) in own else value
                for name, value in model.state_dict().items()
            }
            for client in range(self.clients)
        ]

"""What a model shows of the training that made it: changes of its tensors, and its behavior."""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from labelleak.attacks.probe import class_means
from labelleak.errors import InvalidObservation
from labelleak.isolation import MODEL_ERRORS
from labelleak.observation import Auxiliary

# A tensor with more entries is kept as a sketch of as many: a hundred updates of a large network
# would not fit into memory.
_MOST_ENTRIES = 1 << 15

# Test inputs of each class.
_TESTS = 40
# Inputs that go through a model at once.
_GROUP = 256

BEHAVIOR = "behavior"
"""Name, beside those of tensors, of what a model says of test inputs."""


def changes_between(
    model: nn.Module, after: Mapping[str, Tensor], names: Sequence[str]
) -> dict[str, Tensor]:
    """How much every named parameter fell, flat, on the CPU; large ones as sketches."""
    before = dict(model.named_parameters())
    found = {}
    for name in names:
        fell = before[name].detach() - after[name].detach().to(before[name])
        found[name] = sketched(fell.flatten().cpu())
    return found


def behavior(
    model: nn.Module, state: Mapping[str, Tensor], tests: tuple[Tensor, Tensor]
) -> Float[Tensor, " pairs"]:
    """Mean log-probability of every class for the test inputs of every class, on the CPU.

    Args:
        model: The network, of which a copy is run in evaluation mode.
        state: Weights and buffers to use instead of its own, by name.
        tests: Inputs and labels.
    """
    model = deepcopy(model).eval()
    own = model.state_dict()
    model.load_state_dict({**own, **{name: state[name] for name in own if name in state}})
    inputs, labels = tests
    like = next(model.parameters())
    inputs = inputs.to(like) if inputs.is_floating_point() else inputs.to(like.device)
    try:
        with torch.no_grad():
            logits = torch.cat([model(group) for group in torch.split(inputs, _GROUP)])
        certainty = logits.double().log_softmax(dim=1).cpu()
        shown = class_means(certainty, labels.cpu(), certainty.shape[1])
    except MODEL_ERRORS as error:
        raise InvalidObservation(
            f"the auxiliary inputs do not go through the model: {first_line(error)}"
        ) from None
    return shown.flatten().to(like.dtype)


def sketched(values: Float[Tensor, " entries"]) -> Float[Tensor, " kept"]:
    """The values, or a count sketch of them, which keeps inner products on average.

    Every entry is added, with a random sign, to a random one of the sketch (Charikar, Chen and
    Farach-Colton 2002). The same for all vectors of one length.
    """
    size = len(values)
    if size <= _MOST_ENTRIES:
        return values
    generator = torch.Generator().manual_seed(size)
    places = torch.randint(_MOST_ENTRIES, (size,), generator=generator)
    signs = 2.0 * torch.randint(2, (size,), generator=generator, dtype=torch.uint8).to(values) - 1.0
    return values.new_zeros(_MOST_ENTRIES).index_add_(0, places, signs * values)


def tests_of(auxiliary: Auxiliary) -> tuple[Tensor, Tensor]:
    """Inputs and labels of the first few auxiliary samples of every class."""
    labels = auxiliary.labels.cpu()
    chosen = [(labels == label).nonzero()[:_TESTS, 0] for label in sorted(set(labels.tolist()))]
    places = torch.cat(chosen)
    return auxiliary.inputs[places.to(auxiliary.inputs.device)], labels[places]


def check_finite(shown: Iterable[Tensor]) -> None:
    """Refuse what a virtual client shows if its training went out of bounds."""
    if not all(bool(torch.isfinite(values).all()) for values in shown):
        raise InvalidObservation(
            "a virtual client's weights are not finite after training by this recipe: is the "
            "learning rate the client's?"
        )


def first_line(error: Exception) -> str:
    """Of what an error says; its name where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]

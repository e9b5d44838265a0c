"""The files of an inversion: weights, the gradient of every parameter, the true images."""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from labelleak.errors import UnreadableFile
from labelleak.observation import Observation
from labelleak.updates import TensorFile, find_head, observe, open_tensors
from labelleak.updates.heads import parameter_name

_LONGEST_LIST = 200


def count_classes(weights: TensorFile) -> int:
    """The number of outputs of the final linear layer in a file of weights.

    Args:
        weights: The state dict of a network.

    Raises:
        AmbiguousHead: The final linear layer cannot be told by names and shapes.
    """
    return weights.shapes[_head_weight(weights)][0]


def load_weights(model: nn.Module, weights: TensorFile, network: str) -> nn.Module:
    """Put the weights of a file into a network, in the file's precision.

    Args:
        model: The network; it is changed.
        weights: Its state dict.
        network: Name of the network, for messages.

    Returns:
        The network, in evaluation mode.

    Raises:
        UnreadableFile: The file is of another network, or cannot be read.
        AmbiguousHead: The final linear layer cannot be told by names and shapes.
    """
    # Counters of BatchNorm are no floating-point numbers, and have no part in evaluation mode.
    wanted = {key: value for key, value in model.state_dict().items() if value.is_floating_point()}
    tensors = _read(weights, wanted, network)
    if tensors[_head_weight(weights)].dtype == torch.float64:
        model = model.double()
    model.load_state_dict(tensors, strict=False)
    return model.eval()


def observe_file(
    model: nn.Module, gradients: TensorFile, batch_size: int, network: str
) -> Observation:
    """What the server sees of a client that sent the gradient of every parameter.

    Args:
        model: The network that was handed out, on the device to compute on.
        gradients: The gradient of every parameter, by name.
        batch_size: Number of samples.
        network: Name of the network, for messages.

    Raises:
        UnreadableFile: The file is of another network, or cannot be read.
        InvalidObservation: The gradient of the final layer is none.
    """
    parameters = dict(model.named_parameters())
    unknown = [key for key in gradients.shapes if key not in parameters]
    if unknown:
        raise UnreadableFile(
            f"{gradients.path}: holds {unknown[0]!r}, and the network has no such parameter: name "
            "the network that was trained (--model)"
        )
    device = next(model.parameters()).device
    sent = {key: value.to(device) for key, value in _read(gradients, parameters, network).items()}
    return observe(model, sent, batch_size=batch_size)


def read_images(
    path: Path, shape: tuple[int, int, int, int]
) -> Float[Tensor, "batch channels height width"]:
    """The true images, from a file with the tensor ``images``.

    Args:
        path: The file.
        shape: Number of images, channels, height and width in pixels.

    Returns:
        float32, pixels from 0 to 1.

    Raises:
        UnreadableFile: There is no such file, or it holds anything else.
    """
    file = open_tensors(path)
    if file.shapes.get("images") != shape:
        held = ", ".join(f"{name!r} of {_sizes(sizes)}" for name, sizes in file.shapes.items())
        raise UnreadableFile(
            f"{path}: a tensor 'images' of {_sizes(shape)} is needed, it holds "
            f"{held[:_LONGEST_LIST]}"
        )
    images = file.tensor("images").float()
    if not bool(((images >= 0) & (images <= 1)).all()):
        raise UnreadableFile(f"{path}: 'images' are not pixels from 0 to 1")
    return images


def _head_weight(weights: TensorFile) -> str:
    return parameter_name(find_head(weights.shapes), "weight")


def _read(file: TensorFile, wanted: Mapping[str, Tensor], network: str) -> dict[str, Tensor]:
    """The tensors that a network needs, once all are known to be there and of the right shape."""
    for key, value in wanted.items():
        shape, needed = file.shapes.get(key), tuple(value.shape)
        if shape != needed:
            found = "is not there" if shape is None else f"is {_sizes(shape)}"
            raise UnreadableFile(
                f"{file.path}: is not of {network}: {key!r} {found}, and {_sizes(needed)} is "
                "needed (another --model, --image-shape or option?)"
            )
    return {key: file.tensor(key) for key in wanted}


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"

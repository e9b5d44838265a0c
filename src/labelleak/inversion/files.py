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
    """Number of classes of the network whose weights a file holds.

    Args:
        weights: The state dict of a network.

    Raises:
        AmbiguousHead: The final linear layer cannot be told by names and shapes.
    """
    return weights.shapes[_head_weight(weights)][0]


def load_weights(model: nn.Module, weights: TensorFile, network: str) -> nn.Module:
    """Load the weights of a file into a network, in the precision of the file.

    Args:
        model: The network; it is modified.
        weights: Its state dict.
        network: Name of the network, for error messages.

    Returns:
        The network, in evaluation mode.

    Raises:
        UnreadableFile: The file holds another network, or cannot be read.
        AmbiguousHead: The final linear layer cannot be told by names and shapes.
    """
    # Evaluation mode does not use the integer counters of BatchNorm.
    wanted = {key: value for key, value in model.state_dict().items() if value.is_floating_point()}
    tensors = _read(weights, wanted, network)
    if tensors[_head_weight(weights)].dtype == torch.float64:
        model = model.double()
    model.load_state_dict(tensors, strict=False)
    return model.eval()


def observe_file(
    model: nn.Module, gradients: TensorFile, batch_size: int, network: str
) -> Observation:
    """Observe a client that sent the gradient of every parameter as a file.

    Args:
        model: The network that was handed out, on the device to compute on.
        gradients: The gradient of every parameter, by name.
        batch_size: Number of samples.
        network: Name of the network, for error messages.

    Returns:
        What the server sees, with the model and all its gradients.

    Raises:
        UnreadableFile: The file holds gradients of another network, or cannot be read.
        InvalidObservation: The tensors cannot be a gradient of the final layer.
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
    """Read the true images: the tensor ``images`` of a file.

    Args:
        path: The file.
        shape: Number of images, channels, height and width in pixels.

    Returns:
        float32, pixels from 0 to 1.

    Raises:
        UnreadableFile: There is no such file, it has no such tensor, or a value is not in [0, 1].
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
    """Read the tensors that a network needs, after all their shapes were checked."""
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

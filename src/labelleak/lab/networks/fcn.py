"""FCN-n, the fully connected networks of iLRG (Ma et al., ICLR 2023)."""

import math
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from labelleak.lab.networks._layers import ImageShape, activation_layer, check_sizes

_WIDTH = 300


class FCN(nn.Module):
    """A fully connected network of n linear layers, whose hidden layers are 300 wide.

    FCN-3 on MNIST is 784-300-300-10, FCN-2 is 784-300-10, FCN-1 is the head alone. The layers
    before the head are `hidden`, the head is `fc`. All are initialized by PyTorch's defaults.

    References:
        Ma et al., "Instance-wise batch label restoration via gradients in federated learning",
        ICLR 2023.

    Examples:
        >>> from labelleak.lab import networks
        >>> type(networks.build("fcn-3", classes=10, image_shape=(3, 32, 32), seed=0)).__name__
        'FCN'
    """

    def __init__(
        self,
        layers: int,
        *,
        classes: int,
        image_shape: ImageShape,
        activation: str = "relu",
    ) -> None:
        """Builds the network.

        Args:
            layers: Number n of linear layers, the head included; at least 1.
            classes: Number of classes; at least 2.
            image_shape: Channels, height and width of the input, in pixels.
            activation: After each hidden layer: `relu`, `swish` or `leaky_relu`.

        Raises:
            ValueError: A size or the activation is not one that the network can have.
        """
        super().__init__()
        if layers < 1:
            raise ValueError(f"an FCN needs at least 1 layer, not {layers}")
        check_sizes(f"fcn-{layers}", classes, image_shape, smallest=1)
        widths = [math.prod(image_shape), *[_WIDTH] * (layers - 1)]
        self.hidden = nn.Sequential()
        for inputs, outputs in pairwise(widths):
            self.hidden.append(nn.Linear(inputs, outputs))
            self.hidden.append(activation_layer(activation))
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, images: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        """Computes the logits.

        Args:
            images: The inputs, floating point, of the `image_shape` the network was built for.

        Returns:
            The logits, in the dtype of the inputs.
        """
        logits: Tensor = self.fc(self.hidden(images.flatten(1)))
        return logits

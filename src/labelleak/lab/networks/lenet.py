"""LeNet-5 as in iLRG (Ma et al., ICLR 2023)."""

from jaxtyping import Float
from torch import Tensor, nn

from labelleak.lab.networks._layers import (
    ImageShape,
    activation_layer,
    check_sizes,
    initialize_convolutions,
)


def _block(inputs: int, outputs: int, activation: str, batchnorm: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=5),
        nn.BatchNorm2d(outputs) if batchnorm else nn.Identity(),
        activation_layer(activation),
        nn.MaxPool2d(2),
    )


class LeNet5(nn.Module):
    """LeNet-5: two 5x5 convolutions of 6 and 16 channels, then 120, 84 and C wide layers.

    An activation follows every layer but the head, and a 2x2 max pooling each convolution (LeCun's
    network averages; iLRG's does not). The head is `fc` and has 84 features. Convolutions are
    initialized by He's rule for ReLU, whatever the activation, other layers by PyTorch's defaults.

    References:
        LeCun et al., "Gradient-based learning applied to document recognition", Proc. IEEE 1998.
        Ma et al., "Instance-wise batch label restoration via gradients in federated learning",
        ICLR 2023.

    Examples:
        >>> from labelleak.lab import networks
        >>> type(networks.build("lenet5", classes=10, image_shape=(3, 32, 32), seed=0)).__name__
        'LeNet5'
    """

    def __init__(
        self,
        *,
        classes: int,
        image_shape: ImageShape,
        activation: str = "relu",
        batchnorm: bool = False,
    ) -> None:
        """Builds the network.

        Args:
            classes: Number of classes; at least 2.
            image_shape: Channels, height and width of the input, in pixels; at least 16x16.
            activation: `relu`, `swish` or `leaky_relu`.
            batchnorm: Whether each convolution is followed by BatchNorm, before the activation.

        Raises:
            ValueError: A size or the activation is not one that the network can have.
        """
        super().__init__()
        check_sizes("lenet5", classes, image_shape, smallest=16)
        channels, height, width = image_shape
        self.features = nn.Sequential(
            _block(channels, 6, activation, batchnorm),
            _block(6, 16, activation, batchnorm),
        )
        self.hidden = nn.Sequential(
            nn.Linear(16 * _side(height) * _side(width), 120),
            activation_layer(activation),
            nn.Linear(120, 84),
            activation_layer(activation),
        )
        self.fc = nn.Linear(84, classes)
        initialize_convolutions(self)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Computes the logits.

        Args:
            images: The inputs, floating point, of the `image_shape` the network was built for.

        Returns:
            The logits, in the dtype of the inputs.
        """
        logits: Tensor = self.fc(self.hidden(self.features(images).flatten(1)))
        return logits


def _side(pixels: int) -> int:
    """The side that two unpadded 5x5 convolutions, each with a 2x2 pooling, leave of an image."""
    return ((pixels - 4) // 2 - 4) // 2

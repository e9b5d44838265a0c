"""VGG with BatchNorm, for small images as in iLRG (Ma et al., ICLR 2023) and for ImageNet's."""

from jaxtyping import Float
from torch import Tensor, nn

from labelleak.lab.networks._layers import ImageShape, check_sizes, initialize_convolutions

# Convolutions per stage; configurations A, B, D and E of Simonyan and Zisserman.
_STAGES = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
_CHANNELS = (64, 128, 256, 512, 512)
_WIDTH = 4096
_IMAGENET_SIDE = 224


class VGG(nn.Module):
    """VGG-11, 13, 16 or 19, with BatchNorm after each convolution and three linear layers.

    After five 2x2 poolings the features are flattened and go through two layers of width 4096 and
    the head: 512 features of a 32x32 image (1x1 position), 512 * 7 * 7 of a 224x224 image. From
    224x224 on, an average pooling first reduces the positions to 7x7, as in torchvision, so that
    one network takes every such size. Smaller images skip it, as it would only repeat features.

    Modules have the names of torchvision's `vgg*_bn`, so that at 224x224 state dicts fit both ways;
    the head is `classifier.6`. Convolutions are initialized by He's rule, everything else by
    PyTorch's defaults (in torchvision, linear layers are normal with standard deviation 0.01 and
    biases are 0).

    References:
        Simonyan and Zisserman, "Very deep convolutional networks for large-scale image
        recognition", ICLR 2015.
        Ma et al., "Instance-wise batch label restoration via gradients in federated learning",
        ICLR 2023.

    Examples:
        >>> from labelleak.lab import networks
        >>> type(networks.build("vgg11", classes=10, image_shape=(3, 32, 32), seed=0)).__name__
        'VGG'
    """

    def __init__(
        self, depth: int, *, classes: int, image_shape: ImageShape, dropout: float = 0.0
    ) -> None:
        """Builds the network.

        Args:
            depth: 11, 13, 16 or 19.
            classes: Number of classes; at least 2.
            image_shape: Channels, height and width of the input, in pixels; at least 32x32.
            dropout: Probability that training drops a feature of the two wide layers, in [0, 1);
                0 for no dropout layers.

        Raises:
            ValueError: The depth, a size or the dropout is not one that the network can have.
        """
        super().__init__()
        if depth not in _STAGES:
            raise ValueError(
                f"there is no VGG-{depth}: choose a depth of {', '.join(map(str, _STAGES))}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is a probability in [0, 1), not {dropout}")
        check_sizes(f"vgg{depth}", classes, image_shape, smallest=32)
        channels, height, width = image_shape
        self.features = nn.Sequential()
        for convolutions, outputs in zip(_STAGES[depth], _CHANNELS, strict=True):
            for _ in range(convolutions):
                self.features.append(nn.Conv2d(channels, outputs, kernel_size=3, padding=1))
                self.features.append(nn.BatchNorm2d(outputs))
                self.features.append(nn.ReLU())
                channels = outputs
            self.features.append(nn.MaxPool2d(2))
        large = min(height, width) >= _IMAGENET_SIDE
        self.avgpool = nn.AdaptiveAvgPool2d(7) if large else nn.Identity()
        positions = 7 * 7 if large else (height // 32) * (width // 32)
        self.classifier = nn.Sequential(
            nn.Linear(channels * positions, _WIDTH),
            nn.ReLU(),
            nn.Dropout(dropout) if dropout else nn.Identity(),
            nn.Linear(_WIDTH, _WIDTH),
            nn.ReLU(),
            nn.Dropout(dropout) if dropout else nn.Identity(),
            nn.Linear(_WIDTH, classes),
        )
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
        logits: Tensor = self.classifier(self.avgpool(self.features(images)).flatten(1))
        return logits

"""ResNet, with the stem of iLRG (Ma et al., ICLR 2023) or that of ImageNet."""

from jaxtyping import Float
from torch import Tensor, nn

from labelleak.lab.networks._layers import ImageShape, check_sizes, initialize_convolutions

STEMS = ("paper", "imagenet")


class _Block(nn.Module):
    """A residual block: convolutions with BatchNorm, added to the input, then ReLU."""

    expansion: int  # output channels per inner channel
    relu: nn.Module
    downsample: nn.Module | None

    def residual(
        self, x: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch outputs rows columns"]:
        raise NotImplementedError

    def forward(
        self, x: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch outputs rows columns"]:
        shortcut = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(self.residual(x) + shortcut)
        return out


class _Basic(_Block):
    """Two 3x3 convolutions: ResNet-18 and 34."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _projection(inputs, width, stride)

    def residual(
        self, x: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch outputs rows columns"]:
        out = self.relu(self.bn1(self.conv1(x)))
        residual: Tensor = self.bn2(self.conv2(out))
        return residual


class _Bottleneck(_Block):
    """1x1, 3x3 and 1x1 convolutions, the 3x3 one strided: ResNet-50, 101 and 152."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample = _projection(inputs, outputs, stride)

    def residual(
        self, x: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch outputs rows columns"]:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        residual: Tensor = self.bn3(self.conv3(out))
        return residual


def _projection(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """The 1x1 convolution that fits a block's input to its output; None if it already fits."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False),
        nn.BatchNorm2d(outputs),
    )


_STAGES: dict[int, tuple[type[_Basic] | type[_Bottleneck], tuple[int, int, int, int]]] = {
    18: (_Basic, (2, 2, 2, 2)),
    34: (_Basic, (3, 4, 6, 3)),
    50: (_Bottleneck, (3, 4, 6, 3)),
    101: (_Bottleneck, (3, 4, 23, 3)),
    152: (_Bottleneck, (3, 8, 36, 3)),
}


class ResNet(nn.Module):
    """ResNet-18, 34, 50, 101 or 152.

    The stem `paper` is iLRG's, at every input size: a 3x3 convolution of stride 1 and no pooling.
    The stem `imagenet` is the original one: a 7x7 convolution of stride 2 and a 3x3 max pooling of
    stride 2. With it, state dicts fit torchvision's networks of the same name both ways; modules
    have torchvision's names with either stem. The head is `fc`, after a global average pooling,
    with 512 features (ResNet-18 and 34) or 2048. Convolutions are initialized by He's rule,
    BatchNorm with weight 1 and bias 0, also in the last layer of a block, and the head by PyTorch's
    default.

    References:
        He et al., "Deep residual learning for image recognition", CVPR 2016.
        Ma et al., "Instance-wise batch label restoration via gradients in federated learning",
        ICLR 2023.

    Examples:
        >>> from labelleak.lab import networks
        >>> type(networks.build("resnet18", classes=10, image_shape=(3, 32, 32), seed=0)).__name__
        'ResNet'
    """

    def __init__(
        self, depth: int, *, classes: int, image_shape: ImageShape, stem: str = "paper"
    ) -> None:
        """Builds the network.

        Args:
            depth: 18, 34, 50, 101 or 152.
            classes: Number of classes; at least 2.
            image_shape: Channels, height and width of the input, in pixels. The network takes
                images of other sizes, too.
            stem: `paper` or `imagenet`.

        Raises:
            ValueError: The depth, a size or the stem is not one that the network can have.
        """
        super().__init__()
        if depth not in _STAGES:
            raise ValueError(
                f"there is no ResNet-{depth}: choose a depth of {', '.join(map(str, _STAGES))}"
            )
        if stem not in STEMS:
            raise ValueError(f"unknown stem {stem!r}: choose one of {', '.join(STEMS)}")
        check_sizes(f"resnet{depth}", classes, image_shape, smallest=1)
        block, blocks = _STAGES[depth]
        self.maxpool: nn.Module
        if stem == "paper":
            self.conv1 = nn.Conv2d(image_shape[0], 64, kernel_size=3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(
                image_shape[0], 64, kernel_size=7, stride=2, padding=3, bias=False
            )
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.layer1 = _stage(block, blocks[0], 64, 64, stride=1)
        self.layer2 = _stage(block, blocks[1], 64 * block.expansion, 128, stride=2)
        self.layer3 = _stage(block, blocks[2], 128 * block.expansion, 256, stride=2)
        self.layer4 = _stage(block, blocks[3], 256 * block.expansion, 512, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * block.expansion, classes)
        initialize_convolutions(self)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Computes the logits.

        Args:
            images: The inputs, floating point.

        Returns:
            The logits, in the dtype of the inputs.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def _stage(
    block: type[_Basic] | type[_Bottleneck], blocks: int, inputs: int, width: int, *, stride: int
) -> nn.Sequential:
    """A stage of blocks, the first of which may stride and widen."""
    stage = nn.Sequential(block(inputs, width, stride))
    for _ in range(blocks - 1):
        stage.append(block(width * block.expansion, width, 1))
    return stage

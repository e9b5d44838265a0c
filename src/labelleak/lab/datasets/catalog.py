"""The data sets known by name: their sizes, their normalization and where they come from."""

from dataclasses import dataclass, field

from labelleak.lab.datasets.cifar import CIFAR10, CIFAR100, Layout


@dataclass(frozen=True)
class HubSource:
    """Where a data set is on the Hugging Face hub.

    Attributes:
        path: repository of the data set.
        image: column of the images.
        label: column of the labels.
        splits: split ("train", "test") -> split of the repository.
        files: split of the repository -> its files; where the other splits are too large to be
            downloaded along.
    """

    path: str
    image: str = "image"
    label: str = "label"
    splits: dict[str, str] = field(default_factory=lambda: {"train": "train", "test": "test"})
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One data set.

    Attributes:
        name: the name it is loaded by.
        classes: number of classes; None: as many as there are folders.
        image_shape: (channels, height, width); None: as the images are.
        mean: of each channel over the training set, pixels 0 to 1.
        std: standard deviation of each channel, on the same scale.
        aliases: names that a folder of this data set may have besides `name`.
        class_names: where they are not read with the data.
        idx: IDX files are a format of this data set.
        batches: their layout, where it comes as CIFAR python batches.
        hub: where it can be downloaded.
    """

    name: str
    classes: int | None
    image_shape: tuple[int, int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    aliases: tuple[str, ...] = ()
    class_names: tuple[str, ...] | None = None
    idx: bool = False
    batches: Layout | None = None
    hub: HubSource | None = None


_DIGITS = tuple("0123456789")
# Those of the ILSVRC training set, as in all published ImageNet models.
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_ENTRIES = (
    Entry(
        name="mnist-sample",
        classes=10,
        image_shape=(1, 28, 28),
        mean=(0.1307,),
        std=(0.3081,),
        class_names=_DIGITS,
    ),
    Entry(
        name="mnist",
        classes=10,
        image_shape=(1, 28, 28),
        mean=(0.1307,),
        std=(0.3081,),
        aliases=("MNIST", "MNIST/raw"),
        class_names=_DIGITS,
        idx=True,
        hub=HubSource("ylecun/mnist"),
    ),
    Entry(
        name="fashion-mnist",
        classes=10,
        image_shape=(1, 28, 28),
        mean=(0.2860,),
        std=(0.3530,),
        aliases=("FashionMNIST", "FashionMNIST/raw"),
        class_names=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        idx=True,
        hub=HubSource("zalando-datasets/fashion_mnist"),
    ),
    Entry(
        name="cifar10",
        classes=10,
        image_shape=(3, 32, 32),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        aliases=("cifar-10", CIFAR10.folder),
        batches=CIFAR10,
        hub=HubSource("uoft-cs/cifar10", image="img"),
    ),
    Entry(
        name="cifar100",
        classes=100,
        image_shape=(3, 32, 32),
        mean=(0.5070751592371323, 0.48654887331495095, 0.4409178433670343),
        std=(0.2673342858792401, 0.2564384629170883, 0.27615047132568404),
        aliases=("cifar-100", CIFAR100.folder),
        batches=CIFAR100,
        hub=HubSource("uoft-cs/cifar100", image="img", label="fine_label"),
    ),
    Entry(
        name="tiny-imagenet",
        classes=200,
        image_shape=(3, 64, 64),
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2770, 0.2691, 0.2821),
        aliases=("tiny-imagenet-200",),
        hub=HubSource("zh-plus/tiny-imagenet", splits={"train": "train", "test": "valid"}),
    ),
    Entry(
        # 100 classes of Tiny-ImageNet, made smaller: stands in for CIFAR-100 where that is missing.
        name="tiny-imagenet-100",
        classes=100,
        image_shape=(3, 32, 32),
        mean=(0.4826, 0.4510, 0.3989),
        std=(0.2501, 0.2419, 0.2565),
    ),
    Entry(
        name="imagenet",
        classes=1000,
        image_shape=(3, 224, 224),
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        aliases=("imagenet-1k", "ILSVRC2012"),
        hub=HubSource(
            "ILSVRC/imagenet-1k",
            splits={"train": "train", "test": "validation"},
            files={"train": "data/train-*", "validation": "data/validation-*"},
        ),
    ),
    Entry(
        name="folder",
        classes=None,
        image_shape=None,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
    ),
)

CATALOG: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}

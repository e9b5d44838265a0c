"""The networks of iLRG (Ma et al., ICLR 2023): FCN, LeNet-5, VGG and ResNet, untrained."""

from labelleak.models.fcn import FCN
from labelleak.models.lenet import LeNet5
from labelleak.models.registry import build, names
from labelleak.models.resnet import ResNet
from labelleak.models.vgg import VGG

__all__ = ["FCN", "VGG", "LeNet5", "ResNet", "build", "names"]

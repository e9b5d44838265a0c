"""The networks of iLRG (Ma et al., ICLR 2023): FCN, LeNet-5, VGG and ResNet, untrained; others."""

from labelleak.lab.networks.fcn import FCN
from labelleak.lab.networks.lenet import LeNet5
from labelleak.lab.networks.other import build_plugin, network_plugin
from labelleak.lab.networks.registry import build, is_own_network, names
from labelleak.lab.networks.resnet import ResNet
from labelleak.lab.networks.vgg import VGG

__all__ = [
    "FCN",
    "VGG",
    "LeNet5",
    "ResNet",
    "build",
    "build_plugin",
    "is_own_network",
    "names",
    "network_plugin",
]

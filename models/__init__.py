"""The classic convolutional networks, each as published and, where it has one, in torchvision's form.

``create("resnet50", "torchvision")`` or ``resnet50("torchvision")``; ``list_models()`` names all.
Layers come from :mod:`cnnkernels.nn`, with torchvision's state_dict names in its variants.
"""

if __name__ != "cnnkernels.models":
    # From the repository's root `import models` would make a second copy of every class.
    raise ImportError(f"this package is imported as cnnkernels.models, not as {__name__!r}")

from . import alexnet as _alexnet
from . import googlenet as _googlenet
from . import lenet as _lenet
from . import resnet as _resnet
from . import vgg as _vgg
from . import zfnet as _zfnet
from .alexnet import AlexNet
from .googlenet import GoogLeNet, Inception
from .lenet import LeNet5, lenet5_loss
from .registry import create, list_models
from .resnet import CifarResNet, ResNet
from .vgg import VGG
from .zfnet import ZFNet

__all__ = [
    "VGG",
    "AlexNet",
    "CifarResNet",
    "GoogLeNet",
    "Inception",
    "LeNet5",
    "ResNet",
    "ZFNet",
    "create",
    "lenet5_loss",
    "list_models",
]

# The constructors: lenet5(), alexnet(), vgg16_bn(), resnet50(), … Each family's submodule may have
# the name of one of its constructors (alexnet.alexnet), so the functions go in last.
for _family in (_lenet, _alexnet, _zfnet, _vgg, _googlenet, _resnet):
    for _name in list_models():
        if _name in vars(_family):
            globals()[_name] = vars(_family)[_name]
            __all__.append(_name)

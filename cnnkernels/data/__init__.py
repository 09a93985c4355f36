"""Real images: photographs for benchmarks, and labelled data sets for training."""

from .files import NAMES, ImageFiles, image_folder, load, torchvision_data
from .labelled import ImageData, Images, cifar10, digits, fashion_mnist, len_of, user_cache
from .pictures import DataNotFoundError, Photographs, normalize, photographs

__all__ = [
    "NAMES",
    "DataNotFoundError",
    "ImageData",
    "ImageFiles",
    "Images",
    "Photographs",
    "cifar10",
    "digits",
    "fashion_mnist",
    "image_folder",
    "len_of",
    "load",
    "normalize",
    "photographs",
    "torchvision_data",
    "user_cache",
]

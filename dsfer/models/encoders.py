"""The encoders of Table IV, and others by name, for a decoder that wants five scales."""

from typing import Protocol

from torch import Tensor

from dsfer.errors import ConfigError
from dsfer.models.pyramid_transformer import PyramidTransformer, Stage
from dsfer.models.resnet import ResNet18Encoder
from dsfer.models.torchvision_encoder import TorchvisionEncoder
from dsfer.models.vgg import VGG16Encoder

ENCODERS = ("vgg16", "resnet18", "transformer")
"""Those of Table IV; any other name is looked up in torchvision."""

TRANSFORMER = (
    Stage(64, 3, heads=2, reduction=8, patch=7, stride=2, padding=3),
    Stage(128, 3, heads=2, reduction=4, patch=3, stride=2, padding=1),
    Stage(256, 4, heads=4, reduction=2, patch=3, stride=2, padding=1),
    Stage(512, 12, heads=8, reduction=1, patch=3, stride=2, padding=1),
    Stage(512, 3, heads=16, reduction=1, patch=3, stride=2, padding=1),
)
"""Inferred: the paper does not describe the Transformer of Table IV. This one, of the kind of
ChangeFormer V4, has the 40,856,384 parameters that the table leaves for it."""


class Encoder(Protocol):
    """Five feature maps of an image, each half as large as the one before.

    Attributes:
        channels: channels of the maps, shallow to deep.
        strides: how much smaller than the input each of them is.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        """Maps (b, c_i, h / stride_i, w / stride_i) of (b, 3, h, w) images."""


def build_encoder(
    name: str, *, width: float = 1.0
) -> VGG16Encoder | ResNet18Encoder | PyramidTransformer | TorchvisionEncoder:
    """Build an encoder of five scales.

    Args:
        name: one of `ENCODERS`, or of torchvision's networks if it gives five scales.
        width: factor on every channel count of those of Table IV.

    Raises:
        ConfigError: an unknown name, a network without five scales, or a width other than 1 for
            one of torchvision's.
    """
    if name == "vgg16":
        return VGG16Encoder(width)
    if name == "resnet18":
        return ResNet18Encoder(width=width)
    if name == "transformer":
        stages = tuple(stage.scaled(width) for stage in TRANSFORMER)
        return PyramidTransformer(stages, mlp_ratio=2, qkv_bias=False)
    if width != 1:
        raise ConfigError(
            f"torchvision's {name} has one width, not {width} times it",
            where="width",
            mend=f"set width to 1, or encoder to one of {', '.join(ENCODERS)}",
        )
    return TorchvisionEncoder(name)

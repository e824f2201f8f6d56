"""The encoders of Table IV, and others by name, for a decoder that wants five scales.

An encoder is a module that makes five feature maps of an image, each half as large as the one
before; `channels` and `strides` say what they are, shallow to deep.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsfer.errors import ConfigError
from dsfer.models.resnet import ResNet18Encoder
from dsfer.models.vgg import VGG16Encoder

if TYPE_CHECKING:
    from dsfer.models.pyramid_transformer import PyramidTransformer
    from dsfer.models.torchvision_encoder import TorchvisionEncoder

ENCODERS = ("vgg16", "resnet18", "transformer")
"""Those of Table IV; any other name is looked up in torchvision."""


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
        return _transformer(width)
    if width != 1:
        raise ConfigError(
            f"torchvision's {name} has one width, not {width} times it",
            where="width",
            mend=f"set width to 1, or encoder to one of {', '.join(ENCODERS)}",
        )
    from dsfer.models.torchvision_encoder import TorchvisionEncoder  # seconds to import

    return TorchvisionEncoder(name)


def _transformer(width: float) -> PyramidTransformer:
    """The Transformer of Table IV.

    Inferred: the paper does not describe it. This one, of the kind of ChangeFormer V4 and like
    that without any dropout, has the 40,856,384 parameters that the table leaves for it.
    """
    from dsfer.models.pyramid_transformer import PyramidTransformer, Stage  # seconds to import

    stages = (
        Stage(64, 3, heads=2, reduction=8, patch=7, stride=2, padding=3),
        Stage(128, 3, heads=2, reduction=4, patch=3, stride=2, padding=1),
        Stage(256, 4, heads=4, reduction=2, patch=3, stride=2, padding=1),
        Stage(512, 12, heads=8, reduction=1, patch=3, stride=2, padding=1),
        Stage(512, 3, heads=16, reduction=1, patch=3, stride=2, padding=1),
    )
    return PyramidTransformer(
        tuple(stage.scaled(width) for stage in stages), mlp_ratio=2, qkv_bias=False
    )

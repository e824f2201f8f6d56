"""What stored pixels become on the device before a network sees them."""

from typing import NamedTuple

import torch
from torch import Tensor


class Input(NamedTuple):
    """How a network's input is normalised.

    Attributes:
        mean: of the RGB bands, 0 to 255.
        std: standard deviation likewise.
        per_image: whether each image is then standardised by its own mean and deviation.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    per_image: bool = False


SIGNED = Input((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))
"""To [-1, 1]."""

STANDARDISED = Input((0, 0, 0), (1, 1, 1), per_image=True)
"""Each image by its own mean and standard deviation."""

IMAGENET = Input((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""As torchvision's ImageNet weights were trained."""


def normalise(
    pairs: Tensor, mean: Tensor, std: Tensor, *, per_image: bool = False
) -> tuple[Tensor, Tensor]:
    """Turn stored pixels into network input.

    Args:
        pairs: (b, 2, h, w, 3) uint8, RGB of both dates.
        mean: (3,) float, mean of each band, 0 to 255.
        std: (3,) float, standard deviation likewise.
        per_image: standardise each image of either date once more, by its own mean and standard
            deviation over all bands and pixels; an image of one value becomes 0.

    Returns:
        t1 and t2, (b, 3, h, w) float each; pixels stay in their order, so that the two joined
        are channels-last.
    """
    scaled = (pairs.to(mean.dtype) - mean) / std
    if per_image:
        own_std, own_mean = torch.std_mean(scaled, dim=(2, 3, 4), correction=0, keepdim=True)
        scaled = (scaled - own_mean) / own_std.clamp(min=torch.finfo(scaled.dtype).eps)
    first, second = scaled.permute(1, 0, 4, 2, 3)  # 2 b 3 h w
    return first, second

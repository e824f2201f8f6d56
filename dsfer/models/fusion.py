"""Comprehensive fusion: the decoder block of Dsfer-Net (paper, section III-C, Eq. 3)."""

import torch
from torch import Tensor, nn

from dsfer.models.batch_norm import BatchNorm2d


def conv_norm_relu(inputs: int, outputs: int) -> nn.Sequential:
    """3x3 convolution with bias, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=1),
        BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class FusionBlock(nn.Module):
    """Fuse the feature pair of one level with its mask and with the deeper level.

    Comprehensive fusion (Eq. 3) first reduces the pair to c channels, multiplies it with the mask,
    then joins the deeper map. Plain concatenation (`Base+Concat` of Table III) joins everything
    at once; the paper does not print that block, so that the mask is one more joined map there is
    our reading of "fused through concatenation".

    Args:
        channels: c, channels of one date's features.
        deeper: channels of the up-sampled deeper map, 0 at the deepest level.
        outputs: channels of the fused map.
        comprehensive: Eq. 3, or plain concatenation.
        masked: whether this level has a mask.
    """

    def __init__(
        self, channels: int, deeper: int, outputs: int, *, comprehensive: bool, masked: bool
    ):
        super().__init__()
        self.reduce = conv_norm_relu(2 * channels, channels) if comprehensive else None
        pair = channels if comprehensive else (2 + masked) * channels
        self.fuse = conv_norm_relu(pair + deeper, outputs)

    def forward(self, features: Tensor, mask: Tensor | None, deeper: Tensor | None) -> Tensor:
        """Fuse (2b, c, h, w) features, date 1 first, into (b, outputs, h, w)."""
        pair = torch.cat(features.chunk(2), dim=1)  # b 2c h w
        if self.reduce is not None:
            pair = self.reduce(pair)  # b c h w
            if mask is not None:
                pair = pair * mask
        elif mask is not None:
            pair = torch.cat((pair, mask), dim=1)  # b 3c h w
        if deeper is not None:
            pair = torch.cat((pair, deeper), dim=1)
        fused: Tensor = self.fuse(pair)
        return fused

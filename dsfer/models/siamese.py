"""One encoder for both dates."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def encode_pair(
    encoder: Callable[[Tensor], tuple[Tensor, ...]], t1: Tensor, t2: Tensor, *, apart: bool
) -> tuple[Tensor, ...]:
    """Feature maps of both dates as one batch, date 1 first.

    Args:
        encoder: makes a tuple of maps (b, c_i, h_i, w_i) of (b, 3, h, w) images.
        t1: (b, 3, h, w) images of the first date.
        t2: the same of the second date.
        apart: run it once for each date, not once for both. In training, batch normalisation
            then takes the statistics of each date by itself and its running statistics follow
            both in turn, as in the released code of the methods that have it. For any other
            encoder, and in evaluation, both ways are the same and one batch is faster.

    Returns:
        Maps (2b, c_i, h_i, w_i).
    """
    if not apart:
        maps: tuple[Tensor, ...] = encoder(torch.cat((t1, t2)))
        return maps
    return tuple(torch.cat(pair) for pair in zip(encoder(t1), encoder(t2), strict=True))


def has_batch_norm(encoder: nn.Module) -> bool:
    """Whether it matters to an encoder in training which images it is given together."""
    return any(isinstance(module, _BatchNorm) for module in encoder.modules())

"""Enlarging feature maps, in their own precision and with the operator's own gradient."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.amp import is_autocast_available
from torch.nn import functional as F


def enlarge(features: Tensor, factor: int) -> Tensor:
    """Enlarge (b, c, h, w) maps to (b, c, factor * h, factor * w), bilinear, corners aligned.

    In the maps' own type, in which the next convolution takes them: autocast would have both
    written as float32. The kernels add up in float32 anyway.
    """
    # For training as one operator: torch.compile takes torch's own apart, and its gradient becomes
    # additions at indices, five times as slow (docs/performance.md). ONNX knows only torch's own.
    return _enlarge(features, factor) if torch.is_grad_enabled() else _bilinear(features, factor)


def _bilinear(features: Tensor, factor: int) -> Tensor:
    kind = features.device.type
    with torch.autocast(kind, enabled=False) if is_autocast_available(kind) else nullcontext():
        return F.interpolate(features, scale_factor=factor, mode="bilinear", align_corners=True)


# Their results are always channels-last, as the networks are while they train: in torch 2.11 a
# compiled network may hand them another layout than the one that their shapes were traced with.


@torch.library.custom_op("dsfer::enlarge", mutates_args=())
def _enlarge(features: Tensor, factor: int) -> Tensor:
    enlarged = _bilinear(features.contiguous(memory_format=torch.channels_last), factor)
    return enlarged.contiguous(memory_format=torch.channels_last)


@_enlarge.register_fake
def _enlarge_shape(features: Tensor, factor: int) -> Tensor:
    b, c, h, w = features.shape
    return _channels_last(features, b, c, factor * h, factor * w)


@torch.library.custom_op("dsfer::enlarge_backward", mutates_args=())
def _enlarge_backward(gradient: Tensor, height: int, width: int) -> Tensor:
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    size, shape = gradient.shape[2:], [*gradient.shape[:2], height, width]
    reduced = torch.ops.aten.upsample_bilinear2d_backward(gradient, size, shape, True)
    return reduced.contiguous(memory_format=torch.channels_last)  # type: ignore[no-any-return]


@_enlarge_backward.register_fake
def _enlarge_backward_shape(gradient: Tensor, height: int, width: int) -> Tensor:
    return _channels_last(gradient, *gradient.shape[:2], height, width)


def _channels_last(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def _keep_size(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:  # noqa: ARG001
    ctx.size = inputs[0].shape[2:]


def _gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    return _enlarge_backward(gradient, *ctx.size), None


_enlarge.register_autograd(_gradient, setup_context=_keep_size)

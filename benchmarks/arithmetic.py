"""How much arithmetic the network is, and how much the device does."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.side_by_side import clock
from dsfer.models.output import ChangeOutput

REPEATS = 5

CHANNELS, PIXELS = 256, 64
"""Of the convolution: one in the middle of VGG-16."""


def flops_of_pair(model: nn.Module, size: int, *, training: bool) -> float:
    """Floating point operations of one pair, forward, or forward and backward.

    Counted over the matrix products and convolutions; a multiplication and an addition are two.
    It is that of a copy without values, and the same whatever device the network is on: what is
    padded for one device alone, as STANet's queries are on CPUs, does not count.
    """
    counted = copy.deepcopy(model).to("meta")
    t1, t2 = torch.zeros(2, 1, 3, size, size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        output: ChangeOutput = counted(t1, t2)
        if training:
            total = torch.stack([part.sum() for part in (output.logits, *output.deep)]).sum()
            total.backward()  # type: ignore[no-untyped-call]
    return float(counter.get_total_flops())


def best_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations per second that the device is seen to do, at its best.

    The best of a few large matrix products and convolutions: libraries differ in which of the two
    they do better.
    """
    gpu = device.type == "cuda"
    side, batch = (8192, 64) if gpu else (2048, 4)
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    image = torch.randn(batch, CHANNELS, PIXELS, PIXELS, device=device, dtype=dtype)
    image = image.to(memory_format=torch.channels_last)
    kernel = torch.randn(CHANNELS, CHANNELS, 3, 3, device=device, dtype=dtype)
    kernel = kernel.to(memory_format=torch.channels_last)
    work: dict[Callable[[], Tensor], float] = {
        lambda: torch.mm(a, b): 2 * side**3,
        lambda: conv2d(image, kernel, padding=1): 2 * 9 * CHANNELS**2 * PIXELS**2 * batch,
    }
    best = 0.0
    with torch.no_grad():
        for _ in range(REPEATS):
            for do, flops in work.items():
                started = clock()
                do()
                best = max(best, flops / (clock() - started))
    return best

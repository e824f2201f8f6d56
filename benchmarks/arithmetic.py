"""How much arithmetic the network is, and how much the device does."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.side_by_side import clock
from dsfer.models.output import ChangeOutput

REPEATS = 5


def flops_of_pair(model: nn.Module, size: int, *, training: bool) -> float:
    """Floating point operations of one pair, forward, or forward and backward.

    Counted over the matrix products and convolutions; a multiplication and an addition are two.
    """
    device = next(model.parameters()).device
    t1, t2 = torch.zeros(2, 1, 3, size, size, device=device)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        output: ChangeOutput = model(t1, t2)
        if training:
            total = torch.stack([part.sum() for part in (output.logits, *output.deep)]).sum()
            total.backward()  # type: ignore[no-untyped-call]
    model.zero_grad()
    return float(counter.get_total_flops())


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Floating point operations per second in a product of square matrices, the best of a few."""
    a, b = torch.ones(2, side, side, device=device, dtype=dtype)
    best = 0.0
    for _ in range(REPEATS):
        started = clock()
        torch.mm(a, b)
        best = max(best, 2 * side**3 / (clock() - started))
    return best

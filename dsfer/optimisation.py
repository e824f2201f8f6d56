"""How weights move: the optimisers of the recipes, and the course of their learning rate."""

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn

Optimiser = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "linear", "poly", "cosine", "exponential"]

EXPONENTIAL_END = 0.95**50
"""What is left of the rate where the exponential schedule ends: 0.95 per epoch for 50 epochs."""


def build_optimiser(
    name: Optimiser,
    parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
) -> torch.optim.Optimizer:
    """Build an optimiser, which updates all weights in one kernel.

    Args:
        name: `adam` has its weight decay inside the gradient, as an L2 penalty; `adamw` beside it;
            `sgd` is gradient descent with momentum, weight decay inside the gradient.
        parameters: what it moves; those that ask for no gradient are left out.
        lr: learning rate.
        weight_decay: factor on the weights.
        momentum: that of `sgd`, and the first beta of the others, whose second is 0.999.
    """
    moved = [parameter for parameter in parameters if parameter.requires_grad]
    if name == "sgd":
        return torch.optim.SGD(moved, lr, momentum=momentum, weight_decay=weight_decay, fused=True)
    kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    return kind(moved, lr, betas=(momentum, 0.999), weight_decay=weight_decay, fused=True)


def rate_factor(
    schedule: Schedule, step: int, end: int, *, warmup: int = 0, hold: int = 0
) -> float:
    """Factor on the peak learning rate in a step, a pure function: no state is to be restored.

    Args:
        schedule: `linear`, `poly` and `cosine` fall to 0 at `end`, `exponential` to
            EXPONENTIAL_END, `constant` nowhere. `linear` and `poly` are the paper's and the
            released code's; the latter sets the rate after step k from k, so that steps 0 and 1
            share the first value.
        step: number of the step, from 0.
        end: step at which the schedule ends.
        warmup: steps of linear rise before.
        hold: steps until the fall begins, of `linear` and `exponential`.

    Returns:
        0 to 1.
    """
    k, n = step, end
    if k < warmup:
        return (k + 1) / warmup
    fall = min(max(k - hold, 0) / max(n - hold, 1), 1)
    if schedule == "constant":
        return 1
    if schedule == "linear":
        return 1 - fall
    if schedule == "poly":
        return (1 - max(k - 1, 0) / n) ** 0.9 if k <= n else 0
    if schedule == "exponential":
        return float(EXPONENTIAL_END**fall)
    progress = (k - warmup) / max(n - warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1)))

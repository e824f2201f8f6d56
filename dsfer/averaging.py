"""Averaged weights: a copy of a network that follows the one in training."""

import copy

from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class AveragedNetwork:
    """Exponential average of a network's weights and buffers.

    After step k its decay is min(decay, (1+k)/(10+k)): without that growth a short run would mostly
    keep the weights that it started from. torch's AveragedModel counts in a tensor that it sends to
    the device and that would be read back here, so that the host would wait in every step.

    Args:
        model: the network in training; its weights must stay where they are.
        decay: of the average in the long run, 0 to 1.

    Attributes:
        module: the network with the averaged weights.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.module = copy.deepcopy(model)
        self._decay = decay
        own, new = ([*net.parameters(), *net.buffers()] for net in (self.module, model))
        pairs = [(mine.detach(), its.detach()) for mine, its in zip(own, new, strict=True)]
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._counters = [pair for pair in pairs if not pair[0].is_floating_point()]

    def update(self, step: int) -> None:
        """Follow the weights after a step, counted from 0; after the first they are copied."""
        decay = min(self._decay, (1 + step) / (10 + step)) if step else 0.0
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average(*(list(part) for part in zip(*self._averaged, strict=True)), None)
        for mine, its in self._counters:
            mine.copy_(its)

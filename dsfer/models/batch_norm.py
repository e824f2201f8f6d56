"""Batch normalisation over the batch of all processes that train together."""

from typing import cast

import torch
from torch import Tensor, nn

from dsfer.distributed import mean_over_ranks, world_size


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that, in training, takes its statistics from the batch of all processes.

    `nn.SyncBatchNorm` is the same for GPUs only, and torch.compile does not look into it. In one
    process, and in its state dict, this is `nn.BatchNorm2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (b, c, h, w), of which every process has as many images as any other."""
        if self.training and world_size() > 1:
            return self._over_ranks(input)
        return super().forward(input)

    def _over_ranks(self, x: Tensor) -> Tensor:
        values = x.to(torch.promote_types(x.dtype, torch.float32))  # bf16 has too few digits
        local_var, local_mean = torch.var_mean(values, dim=(0, 2, 3), correction=0)
        # Second moments in float64: their difference to the squared mean loses no digit there.
        first, second = local_mean.double(), local_var.double() + local_mean.double().square()
        mean, second = mean_over_ranks(torch.stack((first, second)))
        var = second - mean.square()
        self._follow(mean, var, count=world_size() * x.numel() // x.shape[1])
        scale = self.weight * (var + self.eps).rsqrt()
        shift = self.bias - mean * scale
        scale, shift = (part.to(values.dtype)[:, None, None] for part in (scale, shift))
        normalised: Tensor = values * scale + shift
        return normalised.to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor, *, count: int) -> None:
        """Move the running statistics towards those of a batch of `count` pixels a channel."""
        unbiased = var * (count / max(count - 1, 1))
        for name, new in (("running_mean", mean), ("running_var", unbiased)):
            running = self.get_buffer(name)
            running.lerp_(new.to(running.dtype), cast(float, self.momentum))
        self.get_buffer("num_batches_tracked").add_(1)

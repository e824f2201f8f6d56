"""State dicts like the released ones, with random values that behave, and layers made of them."""

import torch
from torch.nn import functional as F

from dsfer.released import Release


def released_states(release: Release, seed: int = 0) -> dict[str, torch.Tensor]:
    """Values of about the size that training leaves: activations neither die nor explode."""
    generator = torch.Generator().manual_seed(seed)
    states = {}
    for name, shape, _ in release.entries:
        value = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            value = torch.randint(0, 1000, shape, generator=generator)
        elif name.endswith("running_var"):
            value = 0.5 + value.abs()
        elif len(shape) > 1:
            value = value * (2 / value[0].numel()) ** 0.5
        elif name.endswith("weight"):
            value = 1 + 0.2 * value
        else:
            value = 0.2 * value
        states[name] = value
    return states


class Layers:
    """Layers by their released names, in evaluation mode."""

    def __init__(self, states, prefix=""):
        self.states, self.prefix = states, prefix

    def under(self, prefix):
        return Layers(self.states, self.prefix + prefix)

    def get(self, name):
        return self.states.get(self.prefix + name)

    def conv(self, name, x, **options):
        weight = self.get(f"{name}.weight")
        options = {"padding": weight.shape[-1] // 2} | options
        return F.conv2d(x, weight, self.get(f"{name}.bias"), **options)

    def transposed(self, name, x, stride=1):
        weight, bias = self.get(f"{name}.weight"), self.get(f"{name}.bias")
        return F.conv_transpose2d(x, weight, bias, stride, padding=1, output_padding=stride - 1)

    def flipped(self, name, x):
        """A stride-1 transposed convolution, spelled as the convolution that it is."""
        weight = self.get(f"{name}.weight").transpose(0, 1).flip(2, 3)
        return F.conv2d(x, weight, self.get(f"{name}.bias"), padding=1)

    def norm(self, name, x):
        mean, var, weight, bias = (
            self.get(f"{name}.{leaf}")[:, None, None]
            for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

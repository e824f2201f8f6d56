"""State dicts like the released ones: their names and shapes, with random values that behave."""

import torch

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

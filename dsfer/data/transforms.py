"""What happens to a batch on the device: normalisation, and paired flips and turns."""

import numpy as np
import torch
from torch import Tensor


def normalise(
    pairs: Tensor, mean: Tensor, std: Tensor, *, per_image: bool = False
) -> tuple[Tensor, Tensor]:
    """Turn stored pixels into network input.

    Args:
        pairs: (b, 2, h, w, 3) uint8, RGB of both dates.
        mean: (3,) float, mean of each band, 0 to 255.
        std: (3,) float, standard deviation likewise.
        per_image: standardise each image of either date once more, by its own mean and standard
            deviation over all bands and pixels; an image of one value becomes 0.

    Returns:
        t1 and t2, (b, 3, h, w) float each; pixels stay in their order, so that the two joined
        are channels-last.
    """
    scaled = (pairs.to(mean.dtype) - mean) / std
    if per_image:
        own_std, own_mean = torch.std_mean(scaled, dim=(2, 3, 4), correction=0, keepdim=True)
        scaled = (scaled - own_mean) / own_std.clamp(min=torch.finfo(scaled.dtype).eps)
    first, second = scaled.permute(1, 0, 4, 2, 3)  # 2 b 3 h w
    return first, second


def draw_symmetries(count: int, *, seed: int, step: int) -> Tensor:
    """Draw one of the eight symmetries of the square for each of `count` pairs.

    The draw is a function of seed and step alone, so that a resumed run repeats it without any
    state.

    Returns:
        (count, 3) bool: flip rows, flip columns, transpose.
    """
    generator = np.random.default_rng([seed, step])
    return torch.from_numpy(generator.integers(0, 2, size=(count, 3), dtype=np.int8)).bool()


def apply_symmetries(pairs: Tensor, labels: Tensor, symmetries: Tensor) -> tuple[Tensor, Tensor]:
    """Flip and turn whole pairs together with their labels.

    Args:
        pairs: (b, 2, h, h, 3), any dtype; square tiles.
        labels: (b, h, h).
        symmetries: (b, 3) bool, as `draw_symmetries` makes them.
    """
    for bit, change in enumerate((_flip_rows, _flip_columns, _transpose)):
        chosen = symmetries[:, bit]
        pairs = torch.where(chosen[:, None, None, None, None], change(pairs, 2), pairs)
        labels = torch.where(chosen[:, None, None], change(labels, 1), labels)
    return pairs, labels


def _flip_rows(images: Tensor, rows: int) -> Tensor:
    return images.flip(rows)


def _flip_columns(images: Tensor, rows: int) -> Tensor:
    return images.flip(rows + 1)


def _transpose(images: Tensor, rows: int) -> Tensor:
    return images.transpose(rows, rows + 1)

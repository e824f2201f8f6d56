"""Random changes of whole pairs with their labels, on the device, by numbers drawn on the host.

What is drawn is a function of seed and step alone, so that a resumed run repeats it without any
state, and several processes draw the parts of one batch. Shapes: b pairs, h w sides; pairs are
(b, 2, h, w, 3) of 0 to 255, labels (b, h, w) uint8. What only moves pixels keeps their type; all
else gives float.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dsfer.data.manifest import IGNORE

Augmentation = Literal["symmetries", "flips", "rotation", "zoom", "blur", "colour"]

GREY = 128.0
"""What a rotation puts where it has no pixel; the label is ignored there."""

MOST_DEGREES, MOST_ZOOM, MOST_BLUR, MOST_COLOUR = 15.0, 1.2, 1.0, 0.3
BLUR_REACH = 3  # pixels: three standard deviations of the widest blur


class Step(NamedTuple):
    """One kind of augmentation: what it draws for a number of pairs, and what it does with that."""

    draw: Callable[[np.random.Generator, int], np.ndarray]
    apply: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def augment(
    pairs: Tensor,
    labels: Tensor,
    names: Sequence[Augmentation],
    *,
    count: int,
    share: slice,
    seed: int,
    step: int,
) -> tuple[Tensor, Tensor]:
    """Change a process's share of a batch, in the order of `names`.

    Args:
        pairs: (b, 2, h, h, 3), any real dtype; square tiles.
        labels: (b, h, h) uint8.
        names: keys of `AUGMENTATIONS`.
        count: pairs of the whole batch, for all of which it is drawn.
        share: which of them these are.
        seed: of the run.
        step: number of the step.
    """
    for name in names:
        drawn = AUGMENTATIONS[name].draw(_generator(name, seed, step), count)[share]
        on_device = torch.from_numpy(drawn).to(pairs.device, non_blocking=True)
        pairs, labels = AUGMENTATIONS[name].apply(pairs, labels, on_device)
    return pairs, labels


def _generator(name: Augmentation, seed: int, step: int) -> np.random.Generator:
    """A generator of its own for every kind, in every step."""
    number = list(AUGMENTATIONS).index(name)
    return np.random.default_rng([seed, step, number] if number else [seed, step])


def draw_symmetries(generator: np.random.Generator, count: int) -> np.ndarray:
    """A symmetry of the square: flip rows, flip columns, transpose; (b, 3) bool."""
    return generator.integers(0, 2, size=(count, 3), dtype=np.int8).astype(bool)


def apply_symmetries(pairs: Tensor, labels: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Flip and turn; with the first two of three bits only, flip."""
    for bit, change in enumerate((_flip_rows, _flip_columns, _transpose)[: drawn.shape[1]]):
        chosen = drawn[:, bit]
        pairs = torch.where(chosen[:, None, None, None, None], change(pairs, 2), pairs)
        labels = torch.where(chosen[:, None, None], change(labels, 1), labels)
    return pairs, labels


def draw_flips(generator: np.random.Generator, count: int) -> np.ndarray:
    """Flip rows, flip columns; (b, 2) bool."""
    return generator.integers(0, 2, size=(count, 2), dtype=np.int8).astype(bool)


def draw_rotation(generator: np.random.Generator, count: int) -> np.ndarray:
    """The map from a tile to where its pixels are taken from: a turn by 0 to 15 degrees."""
    angle = np.deg2rad(generator.uniform(0, MOST_DEGREES, count))
    zero = np.zeros(count)
    rows = [[np.cos(angle), -np.sin(angle), zero], [np.sin(angle), np.cos(angle), zero]]
    return np.array(rows, np.float32).transpose(2, 0, 1)  # b 2 3


def apply_rotation(pairs: Tensor, labels: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Turn about the centre; the corners that come in are grey, and ignored."""
    return _warp(pairs - GREY, labels, drawn, outside=GREY)


def draw_zoom(generator: np.random.Generator, count: int) -> np.ndarray:
    """The map to a window anywhere in the tile, of which it is 1 to 1.2 times as large."""
    share = 1 / generator.uniform(1, MOST_ZOOM, count)
    x, y = generator.uniform(-1, 1, (2, count)) * (1 - share)
    zero = np.zeros(count)
    return np.array([[share, zero, x], [zero, share, y]], np.float32).transpose(2, 0, 1)  # b 2 3


def apply_zoom(pairs: Tensor, labels: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Enlarge a window of the tile to its size."""
    return _warp(pairs, labels, drawn, outside=None)


def draw_blur(generator: np.random.Generator, count: int) -> np.ndarray:
    """Standard deviation in pixels, 0 to 1; (b,) float."""
    return generator.uniform(0, MOST_BLUR, count).astype(np.float32)


def apply_blur(pairs: Tensor, labels: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Blur both dates alike with a Gaussian; edge pixels go on beyond the edge."""
    reach = torch.arange(-BLUR_REACH, BLUR_REACH + 1, device=pairs.device)
    weights = (-0.5 * (reach / drawn[:, None].clamp(min=1e-3)).square()).softmax(dim=1)  # b 7
    pairs = pairs.to(weights.dtype)
    for axis in (2, 3):
        place, last = torch.arange(pairs.shape[axis], device=pairs.device), pairs.shape[axis] - 1
        blurred = torch.zeros_like(pairs)
        for k in range(len(reach)):
            near = pairs.index_select(axis, (place + k - BLUR_REACH).clamp(0, last))
            blurred += weights[:, k, None, None, None, None] * near
        pairs = blurred
    return pairs, labels


def draw_colour(generator: np.random.Generator, count: int) -> np.ndarray:
    """Factors of brightness, contrast, saturation, and turns of hue, by date; (b, 2, 4) float."""
    drawn = generator.uniform(-MOST_COLOUR, MOST_COLOUR, (count, 2, 4))
    drawn[..., :3] += 1
    return drawn.astype(np.float32)


def apply_colour(pairs: Tensor, labels: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Change the colours of either date, in the order in which they are drawn."""
    brightness, contrast, saturation, hue = drawn[:, :, None, None, None].unbind(dim=-1)
    x = (pairs.to(drawn.dtype) / 255 * brightness).clamp(0, 1)
    mean = _grey(x).mean(dim=(2, 3), keepdim=True)
    x = torch.lerp(mean, x, contrast).clamp(0, 1)
    x = torch.lerp(_grey(x), x, saturation).clamp(0, 1)
    return 255 * _turn_hue(x, hue[..., 0]), labels


def _grey(x: Tensor) -> Tensor:
    """Luma of (..., 3) RGB, (..., 1)."""
    red, green, blue = x.unbind(dim=-1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(-1)


def _turn_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of (..., 3) RGB, 0 to 1, with value and saturation as they are."""
    red, green, blue = x.unbind(dim=-1)
    value = x.amax(dim=-1)
    chroma = value - x.amin(dim=-1)
    safe = chroma.clamp(min=torch.finfo(x.dtype).tiny)
    from_green = torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4)
    hue = torch.where(value == red, (green - blue) / safe, from_green) + 6 * turns  # sixths
    places = ((n + hue) % 6 for n in (5, 3, 1))
    return torch.stack(
        [value - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in places], dim=-1
    )


def _warp(
    pairs: Tensor, labels: Tensor, theta: Tensor, *, outside: float | None
) -> tuple[Tensor, Tensor]:
    """Take pixels from where (b, 2, 3) affine maps of coordinates in -1 to 1 say.

    Images are interpolated, labels are those of the nearest pixel. Beyond the edge lie the pixels
    at the edge, where `outside` is None. Otherwise `outside` has been taken from the images and is
    given back here, so that it lies there, and is ignored.
    """
    b, _, h, w, _ = pairs.shape
    images = pairs.to(theta.dtype).permute(0, 1, 4, 2, 3).flatten(1, 2)  # b 6 h w
    grid = F.affine_grid(theta, [b, 6, h, w], align_corners=False)
    padding = "border" if outside is None else "zeros"
    images = F.grid_sample(images, grid, "bilinear", padding, align_corners=False)
    shifted = (labels.to(theta.dtype) - IGNORE).unsqueeze(1)
    nearest = F.grid_sample(shifted, grid, "nearest", padding, align_corners=False).squeeze(1)
    pairs = images.reshape(b, 2, 3, h, w).permute(0, 1, 3, 4, 2).contiguous()
    return pairs + (outside or 0), (nearest + IGNORE).to(labels.dtype)


def _flip_rows(images: Tensor, rows: int) -> Tensor:
    return images.flip(rows)


def _flip_columns(images: Tensor, rows: int) -> Tensor:
    return images.flip(rows + 1)


def _transpose(images: Tensor, rows: int) -> Tensor:
    return images.transpose(rows, rows + 1)


AUGMENTATIONS: dict[Augmentation, Step] = {
    "symmetries": Step(draw_symmetries, apply_symmetries),
    "flips": Step(draw_flips, apply_symmetries),
    "rotation": Step(draw_rotation, apply_rotation),
    "zoom": Step(draw_zoom, apply_zoom),
    "blur": Step(draw_blur, apply_blur),
    "colour": Step(draw_colour, apply_colour),
}
"""Paired flips and quarter turns; flips alone; and what the compared methods train with."""

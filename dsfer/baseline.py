"""The plain baseline: colour difference above a threshold.

Its F1 stands beside the network's, to show how far one gets without learning what a building is.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from dsfer.data.batches import Batch
from dsfer.data.manifest import IGNORE
from dsfer.metrics import confusion_counts

BINS = 4096


def difference(pairs: Tensor) -> Tensor:
    """Euclidean distance of the two dates' colours, per pixel.

    Each band of each date is first brought to zero mean and unit deviation over the tile, which
    takes away differences of exposure and colour cast. A band without contrast counts as zero.

    Args:
        pairs: (b, 2, h, w, 3) uint8, both dates.

    Returns:
        Distances (b, h, w) float32, 0 or more.
    """
    # Sums over pixels are fast where the pixels of a band lie side by side.
    colours = pairs.permute(0, 1, 4, 2, 3).contiguous().float()  # b 2 3 h w
    colours -= colours.mean(dim=(3, 4), keepdim=True)
    deviation = colours.square().mean(dim=(3, 4), keepdim=True).sqrt()
    colours /= torch.where(deviation > 0, deviation, 1)
    return (colours[:, 1] - colours[:, 0]).square_().sum(dim=1).sqrt_()


def fit_threshold(batches: Iterable[Batch], *, largest: float = 16.0) -> float:
    """The threshold with the highest F1 of the change class over all tiles together.

    One pass gathers a histogram of distances per class; its tail sums are TP and FP of every
    threshold at once, and F1 = 2 TP / (2 TP + FP + FN).

    Args:
        batches: training tiles: pairs (b, 2, h, w, 3) uint8 and labels (b, h, w) uint8.
        largest: the candidates are `largest` * k / 4096, k = 0..4095; distances beyond count as
            above all of them.

    Returns:
        The threshold: pixels at or above it are taken for changed. Of equals the lowest; 0 where
        no pixel is changed.
    """
    seen = torch.zeros(3, BINS, dtype=torch.int64)  # unchanged, changed, ignored
    for pairs, labels in batches:
        number = (difference(pairs) * (BINS / largest)).clamp_(max=BINS - 1).to(torch.int32)
        number += BINS * torch.where(labels == IGNORE, 2, labels).to(torch.int32)
        found = torch.bincount(number.flatten(), minlength=3 * BINS).view(3, BINS)
        seen = seen.to(found.device) + found
    fp, tp = seen[:2].flip(1).cumsum(1).flip(1)
    fn = seen[1].sum() - tp
    f1 = 2 * tp / (2 * tp + fp + fn).clamp(min=1)
    return largest * int(f1.argmax()) / BINS


def count_tiles(batches: Iterable[Batch], threshold: float) -> Tensor:
    """Confusion counts of every tile when distances of at least `threshold` are taken for changed.

    Args:
        batches: pairs (b, 2, h, w, 3) uint8 and labels (b, h, w) uint8.
        threshold: from `fit_threshold`.

    Returns:
        (n, 4) int64, tp fp fn tn in the order of the tiles, ignored pixels left out.
    """
    none = torch.empty((0, 4), dtype=torch.int64)
    counts = [
        confusion_counts(difference(pairs) >= threshold, labels).cpu() for pairs, labels in batches
    ]
    return torch.cat([none, *counts])

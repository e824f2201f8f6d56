"""The plain baseline: colour difference above a threshold.

Its F1 stands beside the network's, to show how far one gets without learning what a building is.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from dsfer.data.tars import Pixels
from dsfer.metrics import COUNTS, confusion_counts

BINS = 4096

Tile = tuple[Pixels, Pixels]
"""Pair of shape (2, h, w, 3) and label of shape (h, w): 0, 1, or 255 to ignore."""


def difference(pair: Pixels) -> NDArray[np.float32]:
    """Euclidean distance of the two dates' colours, per pixel.

    Each band of each date is first brought to zero mean and unit deviation over the tile, which
    takes away differences of exposure and colour cast. A band without contrast counts as zero.

    Args:
        pair: (2, h, w, 3), both dates.

    Returns:
        Distances of shape (h, w), 0 or more.
    """
    colours = pair.astype(np.float32)
    colours -= colours.mean(axis=(1, 2), keepdims=True)
    deviation = colours.std(axis=(1, 2), keepdims=True)
    colours /= np.where(deviation > 0, deviation, 1)
    change: NDArray[np.float32] = np.linalg.norm(colours[1] - colours[0], axis=-1)
    return change


def fit_threshold(tiles: Iterable[Tile], *, largest: float = 16.0) -> float:
    """The threshold with the highest F1 of the change class over all tiles together.

    One pass gathers a histogram of distances per class; its tail sums are TP and FP of every
    threshold at once, and F1 = 2 TP / (2 TP + FP + FN).

    Args:
        tiles: training tiles.
        largest: the candidates are `largest` * k / 4096, k = 0..4095; distances beyond count as
            above all of them.

    Returns:
        The threshold: pixels at or above it are taken for changed. Of equals the lowest; 0 where
        no pixel is changed.
    """
    seen = np.zeros((2, BINS), np.int64)
    for pair, label in tiles:
        number = np.minimum(difference(pair) * np.float32(BINS / largest), BINS - 1).astype(np.intp)
        for value in (0, 1):
            seen[value] += np.bincount(number[label == value], minlength=BINS)
    above = seen[:, ::-1].cumsum(axis=1)[:, ::-1]
    fp, tp = above
    fn = seen[1].sum() - tp
    f1 = 2 * tp / np.maximum(2 * tp + fp + fn, 1)
    return float(largest * int(f1.argmax()) / BINS)


def counts(tiles: Iterable[Tile], threshold: float) -> pd.DataFrame:
    """Confusion counts per tile when distances of at least `threshold` are taken for changed.

    Args:
        tiles: pairs and labels.
        threshold: from `fit_threshold`.

    Returns:
        One row per tile, in order; columns tp, fp, fn, tn (int64), ignored pixels left out.
    """
    rows = []
    for pair, label in tiles:
        found = difference(pair) >= threshold
        rows.append(confusion_counts(torch.from_numpy(found)[None], torch.from_numpy(label)[None]))
    stacked = torch.cat(rows) if rows else torch.empty((0, len(COUNTS)), dtype=torch.int64)
    return pd.DataFrame(stacked.numpy(), columns=COUNTS)

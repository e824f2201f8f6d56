"""Overlapping windows over a scene of any size, blended smoothly, in memory of one window row.

The `stitched` protocol of evaluation and maps of whole rasters are this one piece of code.
"""

from collections.abc import Callable, Iterator

import numpy as np

ReadWindow = Callable[[int, int, int], np.ndarray]
PredictWindows = Callable[[np.ndarray], np.ndarray]


def window_starts(length: int, size: int, overlap: int) -> list[int]:
    """First pixels of windows that cover `length` pixels with at least `overlap` in common.

    The last window is moved back to end at the edge, so that every window is full. Of a scene
    smaller than a window there is one, which starts at 0 and hangs over.

    Args:
        length: pixels to cover, at least 1.
        size: side of a window.
        overlap: pixels that neighbours share at least, below `size`.
    """
    if length <= size:
        return [0]
    starts = list(range(0, length - size, size - overlap))
    return [*starts, length - size]


def blend_weights(size: int, overlap: int) -> np.ndarray:
    """Weight of each pixel of a window: 1 inside, falling linearly to the edge over the overlap.

    Weights are positive everywhere; `change_probability` divides by their sum, so that the
    weights of all windows over a pixel add up to one.

    Returns:
        (size, size) float64 in (0, 1].
    """
    distance = np.minimum(np.arange(size), np.arange(size)[::-1]) + 1.0
    ramp = np.minimum(distance / (overlap + 1), 1.0)
    return np.outer(ramp, ramp)


def change_probability(
    shape: tuple[int, int],
    read: ReadWindow,
    predict: PredictWindows,
    *,
    tile_size: int,
    overlap: int,
    batch_size: int = 32,
) -> Iterator[tuple[int, np.ndarray]]:
    """Predict a whole scene window by window, and yield it from top to bottom in strips.

    Only the windows of one row and their sums are in memory, whatever the height of the scene.

    Args:
        shape: rows and columns of the scene.
        read: read(top, left, size) returns the pair (2, h, w, 3) uint8 of a window, smaller than
            `size` only where the scene is.
        predict: predict(windows) maps (b, 2, size, size, 3) uint8 to change probability
            (b, size, size) float32.
        tile_size: side of a window.
        overlap: pixels that neighbours share at least.
        batch_size: windows per call of `predict`.

    Yields:
        First row of a strip, and its probability (rows, cols) float32 in [0, 1].
    """
    rows, cols = shape
    weights = blend_weights(tile_size, overlap)
    width = max(cols, tile_size)
    tops = window_starts(rows, tile_size, overlap)
    lefts = window_starts(cols, tile_size, overlap)
    # Hundreds of windows may cover a pixel: in float32 their sum would lose more than it shows.
    total = np.zeros((tile_size, width), dtype=np.float64)
    weight = np.zeros_like(total)
    for top, following in zip(tops, [*tops[1:], rows], strict=True):
        for left, probability in _predict_row(
            top, lefts, read, predict, tile_size=tile_size, batch_size=batch_size
        ):
            total[:, left : left + tile_size] += weights * probability
            weight[:, left : left + tile_size] += weights
        done = min(following, rows) - top
        yield top, (total[:done] / weight[:done])[:, :cols].astype(np.float32)
        total, weight = _shift_up(total, done), _shift_up(weight, done)


def _predict_row(
    top: int,
    lefts: list[int],
    read: ReadWindow,
    predict: PredictWindows,
    *,
    tile_size: int,
    batch_size: int,
) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(lefts), batch_size):
        some = lefts[start : start + batch_size]
        windows = np.stack([_full(read(top, left, tile_size), tile_size) for left in some])
        yield from zip(some, predict(windows), strict=True)


def _full(window: np.ndarray, size: int) -> np.ndarray:
    """Repeat the edge pixels of a scene smaller than a window, which is the mildest surround."""
    h, w = window.shape[1:3]
    if (h, w) == (size, size):
        return window
    return np.pad(window, ((0, 0), (0, size - h), (0, size - w), (0, 0)), mode="edge")


def _shift_up(sums: np.ndarray, rows: int) -> np.ndarray:
    shifted = np.zeros_like(sums)
    shifted[: len(sums) - rows] = sums[rows:]
    return shifted

"""Overlapping windows over a scene of any size, blended smoothly, in memory of one window row.

The `stitched` protocol of evaluation and maps of whole rasters are this one piece of code.
"""

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import lru_cache, partial
from itertools import islice
from typing import TypeVar

import numpy as np

T = TypeVar("T")
ReadWindow = Callable[[int, int, int], np.ndarray | None]
PredictWindows = Callable[[np.ndarray], np.ndarray]
Corner = tuple[int, int]
Sides = tuple[bool, bool]
"""Of a window along one axis: whether it fades out towards its first pixel and its last one."""


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


def fading_sides(start: int, size: int, length: int) -> Sides:
    """Where a window fades out: towards its neighbours, not where the scene itself ends.

    The last window, moved back, may end a pixel after the one before it. Were both to fade out
    there, the first of the two would leave with a third of the weight: a seam.

    Args:
        start: first pixel of the window.
        size: side of a window.
        length: pixels of the scene along this axis.
    """
    return start > 0, start + size < length


def blend_weights(
    size: int, overlap: int, rows: Sides = (True, True), cols: Sides = (True, True)
) -> np.ndarray:
    """Weight of each pixel of a window: 1 inside, falling linearly to its sides over the overlap.

    Weights are positive everywhere; `change_probability` divides by their sum, so that the
    weights of all windows over a pixel add up to one.

    Args:
        size: side of a window.
        overlap: pixels that neighbours share at least, below `size`.
        rows: whether it fades towards its first and its last row, see `fading_sides`.
        cols: the same of columns.

    Returns:
        (size, size) float64 in (0, 1].
    """
    rising = np.minimum(np.arange(1, size + 1) / (overlap + 1), 1.0)

    def ramp(sides: Sides) -> np.ndarray:
        first, last = (rising if fades else np.ones(size) for fades in sides)
        return np.minimum(first, last[::-1])

    return np.outer(ramp(rows), ramp(cols))


def change_probability(
    shape: tuple[int, int],
    read: ReadWindow,
    predict: PredictWindows,
    *,
    tile_size: int,
    overlap: int,
    batch_size: int = 32,
    from_row: int = 0,
) -> Generator[tuple[int, np.ndarray], None, None]:
    """Predict a whole scene window by window, and yield it from top to bottom in strips.

    Only the windows of one row and their sums are in memory, whatever the height of the scene.
    The next windows are read while the network works.

    Args:
        shape: rows and columns of the scene.
        read: read(top, left, size) returns the pair (2, h, w, 3) uint8 of a window, smaller than
            `size` only where the scene is; or None where the window holds no data. It is called
            from another thread, by ascending top and then left.
        predict: predict(windows) maps (b, 2, size, size, 3) uint8 to change probability
            (b, size, size) float32.
        tile_size: side of a window.
        overlap: pixels that neighbours share at least.
        batch_size: windows per call of `predict`.
        from_row: first row of the scene that is wanted; windows above it are left out. Nothing is
            yielded where it is below the last.

    Yields:
        First row of a strip, and its probability (rows, cols) float32 in [0, 1], NaN where no
        window holds data.
    """
    rows, cols = shape
    if from_row >= rows:
        return
    # Along a row they are of three kinds at most: first, inner and last.
    weights_of = lru_cache(maxsize=4)(partial(blend_weights, tile_size, overlap))
    tops = [top for top in window_starts(rows, tile_size, overlap) if top + tile_size > from_row]
    lefts = window_starts(cols, tile_size, overlap)
    corners = [(top, left) for top in tops for left in lefts]
    # Hundreds of windows may cover a pixel: in float32 their sum would lose more than it shows.
    total = np.zeros((tile_size, max(cols, tile_size)), dtype=np.float64)
    weight = np.zeros_like(total)
    current = tops[0]

    def finished(following: int) -> tuple[int, np.ndarray]:
        """The rows above `following`, to which no further window adds."""
        first, last = max(from_row - current, 0), following - current
        with np.errstate(invalid="ignore"):  # 0 / 0 where there is no data
            strip = total[first:last, :cols] / weight[first:last, :cols]
        return current + first, strip.astype(np.float32)

    predicted = _predicted(corners, read, predict, tile_size, batch_size)
    with closing(predicted):
        for (top, left), probability in predicted:
            if top != current:
                if top > from_row:
                    yield finished(top)
                total, weight = (_shift_up(sums, top - current) for sums in (total, weight))
                current = top
            if probability is not None:
                weights = weights_of(
                    fading_sides(top, tile_size, rows), fading_sides(left, tile_size, cols)
                )
                total[:, left : left + tile_size] += weights * probability
                weight[:, left : left + tile_size] += weights
    yield finished(rows)


def ahead(items: Generator[T, None, None]) -> Generator[T, None, None]:
    """The same items, each made in another thread while the caller works on the one before.

    Closed, it waits for the item that is being made, and closes `items`: nothing goes on behind the
    back of a caller that stops with an error.
    """
    end = object()
    with closing(items), ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, items, end)
        while (item := following.result()) is not end:
            following = pool.submit(next, items, end)
            yield item  # type: ignore[misc] # an item, since it is not the end


def _predicted(
    corners: list[Corner], read: ReadWindow, predict: PredictWindows, size: int, batch_size: int
) -> Generator[tuple[Corner, np.ndarray | None], None, None]:
    """The probability of each window in order, None where it holds no data."""

    def batches() -> Generator[list[tuple[Corner, np.ndarray | None]], None, None]:
        left = iter(corners)
        while some := list(islice(left, batch_size)):
            windows = [read(*corner, size) for corner in some]
            whole = [None if window is None else _full(window, size) for window in windows]
            yield list(zip(some, whole, strict=True))

    with closing(ahead(batches())) as read_ahead:
        for batch in read_ahead:
            windows = [window for _, window in batch if window is not None]
            outputs = iter(predict(np.stack(windows)) if windows else ())
            for corner, window in batch:
                yield corner, None if window is None else next(outputs)


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

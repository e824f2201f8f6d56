import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsfer.data.tiling import grid_shape, strip_windows
from dsfer.errors import ConfigError

sides = st.integers(1, 90)


def windows(rows, cols, size, padding):
    """All windows of a scene, row by row."""
    strips, _ = grid_shape(rows, cols, size, padding)
    return [w for strip in range(strips) for w in strip_windows(rows, cols, size, padding, strip)]


@given(sides, sides, sides)
def test_padded_windows_cover_each_pixel_once(rows, cols, size):
    seen = np.zeros((rows, cols), int)
    for w in windows(rows, cols, size, "pad"):
        inside = seen[w.row : w.row + w.size, w.col : w.col + w.size]
        assert inside.shape == (w.rows, w.cols)
        assert min(w.rows, w.cols) > 0
        inside += 1
    assert (seen == 1).all()


@given(sides, sides, sides)
def test_dropped_windows_are_the_whole_ones_of_the_padded_grid(rows, cols, size):
    whole = [w for w in windows(rows, cols, size, "pad") if not (w.pad_rows or w.pad_cols)]
    assert windows(rows, cols, size, "drop") == whole


@pytest.mark.parametrize(
    ("rows", "cols", "padding", "shape"),
    [
        (15354, 32507, "pad", (60, 127)),  # WHU-CD: the paper's 7,620 tiles
        (15354, 32507, "drop", (59, 126)),
        (1024, 1024, "pad", (4, 4)),
        (100, 300, "drop", (0, 1)),
    ],
)
def test_known_grids(rows, cols, padding, shape):
    assert grid_shape(rows, cols, 256, padding) == shape
    assert len(windows(rows, cols, 256, padding)) == shape[0] * shape[1]


@pytest.mark.parametrize(("size", "padding"), [(0, "pad"), (-1, "drop"), (8, "mirror")])
def test_impossible_tilings(size, padding):
    with pytest.raises(ConfigError):
        grid_shape(10, 10, size, padding)

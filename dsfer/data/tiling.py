"""Where the tiles of a scene lie: pure window arithmetic, no pixels."""

from dataclasses import dataclass
from typing import Literal

from dsfer.errors import ConfigError

Padding = Literal["pad", "drop"]
"""`pad`: windows may reach over the bottom and right edge. `drop`: such windows are left out."""


@dataclass(frozen=True)
class Window:
    """A square window of a scene.

    Attributes:
        row: first row in the scene, in pixels.
        col: first column in the scene, in pixels.
        size: side of the window in pixels.
        pad_rows: rows at its bottom that lie outside the scene.
        pad_cols: columns at its right that lie outside the scene.
    """

    row: int
    col: int
    size: int
    pad_rows: int = 0
    pad_cols: int = 0

    @property
    def rows(self) -> int:
        """Rows inside the scene."""
        return self.size - self.pad_rows

    @property
    def cols(self) -> int:
        """Columns inside the scene."""
        return self.size - self.pad_cols


def grid_shape(rows: int, cols: int, size: int, padding: Padding) -> tuple[int, int]:
    """Rows and columns of the grid of windows over a scene.

    A 15354 x 32507 scene on a padded grid of 256 has 60 x 127 = 7,620 windows.

    Args:
        rows: height of the scene in pixels.
        cols: width of the scene in pixels.
        size: side of a window in pixels.
        padding: what happens to windows that cross the edge.

    Raises:
        ConfigError: the size is not positive, or the padding is unknown.
    """
    if size < 1:
        raise ConfigError(
            f"{size} is no side of a tile", where="tile_size", mend="give a positive number"
        )
    if padding == "pad":
        return -(-rows // size), -(-cols // size)
    if padding == "drop":
        return rows // size, cols // size
    raise ConfigError(f"unknown padding '{padding}'", where="padding", mend="choose pad or drop")


def strip_windows(rows: int, cols: int, size: int, padding: Padding, strip: int) -> list[Window]:
    """Windows of one row of the grid, left to right.

    With `pad` those of all rows cover each pixel of the scene exactly once.

    Args:
        rows: height of the scene in pixels.
        cols: width of the scene in pixels.
        size: side of a window in pixels.
        padding: what happens to windows that cross the edge.
        strip: row of the grid, from 0 at the top.
    """
    _, count = grid_shape(rows, cols, size, padding)
    row = strip * size
    return [
        Window(row, col, size, max(0, row + size - rows), max(0, col + size - cols))
        for col in range(0, count * size, size)
    ]

"""Cut scenes of any size into tiles on a regular grid, without loss."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rasterio.transform import Affine

from dsfer.data.labels import label_rule as known_rule
from dsfer.data.labels import label_values
from dsfer.data.manifest import IGNORE
from dsfer.data.rasters import Bands, SceneFacts, SceneReader, Strip
from dsfer.data.scenes import Scene
from dsfer.data.tars import Pixels
from dsfer.data.tiles import Tile, inspect_scenes, tile_place, unit_size, write_tiles
from dsfer.data.tiling import Padding, Window, grid_shape, strip_windows
from dsfer.data.workers import Spread
from dsfer.errors import DataError

_log = logging.getLogger(__name__)


def crop_scenes(
    scenes: Sequence[Scene],
    out: Path,
    *,
    tile_size: int,
    padding: Padding,
    label_rule: str,
    bands: Bands | None,
    spread: Spread,
) -> None:
    """Cut scenes into tiles: tars, `manifest.parquet` and `scenes.parquet`.

    Rows are read in full width and ascending order, so that a compressed file is decoded once and
    memory does not grow with the height of a scene. The same input gives the same bytes for any
    number of processes, and of machines.

    Args:
        scenes: what to cut.
        out: folder to write; it is replaced as a whole, or left as it was on an error.
        tile_size: side of a tile in pixels.
        padding: `pad` fills windows over the bottom and right edge with 0, and with 255 in the
            label; `drop` leaves them out.
        label_rule: how label values are read, see `dsfer.data.labels`.
        bands: three 1-based bands to take as R, G, B, or None for the only three there are.
        spread: where it is done.

    Raises:
        ConfigError: a tile size, padding or label rule that does not exist.
        GridMismatchError: sizes within a scene differ.
        LabelError: a label is not one 8-bit band, or holds values that its rule does not allow.
        DataError: a file is missing, damaged or not an 8-bit RGB image; two scenes share an id;
            no tile fits into any scene.
    """
    known_rule(label_rule)
    facts = inspect_scenes(scenes, bands, spread=spread)
    shapes = [grid_shape(scene.rows, scene.cols, tile_size, padding) for scene in facts]
    _check_fit(facts, shapes, tile_size)
    units = [
        CropUnit(tuple(pieces), tile_size, padding, label_rule, bands)
        for pieces in _plan(facts, shapes)
    ]
    write_tiles(out, units, facts, spread=spread)


def _check_fit(
    facts: Sequence[SceneFacts], shapes: Sequence[tuple[int, int]], tile_size: int
) -> None:
    small = [scene for scene, shape in zip(facts, shapes, strict=True) if 0 in shape]
    if len(small) == len(facts):
        raise DataError(
            f"every scene is smaller than a tile of {tile_size} x {tile_size} pixels",
            where=small[0].scene.t1,
            mend="set a smaller tile_size, or padding: pad",
        )
    if small:
        _log.warning(
            "%d of %d scenes are smaller than a tile and yield none, first %s",
            len(small), len(facts), small[0].scene.t1,
        )  # fmt: skip


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of the grid of one scene, and the number of tiles in them."""

    facts: SceneFacts
    strips: range
    count: int


def _plan(facts: Sequence[SceneFacts], shapes: Sequence[tuple[int, int]]) -> Iterator[list[Piece]]:
    """Divide the work into units: several small scenes, or some rows of a large one."""
    size = unit_size(sum(strips * cols for strips, cols in shapes))
    unit: list[Piece] = []
    for scene, (strips, cols) in zip(facts, shapes, strict=True):
        # Half a file that is decoded from its top costs as much as all of it.
        step = max(1, strips) if scene.sequential else max(1, size // max(1, cols))
        for first in range(0, strips, step) if cols else ():
            rows = range(first, min(first + step, strips))
            piece = Piece(scene, rows, len(rows) * cols)
            if unit and sum(other.count for other in unit) + piece.count > size:
                yield unit
                unit = []
            unit.append(piece)
    if unit:
        yield unit


@dataclass(frozen=True)
class CropUnit:
    """Pieces of scenes that one process cuts into one tar."""

    pieces: tuple[Piece, ...]
    tile_size: int
    padding: Padding
    label_rule: str
    bands: Bands | None

    @property
    def count(self) -> int:
        """Number of tiles."""
        return sum(piece.count for piece in self.pieces)

    def tiles(self) -> Iterator[Tile]:
        """Cut them, scene by scene and row by row."""
        for piece in self.pieces:
            facts, size = piece.facts, self.tile_size
            with SceneReader(facts.scene, self.bands, self.label_rule) as reader:
                for number in piece.strips:
                    start = number * size
                    strip = reader.read(start, min(start + size, facts.rows))
                    for window in strip_windows(facts.rows, facts.cols, size, self.padding, number):
                        yield _cut(facts, strip, window)


def _cut(facts: SceneFacts, strip: Strip, window: Window) -> Tile:
    """One tile out of the strip that begins at its first row."""
    inside = slice(window.rows), slice(window.col, window.col + window.cols)
    transform = None
    if facts.transform is not None:
        transform = Affine(*facts.transform) @ Affine.translation(window.col, window.row)
    place = tile_place(
        facts, window.row, window.col, window.size,
        split=facts.scene.split, transform=transform,
    )  # fmt: skip
    return Tile(
        place | {"pad_rows": window.pad_rows, "pad_cols": window.pad_cols},
        _padded(strip.t1[inside], window.size, 0),
        _padded(strip.t2[inside], window.size, 0),
        _padded(strip.label[inside], window.size, IGNORE),
        label_values(strip.raw[inside][strip.label[inside] != IGNORE]),
    )


def _padded(pixels: Pixels, size: int, value: int) -> Pixels:
    """A contiguous copy with `value` at the bottom and right up to the size of a tile."""
    rows, cols = pixels.shape[:2]
    tile = np.full((size, size, *pixels.shape[2:]), value, np.uint8)
    tile[:rows, :cols] = pixels
    return tile

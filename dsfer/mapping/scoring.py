"""How right a map is, where a label says what really changed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rasterio.windows import Window

from dsfer.data.labels import label_rule
from dsfer.data.manifest import IGNORE
from dsfer.data.rasters import check_label, open_raster, read_label
from dsfer.data.tars import Pixels
from dsfer.data.tiling import strip_windows
from dsfer.detector import Detector
from dsfer.figures import ERROR_COLOURS
from dsfer.mapping.pair import RasterPair
from dsfer.mapping.raw import RawRaster
from dsfer.metrics import change_metrics, confusion_counts, finite, total_counts
from dsfer.paths import location

ERROR_NAMES = ("TN", "TP", "FP", "FN")
"""What the values 0, 1, 2, 3 of an error raster mean; 255 is not scored."""

ERROR_PALETTE = {value: ERROR_COLOURS[name] for value, name in enumerate(ERROR_NAMES)}


@dataclass(frozen=True)
class Label:
    """What really changed between two dates.

    Attributes:
        path: raster of one 8-bit band on the grid of the first date, or an address that GDAL reads.
        rule: how its values are read, see `dsfer.data.labels`.
    """

    path: str | Path
    rule: str = "binary255"


def check_fits(label: Label, pair: RasterPair) -> None:
    """Check, from its header alone, that a label can score the map of a pair.

    Raises:
        ConfigError: there is no such rule.
        DataError: the label cannot be opened.
        LabelError: it is not one 8-bit band.
        GridMismatchError: it is of another size or, where it has a place, on another grid.
    """
    label_rule(label.rule)
    with open_raster(location(label.path)) as raster:
        check_label(raster)
        pair.check_fits(raster)


def score(
    label: Label,
    pair: RasterPair,
    detector: Detector,
    probability: RawRaster,
    change: RawRaster,
    errors: RawRaster,
    *,
    threshold: float,
) -> dict[str, Any]:
    """Score a map in both protocols, and note the outcome of every pixel.

    Args:
        label: what really changed, which `check_fits` has passed; nodata of its own is not scored.
        pair: the rasters.
        detector: the network, for the protocol `tiles`.
        probability: float32 of blended windows, NaN where there is no data.
        change: uint8, the class raster.
        errors: uint8 to fill in, see `ERROR_NAMES`.
        threshold: probability above which a pixel is changed.

    Returns:
        Change-class metrics in percent, None where they have no value: `tiles` of isolated windows,
        `stitched` of the blended probability, `map` of the class raster, which differs where small
        areas were left out.

    Raises:
        LabelError: the label breaks its rule.
        DataError: it is damaged.
    """
    totals = dict.fromkeys(("tiles", "stitched", "map"), torch.zeros((1, 4), dtype=torch.int64))
    for start, truth in _label_strips(label, pair, detector.tile_size):
        rows = slice(start, start + len(truth))
        truth[change.rows[rows] == IGNORE] = IGNORE
        said = {
            "tiles": _isolated(pair, detector, start, truth.shape) > threshold,
            "stitched": probability.rows[rows] > threshold,
            "map": change.rows[rows] == 1,
        }
        for name, changed in said.items():
            totals[name] = totals[name] + confusion_counts(
                torch.from_numpy(changed)[None], torch.from_numpy(truth)[None]
            )
        # Unchanged and rightly so 0, changed and rightly so 1, false alarm 2, missed 3.
        outcome = np.array([[0, 3], [2, 1]], np.uint8)[said["map"].astype(int), truth & 1]
        errors.rows[rows] = np.where(truth == IGNORE, np.uint8(IGNORE), outcome)
        for raster in (probability, change, errors):
            raster.release()
    counts = {name: total_counts(total) for name, total in totals.items()}
    return {name: finite(change_metrics(total)) | total for name, total in counts.items()}


def _label_strips(label: Label, pair: RasterPair, size: int) -> Iterator[tuple[int, Pixels]]:
    """Rows of the label, `size` at a time: their first, and 0, 1 or 255 for each pixel."""
    with open_raster(location(label.path)) as raster:
        for start in range(0, pair.grid.rows, size):
            window = Window(0, start, pair.grid.cols, min(size, pair.grid.rows - start))
            truth, _ = read_label(raster, label.rule, window)
            yield start, truth


def _isolated(
    pair: RasterPair, detector: Detector, start: int, shape: tuple[int, int]
) -> np.ndarray:
    """Change probability of rows that are cut into tiles which know nothing of each other."""
    size = detector.tile_size
    pixels, _ = pair.read(start, start + shape[0])
    tiles = strip_windows(pair.grid.rows, pair.grid.cols, size, "pad", start // size)
    probability = np.empty(shape, np.float32)
    batch = detector.inference.batch_size
    for first in range(0, len(tiles), batch):
        some = tiles[first : first + batch]
        windows = np.zeros((len(some), 2, size, size, 3), np.uint8)
        for window, tile in zip(windows, some, strict=True):
            window[:, : tile.rows, : tile.cols] = pixels[:, :, tile.col : tile.col + tile.cols]
        for tile, output in zip(some, detector.probabilities(windows), strict=True):
            probability[:, tile.col : tile.col + tile.cols] = output[: tile.rows, : tile.cols]
    return probability

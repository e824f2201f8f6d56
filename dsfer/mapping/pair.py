"""Two rasters of one place at two dates, as the pixels that a network takes.

Legend: h rows, w columns.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from dsfer.data.rasters import (
    GDAL_OPTIONS,
    Bands,
    check_size,
    choose_bands,
    has_place,
    missing_data,
    open_raster,
    read_bands,
)
from dsfer.data.tars import Pixels
from dsfer.errors import ConfigError, DataError
from dsfer.mapping.grids import TOLERANCE, Grid, check_overlap, check_same_grid, grid_of
from dsfer.mapping.scaling import Scale, Scaling, resolve_scaling
from dsfer.paths import gdal_store_options, location

_COLOURS = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)


@dataclass(frozen=True)
class Reading:
    """How a pair of rasters is read.

    Attributes:
        bands: three 1-based bands to take as R, G, B, whatever colours they are declared as; None
            for those of training or the only three there are.
        scale: values that become 0 and 255, see `dsfer.mapping.scaling`.
        align: resample the second raster onto the first where their grids differ.
        tolerance: pixels by which two grids may lie apart and count as one, above 0 and up to 1.
    """

    bands: Bands | None = None
    scale: Scale = None
    align: bool = False
    tolerance: float = TOLERANCE

    def __post_init__(self) -> None:
        """Refuse what would switch the check of the grids off.

        Raises:
            ConfigError: a tolerance that is none.
        """
        if not 0 < self.tolerance <= 1:
            raise ConfigError(
                f"{self.tolerance:g} is no part of a pixel",
                where="tolerance",
                mend="give a number above 0 and up to 1, or resample the second raster by align",
            )


class RasterPair:
    """The open rasters of a pair; a context manager.

    Attributes:
        grid: grid of the first date, which the maps are drawn on.
        grids: of both, as their files have them.
        offset: pixels by which the grid of the second lies apart; 0 where it was resampled.
        names: of both, for messages.
        aligned: whether the second date is resampled.
        scalings: stretch of each date, None where its bytes are taken as they are.

    Args:
        t1: first date, anything that GDAL opens.
        t2: second date.
        reading: how they are read.
        trained: bands of the training imagery, for a reading that names none.

    Raises:
        DataError: a file cannot be opened, or cannot be read as RGB; the two have no common sample
            type or, where `reading` names no bands, do not declare the same; or a grid is none to
            draw maps on.
        GridMismatchError: the grids differ, and `reading` does not align them.
        ConfigError: an impossible scale.
    """

    def __init__(self, t1: str, t2: str, reading: Reading, trained: Bands | None = None):
        with ExitStack() as stack:
            stack.enter_context(_gdal())
            first, second = (stack.enter_context(open_raster(location(path))) for path in (t1, t2))
            wanted = reading.bands or trained
            self._bands = [choose_bands(image, wanted) for image in (first, second)]
            if reading.bands is None:
                _check_bands(first, second, self._bands, trained)
            self.scalings: list[Scaling | None] = [
                resolve_scaling(image, bands, reading.scale)
                for image, bands in zip((first, second), self._bands, strict=True)
            ]
            if reading.scale != "percentiles":
                _check_types(first, second, self._bands)
            self.grids = (grid_of(first), grid_of(second))
            self.grid: Grid = self.grids[0]
            self.aligned = reading.align and self.grids[1] != self.grid
            if self.aligned:
                check_overlap(first, second)
                second = stack.enter_context(_resampled(second, self.grid))
                self.offset = 0.0
            else:
                self.offset = check_same_grid(first, second, tolerance=reading.tolerance)
            self._rasters = (first, second)
            self._tolerance = reading.tolerance
            self.names = f"{t1} and {t2}"
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def check_fits(self, label: DatasetReader) -> None:
        """Check that a label has the size of the first date and, where it has a place, its grid.

        Raises:
            GridMismatchError: it does not.
            DataError: its grid is none to draw maps on.
        """
        first = self._rasters[0]
        if has_place(label):
            check_same_grid(
                first,
                label,
                tolerance=self._tolerance,
                mend="resample the label onto the grid of the first raster, with nearest "
                "neighbours, for instance with `rio warp --like`",
            )
        else:
            check_size(first, label)

    def read(self, start: int, stop: int) -> tuple[Pixels, npt.NDArray[np.bool_]]:
        """Read full-width rows; cheapest in ascending order.

        Returns:
            Both dates, (2, h, w, 3) RGB uint8, and where both hold data, (h, w) bool.

        Raises:
            DataError: a file is damaged.
        """
        rows = Window(0, start, self.grid.cols, stop - start)
        return self._read(rows, (stop - start, self.grid.cols))

    def overview(self, shape: tuple[int, int]) -> tuple[Pixels, npt.NDArray[np.bool_]]:
        """The whole pair at (h, w), as `read` returns it; fast where the files hold overviews."""
        return self._read(Window(0, 0, self.grid.cols, self.grid.rows), shape)

    def _read(self, window: Window, shape: tuple[int, int]) -> tuple[Pixels, npt.NDArray[np.bool_]]:
        pixels = np.empty((2, *shape, 3), np.uint8)
        valid = np.ones(shape, np.bool_)
        with _gdal():  # rows are read ahead, and options do not reach from one thread to another
            for date, (raster, bands, scaling) in enumerate(
                zip(self._rasters, self._bands, self.scalings, strict=True)
            ):
                if scaling is None:
                    pixels[date] = read_bands(raster, bands, window, shape=shape)
                else:
                    samples = read_bands(raster, bands, window, dtype=np.float32, shape=shape)
                    valid &= np.isfinite(samples).all(axis=2)
                    pixels[date] = scaling.apply(samples)
                if (missing := missing_data(raster, bands, window, shape=shape)) is not None:
                    valid &= ~missing
        return pixels, valid


def _check_bands(
    first: DatasetReader, second: DatasetReader, bands: Sequence[Bands], trained: Bands | None
) -> None:
    """Refuse bands that nobody named and that may not be R, G and B of both dates."""
    for image, chosen in zip((first, second), bands, strict=True):
        declared = [image.colorinterp[band - 1] for band in chosen]
        if any(
            colour in _COLOURS and colour is not wanted
            for colour, wanted in zip(declared, _COLOURS, strict=True)
        ):
            numbers = ",".join(map(str, chosen))
            raise DataError(
                f"its bands {numbers}, which {'training' if trained else 'an RGB image'} has as "
                f"red, green, blue, are declared as {', '.join(c.name for c in declared)}",
                where=image.name,
                mend=f"name the bands of both dates that are R, G and B: --bands {numbers} if the "
                "file declares them wrongly",
            )
    counts = [
        sum(colour is not ColorInterp.alpha for colour in image.colorinterp)
        for image in (first, second)
    ]
    if counts[0] != counts[1]:
        raise DataError(
            f"has {counts[1]} bands, but {first.name} has {counts[0]}: the same number may mean "
            "another colour",
            where=second.name,
            mend="name the bands that are R, G and B of both with --bands",
        )


def _check_types(first: DatasetReader, second: DatasetReader, bands: Sequence[Bands]) -> None:
    """Refuse samples of two types: one stretch would not fit both."""
    kinds = [
        ", ".join(sorted({image.dtypes[band - 1] for band in chosen}))
        for image, chosen in zip((first, second), bands, strict=True)
    ]
    if kinds[0] != kinds[1]:
        raise DataError(
            f"samples are {kinds[1]}, but those of {first.name} are {kinds[0]}",
            where=second.name,
            mend="convert one to type and unit of the other, or stretch each by itself with "
            "--scale percentiles",
        )


def _gdal() -> rasterio.Env:
    """What GDAL is to read by, in the thread that enters it."""
    return rasterio.Env(**GDAL_OPTIONS, **gdal_store_options())


def _resampled(raster: DatasetReader, grid: Grid) -> WarpedVRT:
    """A raster on another grid, bilinear, without data where it shows nothing."""
    by_nodata = any(MaskFlags.nodata in flags for flags in raster.mask_flag_enums)
    return WarpedVRT(
        raster,
        # GDAL would warp by the nodata value of a raster that it reads by its mask.
        src_nodata=raster.nodata if by_nodata else None,
        crs=grid.crs,
        transform=grid.transform,
        width=grid.cols,
        height=grid.rows,
        resampling=Resampling.bilinear,
        add_alpha=not by_nodata and ColorInterp.alpha not in raster.colorinterp,
    )


class RollingRows:
    """Windows of a pair, read once and from the top: only the rows of one window are held.

    Args:
        pair: the rasters.
        note: called once with every run of rows that is read: its first row, and where both dates
            hold data, (h, w) bool.
    """

    def __init__(self, pair: RasterPair, note: Callable[[int, npt.NDArray[np.bool_]], None]):
        self._pair, self._note = pair, note
        self._start = self._stop = 0
        self._pixels = np.empty((2, 0, pair.grid.cols, 3), np.uint8)
        self._valid = np.empty((0, pair.grid.cols), np.bool_)

    def window(self, top: int, left: int, size: int) -> Pixels | None:
        """Pixels (2, h, w, 3) of a window, or None where it holds no data in both dates.

        Args:
            top: first row, never above that of the call before.
            left: first column.
            size: side; the window is smaller where the raster is.

        Raises:
            DataError: a file is damaged.
        """
        self._hold(top, min(top + size, self._pair.grid.rows))
        columns = slice(left, left + size)
        rows = slice(0, top + size - self._start)
        if not self._valid[rows, columns].any():
            return None
        return self._pixels[:, rows, columns]

    def _hold(self, start: int, stop: int) -> None:
        if start < self._start:
            raise ValueError(f"row {start} is above row {self._start}, which has been left")
        keep = slice(min(start, self._stop) - self._start, None)
        self._pixels, self._valid = self._pixels[:, keep], self._valid[keep]
        self._start = start
        first = max(start, self._stop)
        if first < stop:
            pixels, valid = self._pair.read(first, stop)
            self._note(first, valid)
            self._pixels = np.concatenate((self._pixels, pixels), axis=1)
            self._valid = np.concatenate((self._valid, valid))
            self._stop = stop

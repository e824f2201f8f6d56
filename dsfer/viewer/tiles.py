"""Tiles of the rasters of a folder of maps, cut along the pixels of the maps.

Level 0 shows every pixel as it is, level n one for 2^n x 2^n of them. Nothing is warped, whatever
the CRS; only a second date that lies on another grid than the maps is resampled, as the network
saw it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.transform import Affine
from rasterio.windows import Window
from rio_tiler.models import ImageData
from rio_tiler.reader import part

from dsfer.data.rasters import GDAL_OPTIONS, choose_bands, open_raster
from dsfer.errors import DataError
from dsfer.mapping.scoring import ERROR_PALETTE
from dsfer.paths import gdal_store_options, location
from dsfer.viewer.folder import ERRORS, PROBABILITY, TILE, ChangeFolder, Date

_ERROR_COLOURS = {value: (*colour, 255 * (value > 0)) for value, colour in ERROR_PALETTE.items()}
"""RGBA; what is unchanged, and rightly so, lets the imagery through."""


def is_tile(folder: ChangeFolder, level: int, x: int, y: int) -> bool:
    """Whether there is such a tile."""
    side = TILE << min(level, folder.levels)
    return level <= folder.levels and x * side < folder.grid.cols and y * side < folder.grid.rows


def date_tile(folder: ChangeFolder, name: str, level: int, x: int, y: int) -> bytes:
    """A tile of a date as PNG, with the stretch that the network saw.

    Args:
        folder: the maps.
        name: `before` or `after`.
        level: how often it is halved.
        x: column of the tile.
        y: row of the tile.

    Raises:
        DataError: the raster is gone or damaged.
    """
    date = folder.dates[name]
    with _open(date.path) as raster:
        bands = choose_bands(raster, date.bands)
        # A date on the grid of the maps is cut by pixels, as it was mapped, even where the grids
        # lie some part of a pixel apart.
        transform = folder.grid.transform if date.resampled else raster.transform
        image = part(
            raster,
            _bounds(transform, level, x, y),
            dst_crs=folder.grid.crs if date.resampled else None,
            width=TILE,
            height=TILE,
            indexes=bands,
            resampling_method="bilinear" if level or date.resampled else "nearest",
            reproject_method="bilinear",
        )
    return _stretched(image, date).render(img_format="PNG", ZLEVEL=1)


def probability_tile(folder: ChangeFolder, level: int, x: int, y: int) -> bytes:
    """A tile of probabilities: float32, little endian, row by row; NaN where there is no data."""
    image = _map_tile(folder, PROBABILITY, level, x, y, Resampling.average)
    values: np.ndarray = np.ma.filled(image.array.astype("<f4"), np.nan)
    return values.tobytes()


def error_tile(folder: ChangeFolder, level: int, x: int, y: int) -> bytes:
    """A tile of the error raster as PNG, in the colours of `dsfer.figures`."""
    image = _map_tile(folder, ERRORS, level, x, y, Resampling.mode)
    return image.render(colormap=_ERROR_COLOURS, ZLEVEL=1)


def _map_tile(
    folder: ChangeFolder, name: str, level: int, x: int, y: int, resampling: Resampling
) -> ImageData:
    """A tile of a map; a level without an overview is made of the one before it."""
    side = TILE << level
    with _open(str(folder.path / name)) as raster:
        # Beyond the raster GDAL would forget how to resample.
        below, beside = min(side, raster.height - y * side), min(side, raster.width - x * side)
        rows, cols = -(-below // 2**level), -(-beside // 2**level)
        tile = np.ma.MaskedArray(np.zeros((1, TILE, TILE), raster.dtypes[0]), mask=True)
        tile[:, :rows, :cols] = raster.read(
            [1],
            window=Window(x * side, y * side, beside, below),
            out_shape=(1, rows, cols),
            resampling=resampling,
            masked=True,
        )
    return ImageData(tile)


@contextmanager
def _open(path: str) -> Iterator[DatasetReader]:
    """Open a raster for one tile: GDAL's handles are not to be shared between threads."""
    with (
        rasterio.Env(**GDAL_OPTIONS, **gdal_store_options()),
        open_raster(location(path)) as raster,
    ):
        try:
            yield raster
        except RasterioError as error:
            raise DataError(
                f"cannot be read ({error.__cause__ or error})", where=path, mend="replace the file"
            ) from error


def _bounds(transform: Affine, level: int, x: int, y: int) -> tuple[float, float, float, float]:
    side = TILE << level
    left, top = transform @ (x * side, y * side)
    right, bottom = transform @ ((x + 1) * side, (y + 1) * side)
    return left, bottom, right, top


def _stretched(image: ImageData, date: Date) -> ImageData:
    if date.scaling is None:
        return image
    samples = image.array.data.transpose(1, 2, 0)
    bytes_ = date.scaling.apply(samples).transpose(2, 0, 1)
    missing = image.array.mask | ~np.isfinite(image.array.data)
    return ImageData(np.ma.MaskedArray(bytes_, missing))

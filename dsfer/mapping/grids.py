"""The pixel grid of a georeferenced raster, and whether two rasters share one."""

import math
from dataclasses import dataclass
from pathlib import Path

from pyproj import Geod
from rasterio._err import CPLE_BaseError  # what `rasterio.warp` lets through as it is
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.io import DatasetReader
from rasterio.transform import Affine, array_bounds
from rasterio.warp import transform, transform_bounds

from dsfer.data.rasters import grid_offset
from dsfer.errors import DataError, GridMismatchError

TOLERANCE = 1.0
"""Pixels by which two grids may lie apart and still count as one: what is less than a pixel."""


@dataclass(frozen=True)
class Grid:
    """Where the pixels of a raster lie.

    Attributes:
        crs: coordinate reference system.
        transform: affine transform from (column, row) to coordinates, north up.
        rows: height in pixels.
        cols: width in pixels.
    """

    crs: CRS
    transform: Affine
    rows: int
    cols: int

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top in coordinates of `crs`."""
        left, bottom, right, top = array_bounds(self.rows, self.cols, self.transform)
        return left, bottom, right, top

    @property
    def pixel_metres(self) -> tuple[float, float]:
        """Width and height on the ground of a pixel in the middle of the grid."""
        col, row = self.cols / 2, self.rows / 2
        ends = ((col - 0.5, row), (col + 0.5, row), (col, row - 0.5), (col, row + 0.5))
        x, y = zip(*(self.transform @ end for end in ends), strict=True)
        lon, lat = transform(self.crs, CRS.from_epsg(4326), x, y)
        _, _, (width, height) = Geod(ellps="WGS84").inv(lon[::2], lat[::2], lon[1::2], lat[1::2])
        return width, height

    @property
    def crs_name(self) -> str:
        """Code of the coordinate reference system, or what it is made of where it has none."""
        name: str = self.crs.to_string()  # a code also where only most of it fits, or WKT
        if len(name) < 40 and CRS.from_string(name) == self.crs:
            return name
        return self.crs.to_proj4() or name

    def __str__(self) -> str:
        """What a person compares two grids by."""
        wide, _, left, _, high, top = tuple(self.transform)[:6]
        size = f"{self.cols} x {self.rows} pixels of {wide:.10g} x {-high:.10g}"
        return f"{self.crs_name}, {size}, upper left ({left:.10g}, {top:.10g})"


def grid_of(raster: DatasetReader) -> Grid:
    """The grid of an open raster on which maps can be drawn.

    Raises:
        DataError: it has no coordinate reference system or transform, or one without a place on the
            earth, is rotated, or does not lie between 180 degrees west and east.
    """
    if raster.crs is None and raster.transform == Affine.identity():
        copy = f"{Path(raster.name).stem}.tif"
        raise _refused(
            raster,
            "has neither coordinate reference system nor geotransform, as plain images have none",
            "map it in Python by dsfer.predict_array; or give both dates a place, here with pixels "
            f"of 0.5 m: `rio convert {_name(raster)} {copy}`, then `rio edit-info --crs EPSG:32631 "
            f"--transform '[0.5, 0, 500000, 0, -0.5, 0]' {copy}`",
        )
    if raster.crs is None:
        raise _refused(
            raster,
            "has no coordinate reference system",
            f"assign it, for instance with `rio edit-info --crs EPSG:32615 {_name(raster)}`",
        )
    geotransform = raster.transform
    if geotransform == Affine.identity():
        raise _refused(
            raster,
            "has no geotransform",
            "georeference it, for instance with gdal_translate -a_ullr",
        )
    if geotransform.b or geotransform.d or geotransform.a <= 0 or geotransform.e >= 0:
        raise _refused(
            raster,
            f"its grid is rotated or flipped, geotransform {tuple(geotransform)[:6]}",
            f"warp it north up, for instance with `gdalwarp {_name(raster)} north_up.tif`",
        )
    grid = Grid(raster.crs, geotransform, raster.height, raster.width)
    if not _on_earth(grid):
        raise _refused(
            raster,
            f"its extent in its coordinate reference system ({grid.crs.to_string()}) has no place "
            "on a map of the earth",
            f"assign the right one, for instance with `rio edit-info --crs EPSG:32615 "
            f"{_name(raster)}`",
        )
    if grid.crs.is_geographic:
        _check_longitudes(raster, grid)
    return grid


def _check_longitudes(raster: DatasetReader, grid: Grid) -> None:
    """Refuse a grid in degrees that is not between -180 and 180.

    A projected grid may lie across the antimeridian: there its coordinates do not jump.
    """
    left, bottom, right, top = grid.bounds
    rounding = grid.transform.a / 2  # of rasters once around the earth
    if left >= 180 or right <= -180:
        turn = -360 if left >= 180 else 360
        raise _refused(
            raster,
            f"its longitudes, {left:.6g} to {right:.6g}, do not count from -180 to 180",
            "shift both rasters by 360 degrees, this one with `gdal_translate -a_ullr "
            f"{left + turn!r} {top!r} {right + turn!r} {bottom!r} {_name(raster)} shifted.tif`",
        )
    if left < -180 - rounding or right > 180 + rounding:
        raise _refused(
            raster,
            f"crosses the antimeridian (from {left:.6g} to {right:.6g} degrees east)",
            "cut both rasters at 180 degrees and map the parts one by one",
        )


def _on_earth(grid: Grid) -> bool:
    """Whether a grid lies somewhere on the earth, in coordinates of a map."""
    if not (grid.crs.is_geographic or grid.crs.is_projected):  # local, or of three dimensions
        return False
    try:
        west, _, east, _ = transform_bounds(grid.crs, CRS.from_epsg(4326), *grid.bounds)
        width, height = grid.pixel_metres
    except (CRSError, CPLE_BaseError):  # of the moon, say
        return False
    # Degrees are not looked at by PROJ: here they may be metres.
    return max(-west, east) < 540 and 0 < width < math.inf and 0 < height < math.inf


def _refused(raster: DatasetReader, problem: str, mend: str) -> DataError:
    return DataError(problem, where=raster.name, mend=mend)


def _name(raster: DatasetReader) -> str:
    return Path(raster.name).name


def check_same_grid(
    t1: DatasetReader,
    t2: DatasetReader,
    *,
    tolerance: float,
    mend: str = "add --align to resample the second raster onto the first",
) -> float:
    """Check that the second raster lies on the grid of the first.

    Args:
        t1: first date.
        t2: second date, or a label.
        tolerance: pixels by which the grids may lie apart.
        mend: what to do where they do not.

    Returns:
        Pixels by which they do.

    Raises:
        GridMismatchError: size, CRS or place differ; the message shows both grids.
        DataError: one of the two is no grid to draw maps on.
    """
    first, second = grid_of(t1), grid_of(t2)
    offset = grid_offset(t1, t2) if first.crs == second.crs else float("inf")
    if first.crs != second.crs:
        problem = "the coordinate reference systems differ"
    elif (first.rows, first.cols) != (second.rows, second.cols):
        problem = "the sizes differ"
    elif offset >= tolerance:
        problem = f"the grids lie {offset:.3g} pixels apart, {tolerance:g} are tolerated"
    else:
        return offset
    raise GridMismatchError(
        f"{problem}: it has {second}, but {t1.name} has {first}",
        where=t2.name,
        mend=mend,
    )


def check_overlap(t1: DatasetReader, t2: DatasetReader) -> None:
    """Check that two rasters, on whatever grids, show some common ground.

    Raises:
        GridMismatchError: they do not.
        DataError: one of the two is no grid to draw maps on.
    """
    first, second = grid_of(t1), grid_of(t2)
    left, bottom, right, top = transform_bounds(second.crs, first.crs, *second.bounds)
    east, west = left >= first.bounds[2], right <= first.bounds[0]
    # In degrees, ground across the antimeridian has its left above its right.
    beside = east and west if left > right else east or west
    if beside or bottom >= first.bounds[3] or top <= first.bounds[1]:
        raise GridMismatchError(
            f"shows no ground that {t1.name} shows: it has {second}, the other {first}",
            where=t2.name,
            mend="give two rasters of one place",
        )

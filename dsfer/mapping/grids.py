"""The pixel grid of a georeferenced raster, and whether two rasters share one."""

from dataclasses import dataclass
from pathlib import Path

from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.io import DatasetReader
from rasterio.transform import Affine, array_bounds
from rasterio.warp import transform_bounds

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
    def geographic_bounds(self) -> tuple[float, float, float, float]:
        """West, south, east, north in degrees; west is above east across the antimeridian."""
        west, south, east, north = transform_bounds(self.crs, CRS.from_epsg(4326), *self.bounds)
        return west, south, east, north

    def __str__(self) -> str:
        """What a person compares two grids by."""
        name = self.crs.to_string()
        if len(name) > 40:
            name = f"{self.crs.to_dict().get('proj', 'a')} projection without EPSG code"
        wide, _, left, _, high, top = tuple(self.transform)[:6]
        size = f"{self.cols} x {self.rows} pixels of {wide:.10g} x {-high:.10g}"
        return f"{name}, {size}, upper left ({left:.10g}, {top:.10g})"


def grid_of(raster: DatasetReader) -> Grid:
    """The grid of an open raster on which maps can be drawn.

    Raises:
        DataError: it has no coordinate reference system or transform, is rotated, or crosses the
            antimeridian.
    """

    def refused(problem: str, mend: str) -> DataError:
        return DataError(problem, where=raster.name, mend=mend)

    if raster.crs is None and raster.transform == Affine.identity():
        copy = f"{Path(raster.name).stem}.tif"
        raise refused(
            "has neither coordinate reference system nor geotransform, as plain images have none",
            "map it in Python by dsfer.predict_array; or give both dates a place, here with pixels "
            f"of 0.5 m: `rio convert {_name(raster)} {copy}`, then `rio edit-info --crs EPSG:32631 "
            f"--transform '[0.5, 0, 500000, 0, -0.5, 0]' {copy}`",
        )
    if raster.crs is None:
        raise refused(
            "has no coordinate reference system",
            f"assign it, for instance with `rio edit-info --crs EPSG:32615 {_name(raster)}`",
        )
    transform = raster.transform
    if transform == Affine.identity():
        raise refused(
            "has no geotransform", "georeference it, for instance with gdal_translate -a_ullr"
        )
    if transform.b or transform.d or transform.a <= 0 or transform.e >= 0:
        raise refused(
            f"its grid is rotated or flipped, geotransform {tuple(transform)[:6]}",
            f"warp it north up, for instance with `gdalwarp {_name(raster)} north_up.tif`",
        )
    grid = Grid(raster.crs, transform, raster.height, raster.width)
    try:
        west, _, east, _ = grid.geographic_bounds
    except CRSError as error:
        raise refused(
            f"its extent has no place on the globe ({error})", "assign the right CRS"
        ) from error
    if not -180 <= west < east <= 180:
        raise refused(
            f"crosses the antimeridian (from {west:.6g} to {east:.6g} degrees east)",
            "cut both rasters at 180 degrees and map the parts one by one",
        )
    return grid


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
    if (
        left >= first.bounds[2]
        or right <= first.bounds[0]
        or (bottom >= first.bounds[3] or top <= first.bounds[1])
    ):
        raise GridMismatchError(
            f"shows no ground that {t1.name} shows: it has {second}, the other {first}",
            where=t2.name,
            mend="give two rasters of one place",
        )

"""Change polygons of a class raster, and the raster that polygons stand for."""

from collections.abc import Iterable, Iterator
from itertools import compress, islice
from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from pyproj import Geod, Transformer
from rasterio.features import rasterize, shapes
from rasterio.transform import Affine
from shapely import MultiPolygon, Polygon
from shapely.geometry import shape

from dsfer.data.new_raster import gdal_writes
from dsfer.data.tars import Pixels
from dsfer.files import atomic_path
from dsfer.mapping.grids import Grid

CHANGED = 1
LAYER = "changes"

STEP = 4
"""Pixels of a straight edge between two points that its area on the ellipsoid is computed from.

Points are joined by geodesics, which the edges of pixels are not: along a parallel of 1 degree, at
45 degrees north, 6 km² lie between the two, and 1/n² of that where n points divide it.
"""

AT_A_TIME = 10_000
"""Outlines that are measured at a time: those that are too small are not held with the others."""

_ELLIPSOID = Geod(ellps="WGS84")


def trace_polygons(
    classes: Path, grid: Grid, *, min_area: float, fill_holes: float
) -> gpd.GeoDataFrame:
    """Outline the changed pixels of a class raster, read row by row.

    Args:
        classes: raster of 0 unchanged, 1 changed, 255 nodata; pixels that touch along an edge
            belong together.
        grid: its grid.
        min_area: square metres below which a polygon is left out.
        fill_holes: square metres below which a hole is closed.

    Returns:
        Columns `id`, `area_m2` and `geometry`, in the CRS of the grid, from north to south.
    """
    traced = _outlines(classes)
    outlines: list[Polygon] = []
    areas: list[float] = []
    while some := list(islice(traced, AT_A_TIME)):
        some = _filled(some, grid, fill_holes) if fill_holes else some
        sizes = _areas(some, grid)
        large = sizes >= min_area
        outlines += compress(some, large)
        areas += sizes[large].tolist()
    return gpd.GeoDataFrame(
        {"id": np.arange(1, len(outlines) + 1), "area_m2": np.array(areas, float)},
        geometry=outlines,
        crs=grid.crs.to_wkt(),
    )


def _filled(outlines: list[Polygon], grid: Grid, fill_holes: float) -> list[Polygon]:
    """Polygons without the holes below `fill_holes` square metres."""
    holes = [Polygon(ring) for outline in outlines for ring in outline.interiors]
    stays = iter(_areas(holes, grid) >= fill_holes)
    return [
        Polygon(outline.exterior, [ring for ring in outline.interiors if next(stays)])
        for outline in outlines
    ]


def _areas(polygons: list[Polygon], grid: Grid) -> npt.NDArray[np.float64]:
    """Square metres of each on the ellipsoid, whatever the CRS."""
    # All points are transformed in one call, which for small polygons is most of the work.
    degrees = Transformer.from_crs(grid.crs.to_wkt(), "EPSG:4326", always_xy=True)
    rings, owners = shapely.get_rings(np.array(polygons, object), return_index=True)
    rings = shapely.segmentize(rings, STEP * grid.transform.a)
    points, of_ring = shapely.get_coordinates(rings, return_index=True)
    starts = np.searchsorted(of_ring, np.arange(len(rings)))
    lon, lat = (np.split(values, starts)[1:] for values in degrees.transform(*points.T))
    areas = [
        abs(_ELLIPSOID.polygon_area_perimeter(*ring)[0]) for ring in zip(lon, lat, strict=True)
    ]
    outer = np.diff(owners, prepend=-1) > 0  # the first ring of each; the others are its holes
    total = np.zeros(len(polygons))
    np.add.at(total, owners, np.where(outer, areas, np.negative(areas)))
    return total


def _outlines(classes: Path) -> Iterator[Polygon]:
    with rasterio.open(classes) as raster:
        band = rasterio.band(raster, 1)
        for outline, value in shapes(band, mask=band, connectivity=4):
            if value == CHANGED:
                yield shape(outline)


def mean_probability(
    polygons: gpd.GeoDataFrame, grid: Grid, strips: Iterable[tuple[int, npt.NDArray[np.float32]]]
) -> npt.NDArray[np.float64]:
    """Mean probability inside each polygon.

    Args:
        polygons: from `trace_polygons`, numbered from 1 by `id`.
        grid: grid that they were traced on.
        strips: first row of each run of full-width rows, and its probability (h, w), NaN where
            there is no data.

    Returns:
        One for each polygon, NaN where it has no data.
    """
    totals, counts = np.zeros((2, len(polygons) + 1))
    for start, probability in strips:
        owners = _drawn(polygons, grid, start, start + len(probability))
        known = (owners > 0) & np.isfinite(probability)
        owners = owners[known]
        totals += np.bincount(owners, weights=probability[known], minlength=len(totals))
        counts += np.bincount(owners, minlength=len(counts))
    with np.errstate(invalid="ignore"):  # 0 / 0 where there is no data
        return (totals / counts)[1:]


def draw_polygons(polygons: gpd.GeoDataFrame, grid: Grid, start: int, stop: int) -> Pixels:
    """Rows of the class raster that polygons stand for: (stop - start, cols), 0 or 1."""
    return (_drawn(polygons, grid, start, stop) > 0).astype(np.uint8)


def _drawn(polygons: gpd.GeoDataFrame, grid: Grid, start: int, stop: int) -> npt.NDArray[np.int32]:
    """The `id` of the polygon over each pixel of some rows, (stop - start, cols), else 0."""
    left, top = grid.transform @ (0, start)
    right, bottom = grid.transform @ (grid.cols, stop)
    near = polygons.iloc[polygons.sindex.query(shapely.box(left, bottom, right, top))]
    out_shape = stop - start, grid.cols
    if near.empty:
        return np.zeros(out_shape, np.int32)
    drawn: npt.NDArray[np.int32] = rasterize(
        zip(near.geometry, near["id"], strict=True),
        out_shape=out_shape,
        transform=grid.transform @ Affine.translation(0, start),
        dtype="int32",
    )
    return drawn


def simplified(polygons: gpd.GeoDataFrame, tolerance: float) -> gpd.GeoDataFrame:
    """Polygons with fewer corners, none moved by more than `tolerance` in units of the CRS."""
    outlines = polygons.geometry.simplify(tolerance, preserve_topology=True)
    return polygons.set_geometry(outlines)


def write_polygons(polygons: gpd.GeoDataFrame, path: Path) -> None:
    """Write a GeoPackage, or GeoJSON where the name ends so, atomically.

    GeoJSON is in degrees, its polygons cut at 180 degrees (RFC 7946, section 3.1.9).

    Raises:
        OSError: the disk is full or fails.
    """
    if path.suffix == ".geojson":  # the standard's GeoJSON: GDAL transforms, and cuts
        form = {"driver": "GeoJSON", "RFC7946": "YES"}
    else:
        form = {"driver": "GPKG"}
    mixed = any(isinstance(outline, MultiPolygon) for outline in polygons.geometry)
    with atomic_path(path) as temporary, gdal_writes(path):
        temporary.unlink()  # GDAL writes a new file, where it would add to one that is there
        polygons.to_file(
            temporary,
            layer=LAYER,
            engine="pyogrio",
            geometry_type="Unknown" if mixed else "Polygon",
            **form,
        )

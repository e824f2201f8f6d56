"""Change polygons of a class raster, and the raster that polygons stand for."""

from collections.abc import Iterator
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
from exactextract import exact_extract
from exactextract.raster import RasterioRasterSource
from pyproj import Geod, Transformer
from rasterio.features import rasterize, shapes
from rasterio.transform import Affine
from shapely import MultiPolygon, Polygon, transform
from shapely.geometry import shape

from dsfer.data.new_raster import gdal_writes
from dsfer.data.tars import Pixels
from dsfer.files import atomic_path
from dsfer.mapping.grids import Grid

CHANGED = 1
LAYER = "changes"

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
    degrees = Transformer.from_crs(grid.crs.to_wkt(), "EPSG:4326", always_xy=True)

    def area(polygon: Polygon) -> float:
        """Square metres on the ellipsoid, whatever the CRS."""
        outline = transform(polygon, degrees.transform, interleaved=False)
        return abs(_ELLIPSOID.geometry_area_perimeter(outline)[0])

    def filled(polygon: Polygon) -> Polygon:
        holes = [ring for ring in polygon.interiors if area(Polygon(ring)) >= fill_holes]
        return Polygon(polygon.exterior, holes)

    kept = [filled(polygon) if fill_holes else polygon for polygon in _outlines(classes)]
    areas = [area(polygon) for polygon in kept]
    table = gpd.GeoDataFrame({"area_m2": areas}, geometry=kept, crs=grid.crs.to_wkt())
    table = table[table["area_m2"] >= min_area].reset_index(drop=True)
    table.insert(0, "id", np.arange(1, len(table) + 1))
    return table


def _outlines(classes: Path) -> Iterator[Polygon]:
    with rasterio.open(classes) as raster:
        band = rasterio.band(raster, 1)
        for outline, value in shapes(band, mask=band, connectivity=4):
            if value == CHANGED:
                yield shape(outline)


def mean_probability(polygons: gpd.GeoDataFrame, probability: Path) -> pd.Series:
    """Mean of a probability raster inside each polygon, NaN where it has no data."""
    if polygons.empty:
        return pd.Series(dtype=float)
    with rasterio.open(probability) as raster:
        source = RasterioRasterSource(raster)
        means = exact_extract(source, polygons, ["mean"], output="pandas")
    return pd.Series(means["mean"].to_numpy(), polygons.index)


def draw_polygons(polygons: gpd.GeoDataFrame, grid: Grid, start: int, stop: int) -> Pixels:
    """Rows of the class raster that polygons stand for: (stop - start, cols), 0 or 1."""
    left, top = grid.transform @ (0, start)
    right, bottom = grid.transform @ (grid.cols, stop)
    near = polygons.geometry.iloc[polygons.sindex.query(_box(left, bottom, right, top))]
    out_shape = stop - start, grid.cols
    if near.empty:
        return np.zeros(out_shape, np.uint8)
    here = grid.transform @ Affine.translation(0, start)
    drawn: Pixels = rasterize(
        near, out_shape=out_shape, transform=here, default_value=CHANGED, dtype="uint8"
    )
    return drawn


def _box(left: float, bottom: float, right: float, top: float) -> Polygon:
    return Polygon([(left, bottom), (right, bottom), (right, top), (left, top)])


def simplified(polygons: gpd.GeoDataFrame, tolerance: float) -> gpd.GeoDataFrame:
    """Polygons with fewer corners, none moved by more than `tolerance` in units of the CRS."""
    outlines = polygons.geometry.simplify(tolerance, preserve_topology=True)
    return polygons.set_geometry(outlines)


def write_polygons(polygons: gpd.GeoDataFrame, path: Path) -> None:
    """Write a GeoPackage, or GeoJSON in degrees where the name ends so, atomically.

    Raises:
        OSError: the disk is full or fails.
    """
    driver = "GeoJSON" if path.suffix == ".geojson" else "GPKG"
    table = polygons.to_crs("EPSG:4326") if driver == "GeoJSON" else polygons
    mixed = any(isinstance(outline, MultiPolygon) for outline in table.geometry)
    with atomic_path(path) as temporary, gdal_writes(path):
        temporary.unlink()  # GDAL writes a new file, where it would add to one that is there
        table.to_file(
            temporary,
            driver=driver,
            layer=LAYER,
            engine="pyogrio",
            geometry_type="Unknown" if mixed else "Polygon",
        )

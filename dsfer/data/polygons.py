"""Label polygons: draw the changed areas of a vector file onto the grid of a scene's first date."""

import warnings
from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import rasterio
import shapely
from pyproj.exceptions import ProjError
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import rasterize
from rasterio.windows import Window
from shapely.affinity import affine_transform

from dsfer.data.new_raster import new_raster
from dsfer.data.scenes import Scene
from dsfer.errors import DataError, GridMismatchError, first_line
from dsfer.paths import AnyPath, gdal_store_options

BLOCK = 512
"""Side of the GeoTIFF's blocks in pixels; one block is in memory at a time."""


def rasterise_labels(scenes: list[Scene], folder: Path, changed: int) -> list[Scene]:
    """Replace each scene's vector label by a raster; raster labels are left as they are.

    Args:
        scenes: scenes whose label is a raster or any vector file.
        folder: where to write `<id>.tif`.
        changed: value of changed pixels, 1 to 255, as the data set's label rule wants it.

    Raises:
        DataError: a label is neither raster nor vector, or its polygons cannot be drawn.
    """
    done = []
    pyogrio.set_gdal_config_options(gdal_store_options())  # its GDAL is not that of rasterio
    with rasterio.Env(**gdal_store_options()):
        for scene in scenes:
            if is_raster(scene.label):
                done.append(scene)
                continue
            target = folder / f"{scene.id}.tif"
            rasterise(scene.label, scene.t1, target, changed)
            done.append(replace(scene, label=target))
    return done


def is_raster(path: AnyPath) -> bool:
    """Whether GDAL opens the file as a raster with at least one band."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a label need not be
        try:
            with rasterio.open(str(path)) as image:
                return bool(image.count)
        except rasterio.RasterioIOError:
            return False


def rasterise(vector: AnyPath, grid: AnyPath, target: Path, changed: int) -> None:
    """Draw polygons onto the grid of a raster; a pixel is changed if its centre lies in one.

    The result is a tiled, compressed GeoTIFF of one uint8 band, written block by block, so memory
    does not grow with the raster.

    Args:
        vector: file of polygons in any format and coordinate reference system; no feature at all
            means that nothing changed.
        grid: raster whose size, CRS and transform are taken.
        target: file to write, atomically.
        changed: value inside polygons, 1 to 255; outside it is 0.

    Raises:
        DataError: a file is unreadable, or the vector file has several layers or other geometry
            than polygons.
        GridMismatchError: vector file or raster lacks a CRS, or they do not overlap.
    """
    try:
        image = rasterio.open(str(grid))
    except rasterio.RasterioIOError as error:
        raise DataError(
            f"not a raster that GDAL reads ({error})", where=grid, mend="replace the file"
        ) from error
    with image:
        profile = {
            "driver": "GTiff",
            "dtype": "uint8",
            "count": 1,
            "width": image.width,
            "height": image.height,
            "crs": image.crs,
            "transform": image.transform,
            "tiled": True,
            "blockxsize": BLOCK,
            "blockysize": BLOCK,
            "compress": "deflate",
            "bigtiff": "if_safer",
        }
        outline = _outline(image, Window(0, 0, image.width, image.height))
        polygons = _polygons(vector, grid, image.crs)
    if len(polygons) and not polygons.intersects(outline).any():
        raise GridMismatchError(
            f"none of its {len(polygons)} polygons lies on {grid}",
            where=vector,
            mend="check the coordinate reference system of both files",
        )
    with new_raster(target, **profile) as out, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # the grid need not be
        for _, window in out.block_windows(1):
            inside = polygons.iloc[polygons.sindex.query(_outline(out, window), "intersects")]
            block = np.zeros((window.height, window.width), np.uint8)
            if len(inside):
                rasterize(
                    inside, out=block, transform=out.window_transform(window), default_value=changed
                )
            out.write(block, 1, window=window)


def _outline(image: rasterio.io.DatasetReader, window: Window) -> shapely.Polygon:
    """The window's corners in the coordinates of the raster, rotated grids included."""
    left, top = window.col_off, window.row_off
    right, bottom = left + window.width, top + window.height
    pixels = shapely.box(left, top, right, bottom)
    return affine_transform(pixels, image.transform.to_shapely())


def _polygons(vector: AnyPath, grid: AnyPath, crs: rasterio.crs.CRS | None) -> geopandas.GeoSeries:
    """Read the polygons of a vector file in the given coordinate reference system."""
    try:
        layers = geopandas.list_layers(str(vector))["name"].tolist()
        if len(layers) != 1:
            raise DataError(
                f"holds {len(layers)} layers ({', '.join(layers)})",
                where=vector,
                mend="keep only the layer of changed areas",
            )
        shapes = geopandas.read_file(str(vector), columns=[]).geometry
    except DataError:
        raise
    except Exception as error:  # GDAL, pyogrio and shapely each raise their own
        raise DataError(
            f"neither a raster nor a vector file that GDAL reads ({first_line(error)})",
            where=vector,
            mend="give a label raster, or polygons as GeoPackage, GeoJSON or Shapefile",
        ) from error
    shapes = shapes[~(shapes.isna() | shapes.is_empty)]
    other = set(shapes.geom_type) - {"Polygon", "MultiPolygon"}
    if other:
        raise DataError(
            f"holds {', '.join(sorted(other))} geometry where changed areas are expected",
            where=vector,
            mend="keep polygons only",
        )
    if (shapes.crs is None) != (crs is None):
        lacking = vector if shapes.crs is None else grid
        raise GridMismatchError(
            f"has no coordinate reference system, but {grid if lacking == vector else vector} has",
            where=lacking,
            mend="assign the reference system, for example with ogr2ogr -a_srs or rio edit-info",
        )
    if crs is not None:
        try:
            shapes = shapes.to_crs(crs.to_wkt())
        except ProjError as error:
            raise GridMismatchError(
                f"cannot be brought to the reference system of {grid} ({first_line(error)})",
                where=vector,
                mend="check the coordinate reference system of both files",
            ) from error
    if not np.isfinite(shapes.total_bounds).all() and len(shapes):
        raise GridMismatchError(
            f"has coordinates that do not exist in the reference system of {grid}",
            where=vector,
            mend="check the coordinate reference system of both files",
        )
    return shapes.make_valid()

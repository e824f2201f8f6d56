"""Change polygons for the page: those in view, in pixels of the map.

A map of a country has more polygons than a browser draws. The GeoPackage is asked for the largest
in view, by its own spatial index.
"""

from pathlib import Path
from typing import Any, Literal

import geopandas as gpd
import numpy as np
import pyogrio
import shapely

from dsfer.errors import DataError, first_line
from dsfer.mapping.grids import Grid
from dsfer.mapping.polygons import LAYER

INDEX = f"rtree_{LAYER}_geom"
"""Spatial index of a GeoPackage."""

LIMIT = 2000
"""Polygons that are sent at a time, at most."""


def outlines_in_view(
    path: Path, grid: Grid, level: int, view: tuple[int, int, int, int]
) -> dict[str, Any]:
    """The largest polygons that touch a view.

    Args:
        path: the GeoPackage, in the CRS of the grid.
        grid: pixel grid of the map.
        level: how often the view is halved; outlines are simplified by half a pixel of it.
        view: left, top, right, bottom in pixels of the map.

    Returns:
        A GeoJSON FeatureCollection of at most `LIMIT` polygons with all their attributes, its
        coordinates columns and rows; `total` says how many touch the view.

    Raises:
        DataError: the file cannot be read.
    """
    left, top, right, bottom = view
    west, north = grid.transform @ (left, top)
    east, south = grid.transform @ (right, bottom)
    seen = f"minx <= {east!r} AND maxx >= {west!r} AND miny <= {north!r} AND maxy >= {south!r}"
    # Outlines are read of those alone that are sent; the others are counted by the index.
    found = _query(
        path,
        f'SELECT *, (SELECT count(*) FROM "{INDEX}" WHERE {seen}) AS total '  # noqa: S608
        f'FROM "{LAYER}" WHERE fid IN (SELECT fid FROM "{LAYER}" '
        f'JOIN "{INDEX}" ON fid = "{INDEX}".id WHERE {seen} '
        f"ORDER BY area_m2 DESC LIMIT {LIMIT}) ORDER BY area_m2 DESC",
    )
    total = int(found["total"].iloc[0]) if len(found) else 0
    tolerance = 2**level / 2 if level else 0.0
    return _collection(found.drop(columns="total"), grid, tolerance) | {"total": total}


def neighbour(path: Path, grid: Grid, number: int, way: Literal["next", "previous"]) -> Any:
    """The polygon after or before one, by `id`; from the last one on to the first.

    Args:
        path: the GeoPackage.
        grid: pixel grid of the map.
        number: the `id` to go on from; 0 goes to the first, or the last.
        way: forwards or backwards.

    Returns:
        A GeoJSON Feature in pixels of the map, or None where there are no polygons.

    Raises:
        DataError: the file cannot be read.
    """
    sign, order = (">", "ASC") if way == "next" else ("<", "DESC")
    found = _query(
        path,
        f'SELECT * FROM "{LAYER}" '  # noqa: S608
        f"ORDER BY id {sign} {int(number)} DESC, id {order} LIMIT 1",
    )
    features = _collection(found, grid, 0.0)["features"]
    return features[0] if features else None


def _query(path: Path, sql: str) -> gpd.GeoDataFrame:
    try:
        return pyogrio.read_dataframe(path, sql=sql)
    except pyogrio.errors.DataSourceError as error:
        raise DataError(
            f"cannot be read ({first_line(error)})", where=path, mend="map the pair again"
        ) from error


def _collection(table: gpd.GeoDataFrame, grid: Grid, tolerance: float) -> dict[str, Any]:
    if table.empty:
        return {"type": "FeatureCollection", "features": []}
    to_pixels = ~grid.transform

    def pixels(places: np.ndarray) -> np.ndarray:
        cols, rows = to_pixels @ (places[:, 0], places[:, 1])
        return np.stack((cols, rows), axis=1)

    shapes = shapely.transform(table.geometry.to_numpy(), pixels)
    shapes = shapely.simplify(shapes, tolerance) if tolerance else shapes
    drawn = gpd.GeoDataFrame(table.drop(columns=table.geometry.name), geometry=shapes)
    collection: dict[str, Any] = drawn.to_geo_dict(na="null", drop_id=True)
    return collection

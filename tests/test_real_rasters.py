"""Real pairs of rasters, which are in no repository: CONTRIBUTING.md says where they lie."""

import os
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from pyproj import Transformer
from rasterio.features import rasterize
from rio_cogeo import cog_validate

from dsfer.errors import DataError, GridMismatchError
from dsfer.mapping.pair import Reading
from dsfer.mapping.predict import predict_raster
from dsfer.viewer.folder import ChangeFolder
from tests.test_mapping import detector, read

FOLDER = os.environ.get("DSFER_REAL_RASTERS")

pytestmark = pytest.mark.skipif(FOLDER is None, reason="DSFER_REAL_RASTERS names no folder")

LANDSAT = "peru-landsat/1985.tif", "peru-landsat/2020.tif"
NAIP = "naip-mismatched-grids/2009.tif", "naip-mismatched-grids/2020.tif"
TORNADO = "joplin-tornado/pre.tif", "joplin-tornado/post.tif"
RGB = (1, 2, 3)


def both(names: tuple[str, str]) -> tuple[Path, Path]:
    return Path(str(FOLDER), names[0]), Path(str(FOLDER), names[1])


def pixel_areas(path: Path) -> np.ndarray:
    """Square metres on the ellipsoid of every pixel, (rows, cols), by an equal-area projection."""
    with rasterio.open(path) as raster:
        rows, cols = raster.shape
        corners = np.mgrid[: cols + 1, : rows + 1].reshape(2, -1)
        x, y = raster.transform @ corners
        equal = Transformer.from_crs(raster.crs.to_wkt(), "EPSG:6933", always_xy=True)
    x, y = (part.reshape(cols + 1, rows + 1).T for part in equal.transform(x, y))
    # Half the cross product of a pixel's diagonals.
    down = x[1:, 1:] - x[:-1, :-1], y[1:, 1:] - y[:-1, :-1]
    up = x[:-1, 1:] - x[1:, :-1], y[:-1, 1:] - y[1:, :-1]
    return np.abs(down[0] * up[1] - down[1] * up[0]) / 2


@pytest.mark.parametrize(
    ("names", "reading", "apart"),
    [
        (LANDSAT, Reading(RGB), 0),
        (NAIP, Reading(RGB, align=True), 0),
        (TORNADO, Reading(), 0.789),
        (TORNADO, Reading(align=True), 0),
    ],
    ids=["landsat", "naip aligned", "tornado", "tornado aligned"],
)
def test_maps_are_what_a_gis_takes(tmp_path, names, reading, apart):
    t1, t2 = both(names)
    out = tmp_path / "maps"
    summary = predict_raster(t1, t2, detector(256), out, reading=reading)
    assert summary["grid_offset_pixels"] == pytest.approx(apart, abs=1e-3)
    with rasterio.open(t1) as first:
        for name in ("probability.tif", "change.tif"):
            assert cog_validate(out / name, strict=True) == (True, [], [])
            with rasterio.open(out / name) as raster:
                assert (raster.crs, raster.transform) == (first.crs, first.transform)
                assert raster.shape == first.shape
        place = first.transform
    change = read(out / "change.tif") == 1
    assert summary["pixels"]["changed"] == change.sum() > 0
    area = pixel_areas(t1)[change].sum()
    print(
        f"{names}: {summary['changes']} changes, {summary['changed_area_m2']} m², by pixels {area}"
    )
    assert summary["changed_area_m2"] == pytest.approx(area, rel=1e-5)
    polygons = gpd.read_file(out / "changes.gpkg")
    assert polygons["area_m2"].sum() == pytest.approx(area, rel=1e-5)
    drawn = rasterize(polygons.geometry, out_shape=change.shape, transform=place)
    np.testing.assert_array_equal(drawn == 1, change)
    folder = ChangeFolder(out)
    assert folder.problem("before") is folder.problem("after") is None


def test_four_bands_are_asked_about(tmp_path):
    with pytest.raises(DataError, match=r"1985\.tif: has 4 bands.*--bands 3,2,1"):
        predict_raster(*both(LANDSAT), detector(256), tmp_path / "maps")


def test_grids_that_differ_are_both_shown(tmp_path):
    with pytest.raises(GridMismatchError, match="the sizes differ") as refused:
        predict_raster(*both(NAIP), detector(256), tmp_path / "maps", reading=Reading(RGB))
    for part in (
        "2020.tif", "934 x 723 pixels of 5 x 5, upper left (485899, 5209246)",
        "2009.tif", "934 x 724 pixels of 5 x 5, upper left (485900, 5209247)", "--align",
    ):  # fmt: skip
        assert part in str(refused.value)


def test_a_closer_tolerance_stops_the_tornado(tmp_path):
    with pytest.raises(GridMismatchError, match=r"0\.789 pixels apart, 0\.5 are tolerated"):
        predict_raster(
            *both(TORNADO), detector(256), tmp_path / "maps", reading=Reading(tolerance=0.5)
        )

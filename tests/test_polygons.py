from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from rasterio.features import rasterize
from rasterio.transform import Affine, from_origin
from shapely.geometry import MultiPolygon, Point, Polygon, box

from dsfer.data import polygons
from dsfer.data.polygons import is_raster, rasterise, rasterise_labels
from dsfer.data.scenes import Scene
from dsfer.errors import DataError, GridMismatchError

UTM = "EPSG:32633"
GRID = from_origin(500_000, 5_000_000, 0.5, 0.5)


def image(
    path: Path, rows: int = 70, cols: int = 90, crs: str | None = UTM, transform=GRID
) -> Path:
    with rasterio.open(
        path, "w", driver="GTiff", height=rows, width=cols, count=1, dtype="uint8", crs=crs,
        transform=transform,
    ) as out:  # fmt: skip
        out.write(np.ones((1, rows, cols), np.uint8))
    return path


def vector(path: Path, shapes, crs: str | None = UTM, layer: str | None = None) -> Path:
    frame = geopandas.GeoDataFrame({"name": ["x"] * len(shapes)}, geometry=list(shapes), crs=crs)
    frame.to_file(path, **({"layer": layer} if layer else {}))
    return path


def square(row: float, col: float, rows: float, cols: float, transform=GRID) -> Polygon:
    corners = [(col, row), (col + cols, row), (col + cols, row + rows), (col, row + rows)]
    return Polygon([transform @ corner for corner in corners])


def drawn(tmp_path: Path, shapes, **options) -> np.ndarray:
    t1 = image(tmp_path / "t1.tif", **options)
    rasterise(
        vector(tmp_path / "l.gpkg", shapes, options.get("crs", UTM)), t1, tmp_path / "o.tif", 255
    )
    with rasterio.open(tmp_path / "o.tif") as out:
        assert out.crs == options.get("crs", UTM)
        assert out.transform == options.get("transform", GRID)
        return out.read(1)


@pytest.mark.filterwarnings("error::rasterio.errors.NotGeoreferencedWarning:rasterio.features")
def test_polygons_may_be_in_pixels_of_an_image_without_a_place_on_earth(tmp_path):
    pixels = Affine.identity()
    found = drawn(tmp_path, [square(2, 3, 4, 5, pixels)], crs=None, transform=pixels)
    assert found.sum() == 255 * 20 and found[2:6, 3:8].all()


def test_polygons_cover_the_pixels_whose_centre_they_hold(tmp_path):
    expected = np.zeros((70, 90), np.uint8)
    expected[10:20, 30:50] = 255
    expected[40:43, 0:5] = 255  # reaches beyond the left edge
    shapes = [square(9.6, 29.6, 10, 20), square(40, -10, 3, 15)]
    np.testing.assert_array_equal(drawn(tmp_path, shapes), expected)


def test_blocks_give_what_one_piece_would(tmp_path, monkeypatch):
    monkeypatch.setattr(polygons, "BLOCK", 16)
    generator = np.random.default_rng(0)
    shapes = [
        Polygon([GRID @ corner for corner in generator.uniform(-20, 110, (3, 2))])
        for _ in range(12)
    ]
    whole = rasterize(shapes, out_shape=(70, 90), transform=GRID, default_value=255)
    np.testing.assert_array_equal(drawn(tmp_path, shapes), whole)


def test_a_rotated_grid(tmp_path):
    turned = GRID @ Affine.rotation(30)
    expected = np.zeros((70, 90), np.uint8)
    expected[5:15, 60:80] = 255
    found = drawn(tmp_path, [square(5, 60, 10, 20, turned)], transform=turned)
    assert (found != expected).sum() <= 4  # rounding at the corners


def test_another_coordinate_system(tmp_path):
    t1 = image(tmp_path / "t1.tif")
    degrees = geopandas.GeoSeries([square(10, 30, 10, 20)], crs=UTM).to_crs(4326)
    rasterise(vector(tmp_path / "l.geojson", degrees, "EPSG:4326"), t1, tmp_path / "o.tif", 1)
    with rasterio.open(tmp_path / "o.tif") as out:
        found = out.read(1)
        assert out.profile["tiled"]
        assert out.compression.name == "deflate"
    assert found[10:20, 30:50].mean() > 0.95
    assert set(np.unique(found)) == {0, 1}


def test_grids_without_coordinate_system(tmp_path):
    assert drawn(tmp_path, [square(0, 0, 5, 5)], crs=None).astype(bool).sum() == 25


def test_multi_polygons_holes_and_broken_rings(tmp_path):
    ring = square(0, 0, 10, 10).difference(square(2, 2, 6, 6))
    bow = Polygon([GRID @ p for p in [(20, 20), (40, 40), (40, 20), (20, 40)]])
    found = drawn(tmp_path, [MultiPolygon([ring, square(50, 50, 2, 2)]), bow, Polygon()])
    assert found[:10, :10].astype(bool).sum() == 64
    assert found[50:52, 50:52].all()
    assert found[30, 35]


def test_no_polygon_means_nothing_changed(tmp_path):
    assert not drawn(tmp_path, []).any()


def test_labels_that_are_rasters_stay(tmp_path):
    t1 = image(tmp_path / "t1.tif")
    shapes = vector(tmp_path / "areas.shp", [square(0, 0, 5, 5)])
    scenes = [Scene("a", t1, t1, t1), Scene("b", t1, t1, shapes)]
    first, second = rasterise_labels(scenes, tmp_path / "labels", 255)
    assert first is scenes[0]
    assert second.label == tmp_path / "labels" / "b.tif"
    assert is_raster(second.label)
    assert not is_raster(shapes)


@pytest.mark.parametrize(
    ("shapes", "crs", "error", "message"),
    [
        ([box(0, 0, 1, 1)], UTM, GridMismatchError, "none of its 1 polygons lies on"),
        ([square(0, 0, 5, 5)], None, GridMismatchError, "has no coordinate reference system"),
        ([Point(500_001, 4_999_999)], UTM, DataError, "Point geometry"),
    ],
)
def test_what_cannot_be_drawn(tmp_path, shapes, crs, error, message):
    t1 = image(tmp_path / "t1.tif")
    with pytest.raises(error, match=message):
        rasterise(vector(tmp_path / "l.gpkg", shapes, crs), t1, tmp_path / "o.tif", 255)
    assert not (tmp_path / "o.tif").exists()


def test_polygons_with_a_system_but_an_image_without(tmp_path):
    t1 = image(tmp_path / "t1.tif", crs=None)
    with pytest.raises(GridMismatchError, match=r"t1\.tif: has no coordinate reference system"):
        rasterise(vector(tmp_path / "l.gpkg", [square(0, 0, 5, 5)]), t1, tmp_path / "o.tif", 255)


def test_an_image_in_a_system_of_its_own(tmp_path):
    t1 = image(tmp_path / "t1.tif", crs='LOCAL_CS["site",UNIT["metre",1]]')
    with pytest.raises(GridMismatchError, match=r"cannot be brought to the reference system of"):
        rasterise(vector(tmp_path / "l.gpkg", [square(0, 0, 5, 5)]), t1, tmp_path / "o.tif", 255)


def test_several_layers(tmp_path):
    t1 = image(tmp_path / "t1.tif")
    vector(tmp_path / "l.gpkg", [square(0, 0, 5, 5)], layer="new")
    vector(tmp_path / "l.gpkg", [square(0, 0, 5, 5)], layer="old")
    with pytest.raises(DataError, match="holds 2 layers"):
        rasterise(tmp_path / "l.gpkg", t1, tmp_path / "o.tif", 255)


def test_neither_raster_nor_vector(tmp_path):
    t1 = image(tmp_path / "t1.tif")
    (tmp_path / "label.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"label\.png: neither a raster nor a vector file"):
        rasterise_labels([Scene("a", t1, t1, tmp_path / "label.png")], tmp_path / "labels", 255)


def test_unreadable_grid(tmp_path):
    (tmp_path / "t1.tif").write_bytes(b"II*\0 cut off")
    shapes = vector(tmp_path / "l.gpkg", [square(0, 0, 5, 5)])
    with pytest.raises(DataError, match=r"t1\.tif: not a raster"):
        rasterise(shapes, tmp_path / "t1.tif", tmp_path / "o.tif", 255)

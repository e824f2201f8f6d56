"""Maps of whole rasters: what comes out, on which grid, and what is refused."""

import json
import math
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import torch
from click.testing import CliRunner
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyproj import Geod
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.features import rasterize
from rasterio.rio.main import main_group as rio
from rasterio.transform import Affine, from_origin
from rio_cogeo import cog_validate
from torch import nn

import dsfer
from dsfer.cli import main
from dsfer.detector import Detector, predict_array
from dsfer.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DsferError,
    GridMismatchError,
    LabelError,
)
from dsfer.evaluation import Inference
from dsfer.mapping.grids import Grid
from dsfer.mapping.pair import RasterPair, Reading
from dsfer.mapping.pairs import ListedPair, map_pair, map_pairs
from dsfer.mapping.polygons import draw_polygons, mean_probability, trace_polygons
from dsfer.mapping.predict import MapOptions, predict_raster
from dsfer.mapping.raw import RawRaster
from dsfer.mapping.scoring import Label
from dsfer.models.output import ChangeOutput
from dsfer.weights import Metadata, save_weights
from tests.disks import mounted

UTM = CRS.from_epsg(32633)
PLACE = from_origin(500_000, 5_000_000, 2, 2)
DEGREES = from_origin(10, 50, 1e-3, 1e-3)


class Difference(nn.Module):
    """A 'network' that says how much the red bands differ: 0.5 where they do by 50."""

    def forward(self, t1: torch.Tensor, t2: torch.Tensor) -> ChangeOutput:
        change = (t1[:, 0] - t2[:, 0]).abs() - 1
        return ChangeOutput(torch.stack((torch.zeros_like(change), 4 * change), dim=1), ())


def detector(tile_size: int = 32, batch_size: int = 3) -> Detector:
    inference = Inference(torch.zeros(3), torch.full((3,), 50.0), batch_size=batch_size)
    metadata = Metadata(
        "difference", {}, (0.0,) * 3, (50.0,) * 3, {"dataset": "made up", "split_hash": "abc"},
        tile_size=tile_size, threshold=0.75, licence="ours", sha256="0" * 64,
    )  # fmt: skip
    return Detector(Difference().eval(), inference, metadata)


def scenes(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    """Both dates (2, rows, cols, 3): grey ground, and bright blocks that appear at date 2."""
    generator = np.random.default_rng(seed)
    pair = generator.integers(80, 100, (2, rows, cols, 3), dtype=np.uint8)
    for _ in range(6):
        top, left = generator.integers(0, rows), generator.integers(0, cols)
        pair[1, top : top + rows // 5, left : left + cols // 6] = 220
    return pair


def write(
    path: Path, image: np.ndarray, crs: Any = UTM, transform: Affine = PLACE, **options: Any
) -> Path:
    """Write (rows, cols, bands) as GeoTIFF."""
    rows, cols, bands = image.shape
    options = {"driver": "GTiff", "dtype": image.dtype} | options
    with rasterio.open(
        path, "w", width=cols, height=rows, count=bands,
        crs=crs, transform=transform, **options,
    ) as raster:  # fmt: skip
        raster.write(image.transpose(2, 0, 1))
    return path


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path, np.ndarray]:
    images = scenes(70, 90)
    return write(tmp_path / "t1.tif", images[0]), write(tmp_path / "t2.tif", images[1]), images


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as raster:
        return raster.read(1)


def test_the_folder_holds_maps_polygons_picture_and_summary(pair, tmp_path):
    t1, t2, images = pair
    out = tmp_path / "changes"
    summary = predict_raster(t1, t2, detector(), out, options=MapOptions(geojson=True))
    names = ["change.tif", "changes.geojson", "changes.gpkg", "preview.png", "probability.tif",
             "summary.json"]  # fmt: skip
    assert sorted(path.name for path in out.iterdir()) == names
    assert not (tmp_path / ".changes.partial").exists()
    assert json.loads((out / "summary.json").read_text()) == summary

    probability, change = read(out / "probability.tif"), read(out / "change.tif")
    expected = predict_array(images[0], images[1], detector())
    np.testing.assert_allclose(probability, expected, atol=1e-6)
    np.testing.assert_array_equal(change, expected > 0.5)
    for name in ("probability.tif", "change.tif"):
        valid, errors, warnings = cog_validate(out / name)
        assert (valid, errors, warnings) == (True, [], [])
        with rasterio.open(out / name) as raster:
            assert (raster.crs, raster.transform) == (UTM, PLACE)

    polygons = gpd.read_file(out / "changes.gpkg")
    drawn = rasterize(polygons.geometry, out_shape=change.shape, transform=PLACE)
    np.testing.assert_array_equal(drawn, change)
    # The scale of UTM is 0.9996 on its central meridian.
    plane = polygons.area.sum() / 0.9996**2
    assert summary["changed_area_m2"] == pytest.approx(plane, rel=1e-4)
    assert summary["pixels"]["changed"] == change.sum()
    for outline, mean in zip(polygons.geometry, polygons["mean_probability"], strict=True):
        inside = rasterize([outline], out_shape=change.shape, transform=PLACE) == 1
        assert mean == pytest.approx(probability[inside].mean(), abs=1e-5)
    degrees = gpd.read_file(out / "changes.geojson")
    assert degrees.crs.to_epsg() == 4326
    assert len(degrees) == len(polygons)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 14), st.integers(1, 14), st.integers(0, 999), st.floats(0.1, 0.9))
def test_polygons_drawn_again_are_the_class_raster(tmp_path_factory, rows, cols, seed, share):
    generator = np.random.default_rng(seed)
    classes = (generator.random((rows, cols)) < share).astype(np.uint8)
    classes[generator.random((rows, cols)) < 0.1] = 255
    grid = Grid(UTM, PLACE, rows, cols)
    raw = RawRaster(tmp_path_factory.mktemp("raw") / "c.vrt", grid, "uint8", nodata=255)
    raw.rows[:] = classes
    raw.flush()
    polygons = trace_polygons(raw.path, grid, min_area=0, fill_holes=0)
    middle = rows // 2
    parts = [draw_polygons(polygons, grid, *part) for part in ((0, middle), (middle, rows))
             if part[0] < part[1]]  # fmt: skip
    np.testing.assert_array_equal(np.concatenate(parts), classes == 1)
    assert polygons["area_m2"].sum() == pytest.approx(
        4 * (classes == 1).sum() / 0.9996**2, rel=1e-3
    )
    probability = generator.random((rows, cols), np.float32)
    probability[generator.random((rows, cols)) < 0.1] = np.nan
    strips = ((start, probability[start : start + 3]) for start in range(0, rows, 3))
    means = mean_probability(polygons, grid, strips)
    for outline, mean in zip(polygons.geometry, means, strict=True):
        inside = rasterize([outline], out_shape=(rows, cols), transform=PLACE) == 1
        some = probability[inside & np.isfinite(probability)]
        assert np.isnan(mean) if some.size == 0 else mean == pytest.approx(some.mean(), rel=1e-5)


def test_small_changes_and_small_holes_go_from_raster_and_polygons_alike(tmp_path):
    images = np.full((2, 40, 40, 3), 90, np.uint8)
    images[1, 5:25, 5:25] = 250  # 400 pixels of 4 m²
    images[1, 10:12, 10:12] = 90  # a hole of 16 m²
    images[1, 30:32, 30:33] = 250  # 24 m²
    files = [write(tmp_path / f"{i}.tif", images[i]) for i in range(2)]
    options = MapOptions(overlap=0, min_area=30, fill_holes=20)
    summary = predict_raster(*files, detector(), tmp_path / "out", options=options)
    expected = np.zeros((40, 40), np.uint8)
    expected[5:25, 5:25] = 1
    np.testing.assert_array_equal(read(tmp_path / "out/change.tif"), expected)
    assert summary["changes"] == 1
    assert summary["changed_area_m2"] == pytest.approx(1600, rel=2e-3)


def test_a_change_in_a_hole_that_is_closed_belongs_to_what_surrounds_it(tmp_path):
    images = np.full((2, 40, 40, 3), 90, np.uint8)
    images[1, 5:25, 5:25] = 250
    images[1, 10:20, 10:20] = 90
    images[1, 13:16, 13:16] = 250  # an island
    files = [write(tmp_path / f"{i}.tif", images[i]) for i in range(2)]
    summary = predict_raster(
        *files, detector(), tmp_path / "out", options=MapOptions(fill_holes=500)
    )
    assert summary["changes"] == 1
    assert summary["changed_area_m2"] == pytest.approx(1600, rel=2e-3)
    probability = read(tmp_path / "out/probability.tif")
    (mean,) = gpd.read_file(tmp_path / "out/changes.gpkg")["mean_probability"]
    assert mean == pytest.approx(probability[5:25, 5:25].mean(), abs=1e-6)


@pytest.mark.parametrize("crs", [4326, 3857, 32633])
def test_areas_are_square_metres_on_the_ground_in_any_crs(tmp_path, crs):
    images = np.full((2, 32, 32, 3), 90, np.uint8)
    images[1, 8:24, 8:24] = 250
    left, top = rasterio.warp.transform(UTM, CRS.from_epsg(crs), [500_000], [5_000_000])
    step = 1e-5 if crs == 4326 else 1.0
    place = from_origin(left[0], top[0], step, step)
    files = [write(tmp_path / f"{i}.tif", images[i], crs, place) for i in range(2)]
    summary = predict_raster(*files, detector(), tmp_path / "out")
    outline = gpd.read_file(tmp_path / "out/changes.gpkg")
    on_the_plane = outline.to_crs(UTM).area.sum() / 0.9996**2
    assert summary["changed_area_m2"] == pytest.approx(on_the_plane, rel=1e-3)


@pytest.mark.parametrize(
    ("crs", "place", "metres"),
    [
        (3413, from_origin(-600, 600, 30, 30), (30.93, 30.93)),  # the pole in the middle
        (3031, from_origin(-600, 600, 30, 30), (30.87, 30.87)),
        (4326, from_origin(-180, 40, 9, 2), (997_000, 221_150)),  # once around the earth
        (4326, from_origin(-180, 40, 9.0000001, 2), (997_000, 221_150)),
        (4326, from_origin(-95, 60, 4.75, 1), (404_700, 110_900)),  # half of it
    ],
)
def test_rasters_of_poles_and_of_the_whole_earth_have_pixels_of_metres(
    tmp_path, crs, place, metres
):
    files = [write(tmp_path / f"{i}.tif", image, crs, place) for i, image in
             enumerate(scenes(40, 40))]  # fmt: skip
    predict_raster(*files, detector(), tmp_path / "out")
    grid = Grid(CRS.from_epsg(crs), place, 40, 40)
    assert grid.pixel_metres == pytest.approx(metres, rel=1e-2)


@pytest.mark.parametrize(("crs", "north"), [(32660, 9), (3413, 70), (3832, -17)])
def test_outlines_across_the_antimeridian_are_cut_there_in_geojson(tmp_path, crs, north):
    ((x,), (y,)) = rasterio.warp.transform(CRS.from_epsg(4326), CRS.from_epsg(crs), [180], [north])
    place = from_origin(round(x) - 200, round(y) + 200, 10, 10)
    images = np.full((2, 40, 40, 3), 90, np.uint8)
    images[1, 8:32, 2:38] = 250
    files = [write(tmp_path / f"{i}.tif", images[i], crs, place) for i in range(2)]
    out = tmp_path / "out"
    summary = predict_raster(*files, detector(), out, options=MapOptions(geojson=True))
    (outline,) = gpd.read_file(out / "changes.geojson").geometry
    west, east = sorted(outline.geoms, key=lambda part: -part.centroid.x)
    assert west.bounds[2] == 180 and east.bounds[0] == -180
    assert max(part.bounds[2] - part.bounds[0] for part in (west, east)) < 0.1
    areas = [Geod(ellps="WGS84").geometry_area_perimeter(part)[0] for part in (west, east)]
    assert min(areas) > 0  # wound as the standard asks
    assert sum(areas) == pytest.approx(summary["changed_area_m2"], rel=1e-3)


def test_rasters_across_the_antimeridian_are_aligned_with_rasters_in_degrees(tmp_path):
    polar, degrees = (
        write(tmp_path / f"{crs}.tif", scenes(40, 40)[0], crs, place)
        for crs, place in [
            (3413, from_origin(-500_000, 500_000, 2500, 2500)),
            (4326, from_origin(178, 84.5, 0.05, 0.05)),
        ]
    )
    for first, second in ((polar, degrees), (degrees, polar)):
        with RasterPair(str(first), str(second), Reading(align=True)) as pair:
            _, valid = pair.read(0, 40)
        assert 0 < valid.mean() < 1
    elsewhere = write(tmp_path / "0.tif", scenes(40, 40)[0], 4326, from_origin(0, 84.5, 0.05, 0.05))
    for first, second in ((polar, elsewhere), (elsewhere, polar)):
        with pytest.raises(GridMismatchError, match="shows no ground"):
            RasterPair(str(first), str(second), Reading(align=True))


def test_a_reference_system_is_named_by_its_code_only_if_it_is_that_one(tmp_path):
    similar = CRS.from_string("+proj=utm +zone=33 +ellps=intl")
    assert similar.to_string() == "EPSG:23033" and similar != CRS.from_epsg(23033)
    images = scenes(40, 40)
    t1 = write(tmp_path / "t1.tif", images[0], similar)
    t2 = write(tmp_path / "t2.tif", images[1], CRS.from_epsg(23033))
    with pytest.raises(GridMismatchError, match="reference systems differ") as refused:
        predict_raster(t1, t2, detector(), tmp_path / "out")
    assert "it has EPSG:23033, " in str(refused.value)
    assert f"{t1} has +proj=utm +zone=33 +ellps=intl" in str(refused.value)


def test_outlines_are_simplified_by_the_shorter_side_of_a_pixel(tmp_path):
    images = np.full((2, 40, 40, 3), 90, np.uint8)
    images[1, 10:20, 10:30] = images[1, 20:22, 18:22] = 250  # which juts out by 4 m
    place = from_origin(500_000, 5_000_000, 8, 2)
    files = [write(tmp_path / f"{i}.tif", images[i], transform=place) for i in range(2)]
    for pixels, high in ((1.5, 24), (2.5, 20)):
        out = tmp_path / str(pixels)
        predict_raster(*files, detector(), out, options=MapOptions(simplify=pixels))
        (outline,) = gpd.read_file(out / "changes.gpkg").geometry
        _, bottom, _, top = outline.bounds
        assert top - bottom == high


def test_large_maps_have_overviews_and_tiles(tmp_path):
    rows, cols = 1030, 1300
    images = scenes(rows, cols)
    files = [write(tmp_path / f"{i}.tif", images[i]) for i in range(2)]
    predict_raster(*files, detector(256, 1), tmp_path / "out", options=MapOptions(overlap=0))
    for name in ("probability.tif", "change.tif"):
        file = tmp_path / "out" / name
        assert cog_validate(file, strict=True) == (True, [], [])
        with rasterio.open(file) as raster:
            assert (raster.overviews(1), raster.block_shapes) == ([2, 4], [(512, 512)])
    with rasterio.open(tmp_path / "out/probability.tif", overview_level=0) as overview:
        whole = read(tmp_path / "out/probability.tif")
        means = whole.reshape(rows // 2, 2, cols // 2, 2).mean(axis=(1, 3))
        np.testing.assert_allclose(overview.read(1), means, atol=1e-6)


def test_maps_go_into_a_folder_of_this_machine(pair, tmp_path, monkeypatch):
    t1, t2, _ = pair
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for place in (".", "..", "/"):
        with pytest.raises(DataError, match="is there already"):
            predict_raster(t1, t2, detector(), place)
    for address in ("s3://bucket/maps", "/vsis3/bucket/maps"):
        for place in (address, Path(address)):
            with pytest.raises(ConfigError, match=f"{address}: is an address"):
                predict_raster(t1, t2, detector(), place)
            with pytest.raises(ConfigError, match=f"{address}: is an address"):
                map_pairs([ListedPair("a", str(t1), str(t2))], detector(), Path(place))
    assert not list(Path().iterdir())
    predict_raster(t1, t2, detector(), "maps")
    assert (tmp_path / "here/maps/summary.json").is_file()


def south_of(latitude: float) -> float:
    """Square metres of WGS 84 between equator and a parallel, for each radian of longitude."""
    a, e2 = 6_378_137.0, 0.0066943799901413165
    e, sine = math.sqrt(e2), math.sin(math.radians(latitude))
    return a**2 * (1 - e2) / 2 * (sine / (1 - e2 * sine**2) + math.atanh(e * sine) / e)


@pytest.mark.parametrize("pixel", [1e-2, 1e-3])
def test_edges_of_changes_follow_the_parallels(tmp_path, pixel):
    assert 4 * math.pi * south_of(90) == pytest.approx(510_065_621.724e6, rel=1e-12)
    cols = round(1 / pixel)
    grid = Grid(CRS.from_epsg(4326), from_origin(10, 45, pixel, pixel), 3, cols)
    raw = RawRaster(tmp_path / "c.vrt", grid, "uint8", nodata=255)
    # One long edge in the north, short ones in the south: what is wrong with them is not the same.
    raw.rows[:] = 0
    raw.rows[0] = raw.rows[1, ::2] = 1
    raw.flush()
    (area,) = trace_polygons(raw.path, grid, min_area=0, fill_holes=0)["area_m2"]
    rows = [south_of(45 - row * pixel) - south_of(45 - (row + 1) * pixel) for row in (0, 1)]
    assert area == pytest.approx(math.radians(1) * (rows[0] + rows[1] / 2), rel=1e-4)


def test_nodata_of_either_date_stays_nodata(tmp_path):
    images = scenes(50, 60)
    images[0, :10] = 0
    images[1, :, :7] = 0
    files = [write(tmp_path / f"{i}.tif", images[i], nodata=0) for i in range(2)]
    summary = predict_raster(*files, detector(), tmp_path / "out")
    missing = np.zeros((50, 60), bool)
    missing[:10] = missing[:, :7] = True
    np.testing.assert_array_equal(np.isnan(read(tmp_path / "out/probability.tif")), missing)
    np.testing.assert_array_equal(read(tmp_path / "out/change.tif") == 255, missing)
    assert summary["pixels"]["nodata"] == missing.sum()


def test_a_second_raster_on_another_grid_stops_or_is_resampled(tmp_path):
    images = scenes(60, 60)
    t1 = write(tmp_path / "t1.tif", images[0])
    t2 = write(tmp_path / "t2.tif", images[1, 4:, 3:], transform=PLACE @ Affine.translation(3, 4))
    with pytest.raises(GridMismatchError, match="sizes differ") as refused:
        predict_raster(t1, t2, detector(), tmp_path / "out")
    for part in (t1.name, t2.name, "60 x 60", "57 x 56", "--align"):
        assert part in str(refused.value)
    with RasterPair(str(t1), str(t2), Reading(align=True)) as aligned:
        pixels, valid = aligned.read(0, 60)
    expected = np.zeros((60, 60), bool)
    expected[4:, 3:] = True
    np.testing.assert_array_equal(valid, expected)
    np.testing.assert_array_equal(pixels[1][valid], images[1][expected])
    elsewhere = write(tmp_path / "far.tif", images[1], transform=from_origin(9e5, 5e6, 2, 2))
    with pytest.raises(GridMismatchError, match="shows no ground"):
        predict_raster(t1, elsewhere, detector(), tmp_path / "out", reading=Reading(align=True))


@pytest.mark.parametrize("tolerance", [0, -1, 1.01, 5, float("inf"), float("nan")])
def test_a_tolerance_that_would_let_any_grids_pass_is_refused(tolerance):
    with pytest.raises(ConfigError, match=r"tolerance: .* is no part of a pixel"):
        Reading(tolerance=tolerance)


def test_the_summary_says_how_far_grids_lie_apart_and_what_was_tolerated(tmp_path):
    images = scenes(40, 40)
    t1 = write(tmp_path / "t1.tif", images[0])
    t2 = write(tmp_path / "t2.tif", images[1], transform=PLACE @ Affine.translation(0.25, 0))
    with pytest.raises(GridMismatchError, match=r"0\.25 pixels apart, 0\.2 are tolerated"):
        predict_raster(t1, t2, detector(), tmp_path / "out", reading=Reading(tolerance=0.2))
    summary = predict_raster(t1, t2, detector(), tmp_path / "out", reading=Reading(tolerance=0.5))
    assert summary["grid_offset_pixels"] == pytest.approx(0.25)
    assert summary["grid_tolerance_pixels"] == summary["identity"]["tolerance"] == 0.5


def with_hole(path: Path, image: np.ndarray, how: str, **options: Any) -> Path:
    """Write an image whose upper left 4 x 4 pixels are missing, which is said in some way."""
    valid = np.ones(image.shape[:2], bool)
    valid[:4, :4] = False
    if how == "nodata":
        image[~valid] = 7
        return write(path, image, nodata=7, **options)
    if how == "alpha":
        opaque = 255 if image.dtype == np.uint8 else 32_767
        alpha = valid[..., None].astype(image.dtype) * opaque
        write(path, np.concatenate((image, alpha), axis=2), photometric="minisblack", **options)
        with rasterio.open(path, "r+") as raster:
            raster.colorinterp = [*raster.colorinterp[:3], ColorInterp.alpha]
        return path
    write(path, image, nodata=0 if how == "mask beside nodata" else None, **options)
    inside = rasterio.Env(GDAL_TIFF_INTERNAL_MASK=how == "internal mask")
    with inside, rasterio.open(path, "r+") as raster:
        raster.write_mask(valid)
    assert path.with_suffix(".tif.msk").exists() == (how != "internal mask")
    return path


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize(
    "how", ["nothing", "nodata", "mask", "internal mask", "mask beside nodata", "alpha"]
)
@pytest.mark.parametrize(
    "dtype", ["uint8", "uint16", "int16", "uint32", "int32", "float32", "float64"]
)
def test_ground_that_the_second_raster_lacks_is_no_data(tmp_path, dtype, how, align):
    images = scenes(60, 60)
    row, col = (4, 3) if align else (0, 0)
    second = images[1, row:, col:].astype(dtype)
    place = PLACE @ Affine.translation(col, row)
    t1 = write(tmp_path / "t1.tif", images[0].astype(dtype))
    expected = np.zeros((60, 60), bool)
    expected[row:, col:] = True
    if how == "nothing":
        t2 = write(tmp_path / "t2.tif", second, transform=place)
    else:
        t2 = with_hole(tmp_path / "t2.tif", second, how, transform=place)
        expected[row : row + 4, col : col + 4] = False
    with RasterPair(str(t1), str(t2), Reading(scale=(0, 255), align=align)) as pair:
        pixels, valid = pair.read(0, 60)
    np.testing.assert_array_equal(valid, expected)
    np.testing.assert_array_equal(pixels[1][valid], images[1][expected])


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("alone", ["uint8", "uint16", "int16", "float32"])
def test_nodata_is_that_of_the_bands_that_are_taken(tmp_path, alone, align):
    dtype, nodata = alone, 0 if alone.startswith("u") else -9999
    images = scenes(40, 40)
    first = write(tmp_path / "t1.tif", images[0].astype(dtype))
    # Quality and infrared bands beside R, G, B in reverse order.
    second = np.full((40, 40, 5), 90, dtype)
    second[..., 2::-1] = images[1]
    second[:5, :, :3] = nodata  # outside the swath, where the others go on
    second[10:15, :, 1] = nodata
    second[20:25, :, 3] = second[30:35, :, 4] = nodata
    step = 2 if align else 0
    place = PLACE @ Affine.translation(step, 0)
    other = write(tmp_path / "t2.tif", second[:, step:], transform=place, nodata=nodata)
    expected = np.ones((40, 40), bool)
    expected[:, :step] = expected[:5] = False
    if dtype != "uint8":  # there 0 is also a colour
        expected[10:15] = False
    with RasterPair(str(first), str(other), Reading((3, 2, 1), (0, 255), align)) as pair:
        pixels, valid = pair.read(0, 40)
        _, seen = pair.overview((20, 20))
    np.testing.assert_array_equal(valid, expected)
    np.testing.assert_array_equal(pixels[1][20:][valid[20:]], images[1][20:][valid[20:]])
    assert not seen[:2].any() and seen[10:, 1:].all()


@pytest.mark.filterwarnings("ignore::rasterio.errors.NodataShadowWarning")  # it is told, once
@pytest.mark.parametrize("fourth", ["undefined", "alpha"])
def test_water_that_is_black_in_infrared_alone_is_data(tmp_path, fourth):
    images = np.concatenate((scenes(40, 40), np.full((2, 40, 40, 1), 90, np.uint8)), axis=3)
    images[:, 10:20, :, 3] = 0
    images[:, 30:] = 0
    alpha = "yes" if fourth == "alpha" else "no"  # GDAL calls four bands of 8 bit RGB and alpha
    files = [
        write(tmp_path / f"{i}.tif", images[i], nodata=0, photometric="rgb", alpha=alpha)
        for i in range(2)
    ]
    with rasterio.open(files[0]) as raster:
        assert raster.colorinterp[3].name == fourth
    with RasterPair(*map(str, files), Reading((1, 2, 3))) as pair:
        _, valid = pair.read(0, 40)
    np.testing.assert_array_equal(valid, np.arange(40)[:, None].repeat(40, 1) < 30)


def test_percentiles_are_those_of_pixels_with_data_in_the_bands_that_are_taken(tmp_path):
    images = np.concatenate((scenes(40, 40), np.full((2, 40, 40, 1), 9)), axis=3).astype(np.int16)
    images[:, :20, :, :3] = -9999
    files = [write(tmp_path / f"{i}.tif", images[i], nodata=-9999) for i in range(2)]
    with RasterPair(*map(str, files), Reading((1, 2, 3), "percentiles")) as pair:
        low = pair.scalings[0].low
    np.testing.assert_allclose(low, np.percentile(images[0, 20:, :, :3], 2, axis=(0, 1)))


def test_the_summary_knows_its_inputs_and_how_long_it_took(pair, tmp_path):
    t1, t2, images = pair
    left, top = rasterio.warp.transform(UTM, CRS.from_epsg(3857), [500_000], [5_000_000])
    write(t2, images[1, :64, :80], 3857, from_origin(left[0], top[0], 3, 3))
    os.utime(t1, (1_700_000_000, 1_700_000_000))
    before = datetime.now(UTC)
    summary = predict_raster(t1, t2, detector(), tmp_path / "out", reading=Reading(align=True))
    first, second = summary["inputs"]
    assert first == {
        "cols": 90, "rows": 70, "crs": "EPSG:32633", "wkt": UTM.to_wkt(),
        "bytes": t1.stat().st_size, "modified": "2023-11-14T22:13:20+00:00",
    }  # fmt: skip
    assert (second["cols"], second["rows"], second["crs"]) == (80, 64, "EPSG:3857")
    assert datetime.fromisoformat(summary["started"]) >= before.replace(microsecond=0)
    passed = (datetime.now(UTC) - before).total_seconds()
    assert summary["seconds"]["maps"] <= summary["seconds_in_all"] <= passed + 0.01


def test_another_crs_is_resampled(tmp_path):
    images = np.full((2, 64, 64, 3), 90, np.uint8)
    images[1, 20:40, 20:40] = 250
    t1 = write(tmp_path / "t1.tif", images[0])
    left, top = rasterio.warp.transform(UTM, CRS.from_epsg(3857), [500_000], [5_000_000])
    # Web Mercator stretches by 1 / cos(latitude).
    step = 2 / np.cos(np.radians(45.15))
    place = from_origin(left[0], top[0], step, step)
    t2 = write(tmp_path / "t2.tif", images[1], 3857, place)
    predict_raster(t1, t2, detector(), tmp_path / "out", reading=Reading(align=True))
    change = read(tmp_path / "out/change.tif") == 1
    expected = np.zeros((64, 64), bool)
    expected[20:40, 20:40] = True
    assert (change & expected).sum() / (change | expected).sum() > 0.85


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32", "float64"])
def test_other_sample_types_are_stretched_as_declared(tmp_path, dtype):
    images = scenes(40, 40)
    files = [
        write(tmp_path / f"{i}.tif", (images[i].astype(np.float64) * 10 + 100).astype(dtype))
        for i in range(2)
    ]
    with pytest.raises(DataError, match=f"samples are {dtype}, not 8 bit") as refused:
        predict_raster(*files, detector(), tmp_path / "out")
    assert "--scale" in str(refused.value)
    reading = Reading(scale=(100.0, 2650.0))
    summary = predict_raster(*files, detector(), tmp_path / "out", reading=reading)
    assert summary["scaling"] == [{"low": [100.0] * 3, "high": [2650.0] * 3}] * 2
    expected = predict_array(images[0], images[1], detector())
    np.testing.assert_allclose(read(tmp_path / "out/probability.tif"), expected, atol=1e-6)


def test_percentiles_are_recorded_and_nan_is_nodata(tmp_path):
    images = scenes(40, 40).astype(np.float32) / 7
    images[1, 3:6, 3:6, 2] = np.nan
    files = [write(tmp_path / f"{i}.tif", images[i]) for i in range(2)]
    reading = Reading(scale="percentiles")
    summary = predict_raster(*files, detector(), tmp_path / "out", reading=reading)
    low = np.percentile(images[0].reshape(-1, 3), 2, axis=0)
    assert summary["scaling"][0]["low"] == pytest.approx(low.tolist())
    missing = np.isnan(read(tmp_path / "out/probability.tif"))
    assert missing[3:6, 3:6].all()
    assert missing.sum() == 9


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 9), st.sampled_from([0.0, 0.3, 0.75]))
def test_size_and_batches_do_not_matter(tmp_path_factory, rows, cols, batch, overlap):
    """The difference of two pixels depends on no window, so that any way gives the same map."""
    folder = tmp_path_factory.mktemp("sizes")
    images = np.random.default_rng(0).integers(0, 256, (2, rows, cols, 3), dtype=np.uint8)
    files = [write(folder / f"{i}.tif", images[i]) for i in range(2)]
    options = MapOptions(overlap=overlap)
    predict_raster(*files, detector(16, batch), folder / "out", options=options)
    change = np.abs(images[0, ..., 0] / 50 - images[1, ..., 0] / 50) - 1
    expected = 1 / (1 + np.exp(-4 * change))
    np.testing.assert_allclose(read(folder / "out/probability.tif"), expected, atol=1e-5)


def cut_off(at_call: int) -> Detector:
    """A detector that is interrupted at one of its batches."""
    calls = []

    class Interrupted(Difference):
        def forward(self, t1: torch.Tensor, t2: torch.Tensor) -> ChangeOutput:
            calls.append(None)
            if len(calls) == at_call:
                raise KeyboardInterrupt
            return super().forward(t1, t2)

    return replace(detector(), network=Interrupted().eval())


def test_a_run_that_was_cut_off_leaves_nothing_finished_and_goes_on(pair, tmp_path, monkeypatch):
    t1, t2, _ = pair
    monkeypatch.setattr("dsfer.mapping.predict.SECONDS_BETWEEN_SAVES", 0)
    predict_raster(t1, t2, detector(), tmp_path / "whole")
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        predict_raster(t1, t2, cut_off(6), out)
    assert not out.exists()
    progress = tmp_path / ".out.partial/progress.json"
    noted = json.loads(progress.read_text())
    assert 0 < noted["rows"] < 70
    noted["seconds"]["network"] += 1000  # as if it had been long ago
    noted["seconds_in_all"] += 1000
    noted["started"] = "2020-01-01T00:00:00+00:00"
    noted["runs"][0] |= {"device": "cuda", "precision": "bf16", "versions": {"torch": "1"}}
    progress.write_text(json.dumps(noted))
    with pytest.raises(DataError, match="a run was cut off here"):
        predict_raster(t1, t2, detector(), out)
    with pytest.raises(ConfigError, match="overlap"):
        predict_raster(t1, t2, detector(), out, options=MapOptions(overlap=0.25), resume=True)
    summary = predict_raster(t1, t2, detector(), out, resume=True)
    assert summary["started"] == noted["started"]
    here = {key: summary[key] for key in ("device", "precision", "versions")}
    assert summary["runs"] == [*noted["runs"], {"from_row": noted["rows"]} | here]
    assert (summary["runs"][0]["from_row"], here["precision"]) == (0, "float32")
    assert 1000 < summary["seconds"]["network"] < summary["seconds_in_all"] < 2000
    for name in ("probability.tif", "change.tif"):
        np.testing.assert_array_equal(read(out / name), read(tmp_path / "whole" / name))
    assert sorted(p.name for p in out.iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir()
    )


@pytest.mark.parametrize("late", ["score", "write_preview"])
def test_nothing_of_the_options_of_a_run_that_was_cut_off_stays(pair, tmp_path, monkeypatch, late):
    t1, t2, _ = pair
    label = Label(write(tmp_path / "label.tif", np.zeros((70, 90, 1), np.uint8)))
    out, whole = tmp_path / "out", tmp_path / "whole"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(f"dsfer.mapping.predict.{late}", Mock(side_effect=KeyboardInterrupt))
        predict_raster(
            t1, t2, detector(), out, options=MapOptions(geojson=True, min_area=100), label=label
        )
    assert list((tmp_path / ".out.partial").rglob("errors.*"))
    predict_raster(t1, t2, detector(), out, resume=True)
    predict_raster(t1, t2, detector(), whole)
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in whole.iterdir())
    np.testing.assert_array_equal(read(out / "change.tif"), read(whole / "change.tif"))


def test_two_runs_into_one_folder(pair, tmp_path):
    t1, t2, _ = pair
    out = tmp_path / "out"

    class Meanwhile(Difference):
        def forward(self, first: torch.Tensor, second: torch.Tensor) -> ChangeOutput:
            with pytest.raises(DataError, match="another process is making these maps"):
                predict_raster(t1, t2, detector(), out)
            return super().forward(first, second)

    predict_raster(t1, t2, replace(detector(128), network=Meanwhile().eval()), out)
    with pytest.raises(DataError, match="is there already"):
        predict_raster(t1, t2, detector(), out)


def test_a_run_that_waited_for_the_lock_finds_the_maps_of_the_one_that_had_it(
    pair, tmp_path, monkeypatch
):
    t1, t2, _ = pair
    out = tmp_path / "out"

    class Late(FileLock):
        def acquire(self, *arguments: Any, **named: Any) -> Any:
            with monkeypatch.context() as patch:
                patch.setattr("dsfer.mapping.work.FileLock", FileLock)
                predict_raster(t1, t2, detector(), out)
            return super().acquire(*arguments, **named)

    monkeypatch.setattr("dsfer.mapping.work.FileLock", Late)
    before = {*tmp_path.iterdir(), out}
    with pytest.raises(DataError, match="is there already"):
        predict_raster(t1, t2, cut_off(1), out)
    assert set(tmp_path.iterdir()) == before


def test_a_folder_that_comes_to_be_there_meanwhile_is_left_alone(pair, tmp_path, monkeypatch):
    t1, t2, _ = pair
    out = tmp_path / "out"

    def made(*_: Any, **__: Any) -> None:
        out.mkdir()
        (out / "mine").touch()

    with monkeypatch.context() as patch:
        patch.setattr("dsfer.mapping.predict.write_preview", made)
        with pytest.raises(DataError, match=r"out: came to be there while .* move it away"):
            predict_raster(t1, t2, detector(), out)
    with pytest.raises(DataError, match="is there already"):
        predict_raster(t1, t2, detector(), out, resume=True)
    assert [path.name for path in out.iterdir()] == ["mine"]
    shutil.rmtree(out)
    # The network has nothing left to do.
    assert len(predict_raster(t1, t2, cut_off(1), out, resume=True)["runs"]) == 1
    assert not (tmp_path / ".out.partial").exists()


def test_a_label_scores_the_map_in_both_protocols(tmp_path):
    images = np.full((2, 50, 40, 3), 90, np.uint8)
    images[1, 10:20, 10:20] = 250
    truth = np.zeros((50, 40, 1), np.uint8)
    truth[10:20, 15:25] = 255
    files = [write(tmp_path / f"{i}.tif", images[i]) for i in range(2)]
    label = Label(write(tmp_path / "label.tif", truth))
    summary = predict_raster(*files, detector(), tmp_path / "out", label=label)
    for protocol in ("tiles", "stitched", "map"):
        scores = summary["scores"][protocol]
        counts = [scores[name] for name in ("tp", "fp", "fn", "tn")]
        assert counts == [50, 50, 50, 50 * 40 - 150]
        assert scores["F1"] == pytest.approx(50)
    errors = read(tmp_path / "out/errors.tif")
    assert [int((errors == value).sum()) for value in range(4)] == [1850, 50, 50, 50]
    assert errors[12, 17] == 1  # found
    assert errors[12, 12] == 2  # false alarm
    assert errors[12, 22] == 3  # missed


def test_the_protocol_of_tiles_scores_windows_that_know_nothing_of_each_other(tmp_path):
    class Brighter(nn.Module):
        """Changed is what is brighter at date 2 than the window's mean, its padding included."""

        def forward(self, _: torch.Tensor, t2: torch.Tensor) -> ChangeOutput:
            over = t2[:, 0] - t2[:, 0].mean(dim=(1, 2), keepdim=True)
            return ChangeOutput(torch.stack((torch.zeros_like(over), over), dim=1), ())

    rows, cols, size = 50, 100, 32  # no multiples, and more tiles to a row than a batch has
    images = np.random.default_rng(0).integers(0, 256, (2, rows, cols, 3), dtype=np.uint8)
    images[1, :, 40:] //= 2
    truth = scenes(rows, cols)[1, ..., 0] > 200
    changed = np.empty((rows, cols), bool)
    for top in range(0, rows, size):
        for left in range(0, cols, size):
            part = slice(top, top + size), slice(left, left + size)
            red = images[1, ..., 0][part].astype(float)
            changed[part] = red > red.sum() / size**2
    files = [write(tmp_path / f"{i}.tif", images[i]) for i in range(2)]
    label = Label(write(tmp_path / "label.tif", truth[..., None].astype(np.uint8) * 255))
    network = replace(detector(size), network=Brighter().eval())
    scores = predict_raster(*files, network, tmp_path / "out", label=label)["scores"]

    def counts(said: np.ndarray) -> list[int]:
        outcomes = (said & truth, said & ~truth, ~said & truth, ~said & ~truth)
        return [int(outcome.sum()) for outcome in outcomes]

    found = {protocol: [scores[protocol][name] for name in ("tp", "fp", "fn", "tn")]
             for protocol in ("tiles", "stitched")}  # fmt: skip
    blended = read(tmp_path / "out/change.tif") == 1
    assert found == {"tiles": counts(changed), "stitched": counts(blended)}
    assert found["tiles"] != found["stitched"]


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (lambda p, t: p, DataError, "no such file"),
        (lambda p, t: (p.write_bytes(b"no image"), p)[1], DataError, "cannot be opened"),
        (lambda p, t: write(p, t.repeat(3, 2)), LabelError, "has 3 bands, not one"),
        (lambda p, t: write(p, t.astype(np.uint16)), LabelError, "samples are uint16, not 8-bit"),
        (lambda p, t: write(p, t[1:]), GridMismatchError, "the sizes differ.*resample the label"),
        (lambda p, t: write(p, t[1:], None), GridMismatchError, "is 40 x 49 pixels"),
        (
            lambda p, t: write(p, t, transform=PLACE @ Affine.translation(0, 2)),
            GridMismatchError,
            "the grids lie 2 pixels apart.*resample the label",
        ),
        (lambda p, t: write(p, t, 32634), GridMismatchError, "reference systems differ"),
    ],
)
def test_a_label_that_cannot_score_the_map_is_refused_before_the_network_works(
    tmp_path, bad, error, message
):
    files = [write(tmp_path / f"{i}.tif", image) for i, image in enumerate(scenes(50, 40))]
    label = bad(tmp_path / "label.tif", np.zeros((50, 40, 1), np.uint8))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=rf"label\.tif: .*{message}"):
        predict_raster(*files, cut_off(1), tmp_path / "out", label=Label(label))
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unknown_label_rule_is_refused_before_the_network_works(pair, tmp_path):
    t1, t2, images = pair
    label = Label(write(tmp_path / "label.tif", images[0, ..., :1]), "binary2")
    with pytest.raises(ConfigError, match="unknown label rule 'binary2'"):
        predict_raster(t1, t2, cut_off(1), tmp_path / "out", label=label)


def test_a_label_without_a_place_scores_by_its_pixels_and_its_nodata_is_not_scored(tmp_path):
    images = np.full((2, 50, 40, 3), 90, np.uint8)
    images[1, 10:20, 10:20] = 250
    truth = np.zeros((50, 40, 1), np.uint8)
    truth[10:20, 10:20] = 255
    truth[15:, :] = 7
    files = [write(tmp_path / f"{i}.tif", image) for i, image in enumerate(images)]
    label = write(tmp_path / "label.tif", truth, None, Affine.identity(), nodata=7)
    summary = predict_raster(*files, detector(), tmp_path / "out", label=Label(label))
    for scores in summary["scores"].values():
        counts = [scores[name] for name in ("tp", "fp", "fn", "tn")]
        assert counts == [50, 0, 0, 15 * 40 - 50]
    assert (read(tmp_path / "out/errors.tif")[15:] == 255).all()


def test_the_threshold_of_validation_is_taken_and_said(pair, tmp_path):
    t1, t2, images = pair
    options = MapOptions(threshold="auto")
    summary = predict_raster(t1, t2, detector(), tmp_path / "out", options=options)
    expected = predict_array(images[0], images[1], detector()) > 0.75
    np.testing.assert_array_equal(read(tmp_path / "out/change.tif") == 1, expected)
    assert summary["options"]["threshold"] == 0.75
    assert summary["threshold_from"] == ("highest F1 on the validation split of made up, split abc")
    unknowing = replace(detector(), metadata=replace(detector().metadata, threshold=None))
    with pytest.raises(ConfigError, match="know no threshold"):
        predict_raster(t1, t2, unknowing, tmp_path / "none", options=options)
    assert not (tmp_path / "none").exists()


def test_bands_are_those_of_training_unless_others_are_named(tmp_path):
    images = np.concatenate((np.zeros((2, 40, 40, 1), np.uint8), scenes(40, 40)), axis=3)
    files = [write(tmp_path / f"{i}.tif", images[i], photometric="minisblack") for i in range(2)]
    trained = replace(detector(), metadata=replace(detector().metadata, bands=(2, 3, 4)))
    summary = predict_raster(*files, trained, tmp_path / "out")
    assert summary["bands"] == [2, 3, 4]
    expected = predict_array(images[0, ..., 1:], images[1, ..., 1:], detector())
    np.testing.assert_allclose(read(tmp_path / "out/probability.tif"), expected, atol=1e-6)
    summary = predict_raster(*files, trained, tmp_path / "named", reading=Reading((1, 1, 1)))
    assert summary["pixels"]["changed"] == 0


def declared(path: Path, image: np.ndarray, *colours: ColorInterp) -> Path:
    """Write an image whose bands are declared as of these colours, and further ones as of none."""
    write(path, image, photometric="minisblack")
    with rasterio.open(path, "r+") as raster:
        rest = [ColorInterp.undefined] * (raster.count - len(colours))
        raster.colorinterp = [*colours, *rest]
    return path


RGB = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)


@pytest.mark.parametrize(
    ("colours", "trained", "message"),
    [
        ((RGB, RGB), None, None),
        ((RGB, ()), None, None),
        (((), ()), (3, 2, 1), None),
        ((RGB[::-1], RGB[::-1]), (3, 2, 1), None),
        (
            (RGB, RGB[::-1]),
            None,
            "2.tif: its bands 1,2,3, which an RGB image has as red, green, "
            "blue, are declared as blue, green, red",
        ),
        (((), RGB), (3, 2, 1), "2.tif: its bands 3,2,1, which training has as red, green, blue, "
                               "are declared as blue, green, red"),
        ((RGB, RGB), (1, 1, 1), "1.tif: its bands 1,1,1, which training has"),
    ],
)  # fmt: skip
def test_bands_declared_as_of_other_colours_have_to_be_named(tmp_path, colours, trained, message):
    files = [
        str(declared(tmp_path / f"{number}.tif", image, *names))
        for number, image, names in zip((1, 2), scenes(40, 40), colours, strict=True)
    ]
    knowing = replace(detector(), metadata=replace(detector().metadata, bands=trained))
    if message is not None:
        with pytest.raises(DataError, match=re.escape(message)) as refused:
            predict_raster(*files, knowing, tmp_path / "out")
        assert "--bands" in str(refused.value)
    reading = Reading(None if message is None else trained or (1, 2, 3))
    predict_raster(*files, knowing, tmp_path / "out", reading=reading)


def test_another_number_of_bands_is_asked_about_where_those_of_training_are_taken(tmp_path):
    images = scenes(40, 40)
    more = np.concatenate((images[1], images[1, ..., :1]), axis=2)
    files = [str(declared(tmp_path / f"{i}.tif", image)) for i, image in enumerate(images)]
    four = str(declared(tmp_path / "four.tif", more))
    alpha = str(declared(tmp_path / "alpha.tif", more, *RGB[::-1], ColorInterp.alpha))
    with pytest.raises(DataError, match=r"four\.tif: has 4 bands, but .*0\.tif has 3.*--bands"):
        RasterPair(files[0], four, Reading(), (3, 2, 1))
    for second, reading in ((four, Reading((3, 2, 1))), (alpha, Reading())):
        with RasterPair(files[0], second, reading, (3, 2, 1)) as pair:
            np.testing.assert_array_equal(pair.read(0, 40)[0][1], images[1, ..., ::-1])


def test_samples_of_two_types_share_no_stretch(tmp_path):
    images = scenes(40, 40)
    t1 = write(tmp_path / "t1.tif", images[0])
    t2 = write(tmp_path / "t2.tif", images[1].astype(np.uint16) * 12)
    with pytest.raises(DataError, match=r"t2\.tif: samples are uint16, but .*t1\.tif are uint8"):
        predict_raster(t1, t2, detector(), tmp_path / "out", reading=Reading(scale=(0, 3000)))
    reading = Reading(scale="percentiles")  # each by itself
    summary = predict_raster(t1, t2, detector(), tmp_path / "out", reading=reading)
    first, second = summary["scaling"]
    assert max(first["high"]) <= 255 < min(second["low"])


def damage(kind: str) -> Callable[[Path, np.ndarray], Path]:
    """Ways to spoil the second raster."""
    images: dict[str, Callable[[Path, np.ndarray], Path]] = {
        "rotated": lambda p, i: write(p, i, transform=PLACE @ Affine.rotation(10)),
        "no crs": lambda p, i: write(p, i, crs=None),
        "no transform": lambda p, i: write(p, i, transform=Affine.identity()),
        "local crs": lambda p, i: write(p, i, CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')),
        "moon": lambda p, i: write(p, i, CRS.from_string("ESRI:104903"), DEGREES),
        "geocentric": lambda p, i: write(p, i, 4978),
        "metres as degrees": lambda p, i: write(p, i, 4326),
        "antimeridian": lambda p, i: write(p, i, 4326, from_origin(179.99, 10, 0.001, 0.001)),
        "0 to 360": lambda p, i: write(p, i, 4326, from_origin(190, 10, 0.001, 0.002)),
        "one band": lambda p, i: write(p, i[..., :1]),
        "four bands": lambda p, i: write(
            p, np.concatenate((i, i[..., :1]), 2), photometric="minisblack"
        ),
        "complex": lambda p, i: write(p, i.astype(np.complex64)),
        "complex integers": lambda p, i: write(p, i.astype(np.complex64), dtype="complex_int16"),
        "shifted": lambda p, i: write(p, i, transform=PLACE @ Affine.translation(1, 0)),
        "missing": lambda p, i: p,
        "no image": lambda p, i: (p.write_bytes(b"no image"), p)[1],
    }
    return images[kind]


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("rotated", ("rotated or flipped", "gdalwarp")),
        ("no crs", ("no coordinate reference system", "rio edit-info")),
        ("no transform", ("no geotransform", "gdal_translate")),
        ("local crs", ("has no place on a map of the earth", "site", "rio edit-info --crs")),
        ("moon", ("has no place on a map of the earth", "ESRI:104903")),
        ("geocentric", ("has no place on a map of the earth", "EPSG:4978")),
        ("metres as degrees", ("has no place on a map of the earth", "EPSG:4326")),
        ("antimeridian", ("crosses the antimeridian", "cut both rasters")),
        ("0 to 360", ("190 to 190.04", "gdal_translate -a_ullr -170.0 10.0 -169.96 9.92 t2.tif")),
        ("one band", ("has 1 band", "bands: [1, 1, 1]", "--bands 1,1,1")),
        ("four bands", ("has 4 bands", "bands: [3, 2, 1]", "--bands 3,2,1")),
        ("complex", ("complex64", "amplitudes")),
        ("complex integers", ("complex_int16", "amplitudes")),
        ("shifted", ("1 pixels apart, 1 are tolerated", "--align")),
        ("missing", ("no such file", "put the file in place")),
        ("no image", ("cannot be opened", "replace the damaged file")),
    ],
)
def test_rasters_that_cannot_be_mapped(tmp_path, kind, parts):
    images = scenes(40, 40)
    t1 = write(tmp_path / "t1.tif", images[0])
    t2 = damage(kind)(tmp_path / "t2.tif", images[1])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DsferError) as refused:
        predict_raster(t1, t2, detector(), tmp_path / "out")
    for part in (*parts, "t2.tif"):
        assert part in str(refused.value)
    if kind.startswith("complex"):  # no scale makes amplitudes of them
        with pytest.raises(DataError, match="samples are complex"):
            predict_raster(t1, t2, detector(), tmp_path / "out", reading=Reading(scale=(0, 255)))
    assert sorted(tmp_path.rglob("*")) == before


def test_plain_images_are_mapped_once_they_have_a_place(tmp_path, monkeypatch):
    images = np.full((2, 40, 48, 3), 90, np.uint8)
    images[1, 5:25, 5:25] = 250
    (tmp_path / "A").mkdir()
    (tmp_path / "B").mkdir()
    files = [tmp_path / side / "scene.png" for side in ("A", "B")]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image).save(file)
    with pytest.raises(DataError, match="as plain images have none") as refused:
        predict_raster(*files, detector(), tmp_path / "out")
    for file in files:  # what the message says, word by word
        monkeypatch.chdir(file.parent)
        for command in re.findall("`(.+?)`", str(refused.value)):
            CliRunner().invoke(rio, shlex.split(command)[1:], catch_exceptions=False)
    places = [file.with_suffix(".tif") for file in files]
    summary = predict_raster(*places, detector(), tmp_path / "out")
    assert summary["changed_area_m2"] == pytest.approx(400 * 0.25, rel=2e-3)
    expected = predict_array(*images, detector())
    np.testing.assert_allclose(read(tmp_path / "out/probability.tif"), expected, atol=1e-6)


def test_a_file_that_is_cut_off_stops_the_run_and_names_the_rows(tmp_path):
    images = scenes(200, 90)
    t1, t2 = (write(tmp_path / f"{i}.tif", images[i]) for i in range(2))
    t2.write_bytes(t2.read_bytes()[:30_000])
    with pytest.raises(DataError, match=r"1\.tif: damaged between rows"):
        predict_raster(t1, t2, detector(), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.tif", "1.tif"]


def test_a_damaged_jpeg_stops_the_run_in_whatever_thread(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    t1 = write(tmp_path / "t1.tif", image)
    t2 = write(tmp_path / "t2.jpg", image, driver="JPEG")
    content = bytearray(t2.read_bytes())
    content[5000:9000] = b"\xff" * 4000  # unless told otherwise GDAL makes it grey, with a warning
    t2.write_bytes(content)
    with ThreadPoolExecutor(1) as pool:  # as tasks of a flow run
        mapped = pool.submit(predict_raster, t1, t2, detector(), tmp_path / "out")
        # Not as late as in the preview, which begins at row 0.
        with pytest.raises(DataError, match=r"t2\.jpg: damaged between rows [1-9]"):
            mapped.result()
    assert not (tmp_path / "out").exists()


def test_a_raster_that_is_replaced_because_it_was_damaged_is_mapped_from_the_start(
    tmp_path, monkeypatch, caplog
):
    images = scenes(200, 90)
    t1, t2 = (write(tmp_path / f"{i}.tif", images[i]) for i in range(2))
    predict_raster(t1, t2, detector(), tmp_path / "whole")
    write(t2, 255 - images[1])
    t2.write_bytes(t2.read_bytes()[:30_000])
    monkeypatch.setattr("dsfer.mapping.predict.SECONDS_BETWEEN_SAVES", 0)
    with pytest.raises(DataError, match=r"1\.tif: damaged between rows"):
        predict_raster(t1, t2, detector(), tmp_path / "out")
    assert json.loads((tmp_path / ".out.partial/progress.json").read_text())["rows"] > 0
    write(t2, images[1])
    with pytest.raises(ConfigError, match="t2: the run that was cut off had"):
        predict_raster(t1, t1, detector(), tmp_path / "out", resume=True)
    predict_raster(t1, t2, detector(), tmp_path / "out", resume=True)
    assert f"{t2} was replaced: the maps are begun anew" in caplog.text
    for name in ("probability.tif", "change.tif"):
        np.testing.assert_array_equal(
            read(tmp_path / "out" / name), read(tmp_path / "whole" / name)
        )


def test_an_error_of_writing_ends_what_reads_ahead_before_the_rasters_are_closed(
    pair, tmp_path, monkeypatch
):
    t1, t2, _ = pair
    failing = Mock(side_effect=OSError("full"))
    monkeypatch.setattr("dsfer.mapping.predict.save_progress", failing)
    monkeypatch.setattr("dsfer.mapping.predict.SECONDS_BETWEEN_SAVES", 0)
    running = []

    def close(self: RasterPair, *error: Any) -> None:
        running.extend(t for t in threading.enumerate() if "ThreadPool" in t.name)
        self._stack.close()

    monkeypatch.setattr(RasterPair, "__exit__", close)
    with pytest.raises(OSError, match="full"):
        predict_raster(t1, t2, detector(), tmp_path / "out")
    assert failing.called and not running


def test_rows_are_written_while_the_network_works_on_the_next(tmp_path, monkeypatch):
    files = [write(tmp_path / f"{i}.tif", scenes(128, 32)[i]) for i in range(2)]
    windows, third = [], threading.Event()

    class Counting(Difference):
        def forward(self, t1: torch.Tensor, t2: torch.Tensor) -> ChangeOutput:
            windows.append(None)
            if len(windows) == 3:  # the first rows are done when the second window is
                third.set()
            return super().forward(t1, t2)

    written = RawRaster.release

    def release(self: RawRaster) -> None:  # what writing ends with
        assert third.wait(10)
        written(self)

    monkeypatch.setattr(RawRaster, "release", release)
    network = replace(detector(32, 1), network=Counting().eval())
    predict_raster(*files, network, tmp_path / "out", options=MapOptions(overlap=0))
    assert len(windows) == 4


@pytest.mark.parametrize("seconds", [0, 30])
def test_rasters_of_nothing_but_nodata_leave_nothing(tmp_path, monkeypatch, seconds):
    images = np.zeros((2, 40, 40, 3), np.uint8)
    files = [write(tmp_path / f"{i}.tif", images[i], nodata=0) for i in range(2)]
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("dsfer.mapping.predict.SECONDS_BETWEEN_SAVES", seconds)
    with pytest.raises(DataError, match="no pixel that both rasters have"):
        predict_raster(*files, detector(), tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("precision", "mend"), [("float32", "give other"), ("bf16", "compute in float32")]
)
def test_a_network_that_says_nan_makes_no_map_of_nodata(tmp_path, precision, mend):
    class Undecided(Difference):
        """NaN where date 1 is white, or black, as nodata is."""

        def forward(self, t1: torch.Tensor, t2: torch.Tensor) -> ChangeOutput:
            logits = super().forward(t1, t2).logits
            logits[:, 1][(t1[:, 0] > 5) | (t1[:, 0] == 0)] = torch.nan
            return ChangeOutput(logits, ())

    network = replace(detector(), network=Undecided().eval())
    network = replace(network, inference=replace(network.inference, precision=precision))
    images = scenes(80, 40)
    images[0, 5, 7] = 0
    valid = images[0, ..., 0] > 0
    assert np.isnan(predict_array(*images, network, valid=valid)).sum() == 1
    images[0, 60, 3:5] = 255
    said = rf"in {precision} the network says NaN of 2 pixels\. To mend it: {mend}"
    with pytest.raises(CheckpointError, match=said):
        predict_array(*images, network, valid=valid)
    files = [write(tmp_path / f"{i}.tif", images[i], nodata=0) for i in range(2)]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match=rf"1\.tif, rows 48 to 79: {said}"):
        predict_raster(*files, network, tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Weights of a tiny Dsfer-Net for windows of 32 pixels."""
    options = {"width": 0.125, "image_size": 32, "hopfield_dim": 16}
    torch.manual_seed(0)
    record = Metadata("dsfer-net", options, (90,) * 3, (50,) * 3, tile_size=32)
    path = tmp_path / "weights" / "weights.safetensors"
    save_weights(dsfer.create_model("dsfer-net", **options), path, record)
    return path


def said(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str | None:
    """The message that `dsfer predict` ends with, or None where it succeeds."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["dsfer", "predict", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    message = capsys.readouterr().err.rstrip("\n").rpartition("\n")[2]
    return message if ended.value.code else None


def test_a_disk_that_is_full_is_named_and_the_run_goes_on_once_there_is_room(
    bundle, tmp_path, capsys
):
    images = scenes(96, 128)
    pair = [write(tmp_path / f"{i}.tif", images[i]) for i in range(2)]
    refused = set()
    with mounted(tmp_path / "disk", 8) as disk:
        out = disk.folder / "changes"
        for room in (*range(0, 49_152, 4096), 98_304, 131_072, 262_144):
            disk.fill(room)
            message = said(capsys, *pair, "--weights", bundle, "--out", out, "--resume")
            disk.clear()
            if message is None:
                break
            assert not out.exists()
            work = disk.folder / ".changes.partial"
            assert (work / "progress.json").is_file() or not work.exists()
            place, _, rest = message.removeprefix("error: ").partition(": ")
            assert rest.startswith("no space left on device. To mend it: make room"), message
            refused.add(Path(place).name)
        assert {"probability.raw", "probability.tif"} <= refused
        if not out.exists():
            assert said(capsys, *pair, "--weights", bundle, "--out", out, "--resume") is None
        whole = tmp_path / "whole"
        assert said(capsys, *pair, "--weights", bundle, "--out", whole) is None
        assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in whole.iterdir())
        for name in ("probability.tif", "change.tif"):
            np.testing.assert_array_equal(read(out / name), read(whole / name))


def test_a_disk_that_refuses_a_write_before_rows_are_noted_gets_its_room_back(pair, tmp_path):
    t1, t2, _ = pair
    before = sorted(tmp_path.rglob("*"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # of 70 * 90 * 4 bytes
    try:
        with pytest.raises(OSError, match=r"File too large: .*probability\.raw"):
            predict_raster(t1, t2, detector(), tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_disk_with_too_little_room_is_not_filled(pair, tmp_path, monkeypatch):
    t1, t2, _ = pair
    before = sorted(tmp_path.rglob("*"))
    room = shutil.disk_usage(tmp_path)._replace(free=70 * 90 * 4 - 1)
    monkeypatch.setattr("dsfer.mapping.raw.shutil.disk_usage", lambda _: room)
    with pytest.raises(OSError, match=r"No space left on device: .*probability\.raw"):
        predict_raster(t1, t2, detector(), tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_may_not_be_written_to(bundle, tmp_path, capsys):
    images = scenes(40, 40)
    pair = [write(tmp_path / f"{i}.tif", images[i]) for i in range(2)]
    with mounted(tmp_path / "disk", 1) as disk:
        disk.protect()
        message = said(capsys, *pair, "--weights", bundle, "--out", disk.folder / "changes")
    assert "disk/" in message and "read-only file system. To mend it: remount" in message


def test_weights_of_another_method(bundle, tmp_path, capsys):
    images = scenes(40, 40)
    pair = [write(tmp_path / f"{i}.tif", images[i]) for i in range(2)]
    record = Metadata("dsfer-net", {"image_size": 32}, (90,) * 3, (50,) * 3, tile_size=32)
    save_weights(dsfer.create_model("fc-ef-res"), bundle, record)
    message = said(capsys, *pair, "--weights", bundle, "--out", tmp_path / "out")
    assert message.startswith(f"error: {bundle}: does not fit the network (")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Address of an HTTP server that serves a folder; a process, for GDAL waits with the GIL."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    with subprocess.Popen(
        [*command, "--directory", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as serving:  # fmt: skip
        assert serving.stdout is not None
        port = serving.stdout.readline().split(" port ")[1].split()[0]
        yield f"http://127.0.0.1:{port}"
        serving.terminate()


def test_rasters_behind_an_address(bundle, pair, server, tmp_path, capsys):
    t1, t2, _ = pair
    here = dsfer.predict_raster(t1, t2, bundle, tmp_path / "here")
    write(tmp_path / "label.tif", np.zeros((70, 90, 1), np.uint8))
    there = dsfer.predict_raster(
        f"{server}/t1.tif", f"{server}/t2.tif", bundle, tmp_path / "out",
        label=Label(f"{server}/label.tif"),
    )  # fmt: skip
    assert there["t2"] == f"{server}/t2.tif"
    assert there["scores"]["map"]["tp"] == 0
    assert there["pixels"] == here["pixels"]
    missing = said(
        capsys, t1, f"{server}/none.tif", "--weights", bundle, "--out", tmp_path / "none"
    )
    assert missing is not None and f"{server}/none.tif: " in missing


def test_what_opens_an_address_is_neither_kept_nor_shown(bundle, pair, server, tmp_path, capsys):
    write(tmp_path / "label.tif", np.zeros((70, 90, 1), np.uint8))
    t1, t2 = f"{server}/t1.tif".replace("//", "//me:topsecret@"), f"{server}/t2.tif?sig=topsecret/1"
    signed = ListedPair("signed", t1, t2, f"{server}/label.tif?sig=topsecret")
    network, out = dsfer.load(bundle), tmp_path / "maps"
    summary = map_pair(signed, network, out)
    assert (summary["t1"], summary["t2"]) == (f"{server}/t1.tif", f"{server}/t2.tif?...")
    kept = {file.name: file.read_bytes() for file in (out / "signed").iterdir()}
    assert "summary.json" in kept
    assert not [name for name, content in kept.items() if b"topsecret" in content]
    assert map_pair(signed, network, out, resume=True) == summary
    with pytest.raises(ConfigError, match="signed, t2: these maps were made with") as refused:
        map_pair(replace(signed, t2=f"{server}/t2.tif?sig=topsecret/2"), network, out, resume=True)
    none = f"{server}/none.tif?sig=topsecret"
    said_of_none = said(capsys, t1, none, "--weights", bundle, "--out", tmp_path / "none")
    assert f"{server}/none.tif?...: no such file" in said_of_none
    assert "topsecret" not in f"{refused.value} {said_of_none}"


@settings(max_examples=8, deadline=None)
@given(st.integers(5, 70), st.integers(5, 70), st.integers(1, 7), st.floats(0, 0.9), st.data())
def test_maps_depend_on_no_batch_size_and_no_overlap(
    tmp_path_factory, rows, cols, batch_size, overlap, data
):
    folder = tmp_path_factory.mktemp("maps")
    images = scenes(max(rows, 5), max(cols, 6))
    hole = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, cols - 1))
    images[:, hole[0] :, hole[1] :] = 0
    images[:, :1, :1] = 90  # never all of it
    files = [write(folder / f"{i}.tif", images[i], nodata=0) for i in range(2)]
    valid = (images != 0).all(axis=(0, 3))
    options = MapOptions(overlap=overlap)
    predict_raster(*files, detector(batch_size=batch_size), folder / "out", options=options)
    found = read(folder / "out/probability.tif")
    # A network that looks at one pixel: stitching gives it back, whatever the windows.
    change = np.abs(images[0, ..., 0].astype(float) - images[1, ..., 0]) / 50 - 1
    expected = np.where(valid, 1 / (1 + np.exp(-4 * change)), np.nan)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    array = predict_array(*images, detector(batch_size=1), overlap=overlap, valid=valid)
    np.testing.assert_allclose(array, expected, atol=1e-6)

"""What `dsfer view` serves: tiles that are the rasters, outlines in view, and nothing else."""

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.transform import Affine, from_origin
from starlette.testclient import TestClient

from dsfer.errors import ConfigError, DataError
from dsfer.figures import ERROR_COLOURS
from dsfer.mapping.pair import RasterPair, Reading
from dsfer.mapping.predict import MapOptions, predict_raster
from dsfer.mapping.scaling import Scaling
from dsfer.mapping.scoring import Label
from dsfer.viewer import outlines
from dsfer.viewer.folder import TILE, ChangeFolder
from dsfer.viewer.server import HOST, PAGE, application, serve
from tests.pages import addresses
from tests.test_mapping import PLACE, UTM, detector, read, scenes, write

ROWS, COLS = 380, 520


def blocks() -> tuple[np.ndarray, np.ndarray]:
    """Two dates (2, rows, cols, 3) and what changed of it: a strong, a weak and a missed block."""
    images = np.full((2, ROWS, COLS, 3), 90, np.uint8)
    images[0, :, ::7, 1] = 100
    images[1, 40:120, 60:160] = 250  # of probability 0.9999
    images[1, 200:300, 300:440] = 150  # of probability 0.69
    images[1, 320:350, 60:120, 1] = 250  # not in the red band, which alone counts
    truth = np.zeros((ROWS, COLS, 1), np.uint8)
    truth[40:120, 60:160] = truth[320:350, 60:120] = 255
    return images, truth


def make_maps(folder: Path) -> Path:
    """Rasters of two dates and their maps, in `folder`/maps."""
    images, truth = blocks()
    t1, t2 = (write(folder / f"{name}.tif", images[i]) for i, name in enumerate(("t1", "t2")))
    label = Label(write(folder / "label.tif", truth))
    predict_raster(t1, t2, detector(128), folder / "maps", label=label)
    return folder / "maps"


@contextmanager
def viewed(maps: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`dsfer view` as a process of its own: its address, and the process."""
    command = [sys.executable, "-c", "from dsfer.cli import main; main()"]
    process = subprocess.Popen(
        [*command, "view", str(maps), "--no-browser", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    with process:
        try:
            said = ""
            while not (found := re.search(r"http://\S+/", said)):
                line = process.stdout.readline()
                assert line, said + process.stderr.read()
                said += line
            yield found[0], process
        finally:
            if process.poll() is None:
                process.kill()


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_maps(tmp_path_factory.mktemp("viewer"))


@pytest.fixture(scope="module")
def client(maps: Path) -> TestClient:
    return TestClient(application(ChangeFolder(maps)), base_url=f"http://{HOST}")


def picture(client: TestClient, layer: str, level: int, x: int, y: int) -> np.ndarray:
    answer = client.get(f"/tiles/{layer}/{level}/{x}/{y}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    tile = np.array(Image.open(io.BytesIO(answer.content)))
    assert tile.shape == (TILE, TILE, 4)
    return tile


def stitched(client: TestClient, layer: str, rows: int, cols: int) -> np.ndarray:
    """All tiles of level 0, and nothing beyond the raster."""
    strips = [
        np.concatenate([picture(client, layer, 0, x, y) for x in range(-(-cols // TILE))], axis=1)
        for y in range(-(-rows // TILE))
    ]
    whole = np.concatenate(strips)
    assert not whole[rows:, :, 3].any()
    assert not whole[:, cols:, 3].any()
    return whole[:rows, :cols]


def probabilities(client: TestClient, level: int, x: int, y: int) -> np.ndarray:
    content = client.get(f"/tiles/probability/{level}/{x}/{y}").content
    return np.frombuffer(content, "<f4").reshape(TILE, TILE)


def test_tiles_of_the_finest_level_are_the_rasters_pixel_by_pixel(client, maps):
    images, _ = blocks()
    for name, image in zip(("before", "after"), images, strict=True):
        whole = stitched(client, name, ROWS, COLS)
        np.testing.assert_array_equal(whole[..., :3], image)
        assert (whole[..., 3] == 255).all()


def test_a_threshold_on_tiles_of_probability_gives_the_map(client, maps):
    expected = read(maps / "probability.tif")
    for x, y in ((0, 0), (1, 1)):
        tile = probabilities(client, 0, x, y)
        part = expected[y * TILE : (y + 1) * TILE, x * TILE : (x + 1) * TILE]
        np.testing.assert_array_equal(tile[: part.shape[0], : part.shape[1]], part)
        assert np.isnan(tile[part.shape[0] :]).all()
    change = read(maps / "change.tif")[:TILE, :TILE]
    np.testing.assert_array_equal(probabilities(client, 0, 0, 0) > 0.5, change == 1)


def test_errors_have_the_colours_of_the_figures(client):
    whole = stitched(client, "errors", ROWS, COLS)
    for place, outcome in (((80, 100), "TP"), ((250, 400), "FP"), ((330, 80), "FN")):
        assert tuple(whole[place]) == (*ERROR_COLOURS[outcome], 255)
    assert whole[5, 5, 3] == 0  # unchanged, and rightly so: the imagery shows


def test_coarser_levels_show_the_whole_in_one_tile(client, maps):
    facts = client.get("/map.json").json()
    assert facts["levels"] == 2
    images, _ = blocks()
    tile = picture(client, "after", 2, 0, 0)
    assert (tile[: ROWS // 4 - 1, : COLS // 4 - 1, 3] == 255).all()
    assert not tile[ROWS // 4 + 1 :, :, 3].any()
    small = images[1].reshape(ROWS // 4, 4, COLS // 4, 4, 3).mean(axis=(1, 3))
    shown = tile[: ROWS // 4, : COLS // 4, :3].astype(float)
    assert np.abs(shown - small).mean() < 2
    halved = probabilities(client, 1, 0, 0)[: ROWS // 2, : COLS // 2]
    exact = read(maps / "probability.tif").reshape(ROWS // 2, 2, COLS // 2, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(halved[:, : COLS // 2], exact[:, :TILE], atol=1e-5)


@pytest.mark.parametrize(("side", "levels"), [(400, 1), (1104, 3)])
def test_levels_without_an_overview_are_means_of_probability_and_modes_of_errors(
    tmp_path, side, levels
):
    """The maps of 400 pixels have no overview, of those of 1,104 the last level has none."""
    images = np.full((2, side, side, 3), 90, np.uint8)
    images[1, 48:-48:23, 48:-48:23] = 250  # single pixels
    images[1, :40] = 250
    files = [write(tmp_path / f"{i}.tif", images[i]) for i in range(2)]
    label = Label(write(tmp_path / "label.tif", np.zeros((side, side, 1), np.uint8)))
    options = MapOptions(overlap=0)
    predict_raster(*files, detector(256, 1), tmp_path / "out", options=options, label=label)
    for name in ("probability.tif", "errors.tif"):
        with rasterio.open(tmp_path / "out" / name) as raster:
            assert len(raster.overviews(1)) < levels
    client = TestClient(application(ChangeFolder(tmp_path / "out")), base_url=f"http://{HOST}")
    step = 2**levels
    cells = side // step
    exact = read(tmp_path / "out/probability.tif")[: cells * step, : cells * step]
    means = exact.reshape(cells, step, cells, step).mean(axis=(1, 3))
    found = probabilities(client, levels, 0, 0)[:cells, :cells]
    np.testing.assert_allclose(found, means, atol=1e-5)
    errors = picture(client, "errors", levels, 0, 0)[:cells, :cells]
    assert (errors[: 32 // step] == (*ERROR_COLOURS["FP"], 255)).all()
    assert not errors[48 // step : -48 // step, :, 3].any()


@pytest.mark.parametrize("scale", ["percentiles", (100.0, 2650.0)])
def test_both_dates_are_stretched_as_the_network_saw_them(tmp_path, scale):
    images = scenes(70, 90).astype(np.uint16) * 10 + 100
    images[1] += 300
    files = [write(tmp_path / f"{i}.tif", images[i], nodata=0) for i in range(2)]
    predict_raster(*files, detector(), tmp_path / "out", reading=Reading(scale=scale))
    folder = ChangeFolder(tmp_path / "out")
    client = TestClient(application(folder), base_url=f"http://{HOST}")
    for index, name in enumerate(("before", "after")):
        stated = folder.summary["scaling"][index]
        expected = Scaling(stated["low"], stated["high"]).apply(images[index])
        np.testing.assert_array_equal(stitched(client, name, 70, 90)[..., :3], expected)


def test_what_has_no_data_is_clear(tmp_path):
    images = scenes(60, 80)
    images[0, :10] = 0
    files = [write(tmp_path / f"{i}.tif", images[i], nodata=0) for i in range(2)]
    predict_raster(*files, detector(), tmp_path / "out")
    client = TestClient(application(ChangeFolder(tmp_path / "out")), base_url=f"http://{HOST}")
    opaque = stitched(client, "before", 60, 80)[..., 3] == 255
    np.testing.assert_array_equal(opaque, (images[0] > 0).all(axis=2))
    assert np.isnan(probabilities(client, 0, 0, 0)[:10]).all()


def test_a_second_date_in_another_crs_lies_where_the_network_saw_it(tmp_path):
    images = np.full((2, 120, 120, 3), 90, np.uint8)
    images[1, 20:80, 40:100] = 250
    t1 = write(tmp_path / "t1.tif", images[0])
    (left,), (top,) = rasterio.warp.transform(UTM, "EPSG:3857", [500_000], [5_000_000])
    step = 2 / np.cos(np.radians(45.15))
    t2 = write(tmp_path / "t2.tif", images[1], 3857, from_origin(left, top, step, step))
    predict_raster(t1, t2, detector(), tmp_path / "out", reading=Reading(align=True))
    client = TestClient(application(ChangeFolder(tmp_path / "out")), base_url=f"http://{HOST}")
    with RasterPair(str(t1), str(t2), Reading(align=True)) as pair:
        pixels, valid = pair.read(0, 120)
    shown = stitched(client, "after", 120, 120)
    seen = valid & (shown[..., 3] == 255)
    assert seen.mean() > 0.95
    difference = np.abs(shown[..., :3].astype(int) - pixels[1])[seen]
    assert difference.mean() < 0.5


def test_pixels_of_degrees_are_as_wide_and_high_as_on_the_ground(tmp_path):
    place = from_origin(16.0, 60.0, 1e-4, 1e-4)
    files = [write(tmp_path / f"{i}.tif", scenes(40, 50)[i], 4326, place) for i in range(2)]
    predict_raster(*files, detector(), tmp_path / "out")
    facts = ChangeFolder(tmp_path / "out").description()
    width, height = facts["metres"]
    assert (facts["degrees"], facts["crs"]) == (True, "EPSG:4326")
    assert height == pytest.approx(11.1, abs=0.1)
    assert width / height == pytest.approx(0.5, abs=0.01)  # cos 60°


def test_no_tile_beyond_the_raster_and_no_other_layer(client):
    for place in ("before/0/3/0", "before/0/0/2", "before/3/0/0", "before/99/0/0", "label/0/0/0"):
        assert client.get(f"/tiles/{place}").status_code == 404


def test_outlines_in_view_are_the_changes_in_pixels(client, maps):
    everything = client.get(f"/outlines/0/0/0/{COLS}/{ROWS}").json()
    stored = gpd.read_file(maps / "changes.gpkg")
    assert everything["total"] == len(stored) == 2
    outlined = rasterize([f["geometry"] for f in everything["features"]], (ROWS, COLS))
    np.testing.assert_array_equal(outlined, read(maps / "change.tif") == 1)
    expected = stored.sort_values("area_m2", ascending=False).drop(columns="geometry")
    assert [f["properties"] for f in everything["features"]] == expected.to_dict("records")
    (one,) = client.get("/outlines/0/0/0/200/150").json()["features"]
    assert one["properties"]["id"] == 1
    assert client.get("/outlines/0/200/0/280/150").json() == {
        "type": "FeatureCollection", "features": [], "total": 0,
    }  # fmt: skip


def test_of_too_many_outlines_the_largest_are_sent_and_all_are_counted(client, monkeypatch):
    monkeypatch.setattr(outlines, "LIMIT", 1)
    some = client.get(f"/outlines/0/0/0/{COLS}/{ROWS}").json()
    assert some["total"] == 2
    assert [f["properties"]["id"] for f in some["features"]] == [2]


def test_from_one_change_to_the_next_and_around(client):
    def number(address: str) -> int:
        return client.get(f"/outlines/{address}").json()["properties"]["id"]

    assert [number(f"next/{n}") for n in (0, 1, 2)] == [1, 2, 1]
    assert [number(f"previous/{n}") for n in (0, 2, 1)] == [2, 1, 2]
    assert client.get("/outlines/sideways/1").status_code == 404


def test_a_map_without_changes_has_no_outlines(tmp_path):
    image = scenes(40, 40)[0]
    files = [write(tmp_path / f"{i}.tif", image) for i in range(2)]
    predict_raster(*files, detector(), tmp_path / "out")
    client = TestClient(application(ChangeFolder(tmp_path / "out")), base_url=f"http://{HOST}")
    assert client.get("/outlines/0/0/0/40/40").json()["total"] == 0
    assert client.get("/outlines/next/0").json() is None


def test_outlines_of_far_away_views_have_fewer_corners(tmp_path):
    images = np.full((2, 300, 300, 3), 90, np.uint8)
    images[1][np.tri(300, dtype=bool)] = 250  # a slope of 300 steps
    files = [write(tmp_path / f"{i}.tif", images[i]) for i in range(2)]
    predict_raster(*files, detector(128), tmp_path / "out", options=MapOptions(overlap=0))
    client = TestClient(application(ChangeFolder(tmp_path / "out")), base_url=f"http://{HOST}")

    def corners(level: int) -> int:
        (feature,) = client.get(f"/outlines/{level}/0/0/300/300").json()["features"]
        return len(feature["geometry"]["coordinates"][0])

    assert corners(0) > 600
    assert corners(1) < 10


def test_a_raster_that_is_gone_is_named_and_the_rest_is_shown(tmp_path):
    folder = ChangeFolder(make_maps(tmp_path))
    client = TestClient(application(folder), base_url=f"http://{HOST}")
    moved = shutil.move(tmp_path / "t2.tif", tmp_path / "elsewhere.tif")
    facts = client.get("/map.json").json()
    assert facts["dates"]["before"]["problem"] is None
    for part in ("t2.tif", "no such file", "--t2"):
        assert part in facts["dates"]["after"]["problem"]
    refused = client.get("/tiles/after/0/0/0")
    assert refused.status_code == 404
    assert "t2.tif: no such file" in refused.json()["message"]
    assert picture(client, "before", 0, 0, 0).any()

    found = ChangeFolder(tmp_path / "maps", t2=str(moved))
    assert found.problem("after") is None
    client = TestClient(application(found), base_url=f"http://{HOST}")
    np.testing.assert_array_equal(stitched(client, "after", ROWS, COLS)[..., :3], blocks()[0][1])


@pytest.mark.parametrize("date", ["t1", "t2"])
def test_a_raster_of_another_grid_is_not_taken_for_the_one_that_was_mapped(maps, tmp_path, date):
    image = blocks()[0][0]
    others = [
        write(tmp_path / "size.tif", scenes(50, 50)[0]),
        write(tmp_path / "place.tif", image, transform=from_origin(0, 9e5, 2, 2)),
        write(tmp_path / "pixel.tif", image, transform=PLACE @ Affine.translation(0.5, 0)),
        write(tmp_path / "zone.tif", image, crs=CRS.from_epsg(32634)),
        write(tmp_path / "none.tif", image, crs=None),
    ]
    name = {"t1": "before", "t2": "after"}[date]
    for path in others:
        assert "its grid is another" in ChangeFolder(maps, **{date: str(path)}).problem(name), path
    same = write(tmp_path / "same.tif", image)
    assert ChangeFolder(maps, **{date: str(same)}).problem(name) is None


def test_a_raster_whose_reference_system_only_resembles_one_with_a_code_is_known(tmp_path):
    similar = CRS.from_string("+proj=utm +zone=33 +ellps=intl")
    t1, t2 = (write(tmp_path / f"{i}.tif", scenes(40, 40)[i], similar) for i in range(2))
    predict_raster(t1, t2, detector(), tmp_path / "out")
    folder = ChangeFolder(tmp_path / "out")
    assert folder.problem("before") is folder.problem("after") is None
    assert folder.description()["crs"].startswith("+proj=utm +zone=33 +ellps=intl")
    other = write(tmp_path / "other.tif", scenes(40, 40)[0], CRS.from_epsg(23033))
    assert "its grid is another" in ChangeFolder(tmp_path / "out", str(other)).problem("before")
    # Summaries of before had the code alone.
    said = json.loads((tmp_path / "out/summary.json").read_text())
    said["inputs"][0] = {"cols": 40, "rows": 40, "crs": "EPSG:23033"}
    (tmp_path / "out/summary.json").write_text(json.dumps(said))
    assert ChangeFolder(tmp_path / "out", str(other)).problem("before") is None


def test_a_second_date_is_known_by_where_it_lay_and_a_resampled_one_by_size_and_crs(tmp_path):
    images = scenes(60, 80)
    t1 = write(tmp_path / "t1.tif", images[0])
    near = PLACE @ Affine.translation(0.4, 0)
    predict_raster(t1, write(tmp_path / "t2.tif", images[1], transform=near), detector(),
                   tmp_path / "near")  # fmt: skip
    assert ChangeFolder(tmp_path / "near").problem("after") is None
    assert "its grid is another" in ChangeFolder(tmp_path / "near", t2=str(t1)).problem("after")

    t2 = write(tmp_path / "far.tif", scenes(50, 70)[1], transform=PLACE @ Affine.translation(5, 5))
    predict_raster(t1, t2, detector(), tmp_path / "far", reading=Reading(align=True))
    assert ChangeFolder(tmp_path / "far").problem("after") is None
    zone = write(tmp_path / "zone.tif", scenes(50, 70)[1], crs=CRS.from_epsg(32634))
    for other in (t1, zone):
        assert "its grid is another" in ChangeFolder(tmp_path / "far", t2=str(other)).problem(
            "after"
        )


def test_a_damaged_raster_is_named(tmp_path):
    maps = make_maps(tmp_path)
    file = tmp_path / "t1.tif"
    file.write_bytes(file.read_bytes()[:100_000])
    client = TestClient(application(ChangeFolder(maps)), base_url=f"http://{HOST}")
    refused = client.get("/tiles/before/0/1/1")
    assert refused.status_code == 404
    assert "t1.tif: cannot be read" in refused.json()["message"]


def test_folders_that_are_no_maps(maps, tmp_path):
    def refused(path: Path) -> str:
        with pytest.raises(DataError) as error:
            ChangeFolder(path)
        return str(error.value)

    assert "no such folder" in refused(tmp_path / "none")
    (tmp_path / ".busy.partial").mkdir()
    assert "--resume" in refused(tmp_path / "busy")
    assert f"give one of the folders in it, as {maps}" in refused(maps.parent)
    part = tmp_path / "part"
    shutil.copytree(maps, part)
    (part / "changes.gpkg").unlink()
    assert "it lacks changes.gpkg" in refused(part)
    shutil.copy(maps / "changes.gpkg", part)
    (part / "summary.json").write_text("{}")
    assert "summary.json: says nothing of 'scaling'" in refused(part)
    (part / "probability.tif").write_bytes(b"no image")
    assert "cannot be opened as an image" in refused(part)


def test_nothing_but_the_page_and_the_maps_is_served(client, maps):
    for address in (
        "/summary.json",
        "/..%2fsummary.json",
        "/%2e%2e/folder.py",
        "/../folder.py",
        f"/leaflet/{'..%2f' * 9}etc/passwd",
        f"//{maps}/summary.json",
    ):
        assert client.get(address).status_code == 404, address
    assert client.get("/").status_code == client.get("/leaflet/leaflet.js").status_code == 200
    # A name of the internet that leads to this machine is not answered.
    assert client.get("/map.json", headers={"Host": "example.org"}).status_code == 400


def test_the_page_names_no_address_of_another_server():
    html = (PAGE / "index.html").read_text()
    found = [address for _, _, address in addresses(html)]
    assert "main.js" in found
    for address in found:
        assert not re.match(r"(\w+:)?//", address), address
    for file in PAGE.iterdir():
        outside = set(re.findall(r"https?://[^\s'\"]+", file.read_text()))
        assert outside <= {"http://www.w3.org/2000/svg"}, file


def test_the_command_serves_this_machine_only_and_ends_by_ctrl_c(maps):
    with viewed(maps) as (address, process):
        port = int(address.rstrip("/").rpartition(":")[2])
        assert address == f"http://127.0.0.1:{port}/"
        with socket.create_connection((HOST, port)) as open_one:
            # 127.0.0.2 is this machine, too, but not what the server is bound to.
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.2", port))
            open_one.sendall(b"GET /map.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert open_one.recv(100).startswith(b"HTTP/1.1 200 OK")
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=60)[1]
        assert (process.returncode, said) == (0, "")


def test_a_port_that_is_taken(maps):
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}: .*--port"):
            serve(ChangeFolder(maps), port=port, browser=False)

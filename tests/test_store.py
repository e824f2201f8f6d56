"""Imagery and shards in object storage, against a server that speaks S3."""

import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from geopandas import GeoDataFrame
from upath import UPath

from dsfer.data.layouts import LAYOUTS
from dsfer.data.polygons import rasterise_labels
from dsfer.data.rasters import SceneReader
from dsfer.data.scenes import Scene, read_scenes, write_scenes
from dsfer.paths import gdal_store_options, location
from pipeline.stages import crop, download, evaluate, shard, split, train
from tests.store import upload
from tests.test_bad_input import configure, content, imagery, refusal
from tests.test_crop import GRID, made_up, write

pytestmark = pytest.mark.xdist_group("store")  # one server for all


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/folder/mine").mkdir(parents=True)
    return tmp_path


def test_tiles_of_imagery_in_a_bucket_are_those_of_the_same_on_disk(project, store):
    imagery(project / "imagery", scenes=3)
    upload(project / "imagery", "s3://imagery/city")
    results = {}
    for source in ("imagery", "s3://imagery/city"):
        configure(project, source=source)
        download.main()
        crop.main()
        results[source] = content(project / "data/folder/mine/tiles")
        scenes = read_scenes(project / "data/folder/mine/raw/scenes.json")
        assert str(scenes[1].t2).endswith(f"{source}/B/s1.png")
    local, remote = results.values()
    assert local.pop("scenes.parquet") != remote.pop("scenes.parquet")  # where each file lies
    assert local == remote
    assert len(local) == 2


def test_pairs_and_polygons_in_a_bucket(project, store):
    t1, t2, _ = made_up(32, 48)
    for name, pixels in (("t1", t1), ("t2", t2)):
        write(project / f"coast/{name}.tif", pixels, crs="EPSG:32633", transform=GRID)
    corners = [GRID @ corner for corner in ((4, 2), (20, 2), (20, 30), (4, 30))]
    areas = GeoDataFrame(geometry=[shapely.Polygon(corners)], crs="EPSG:32633")
    areas.to_file(project / "coast/changed.gpkg")
    (project / "coast/pairs.csv").write_text("id,t1,t2,label\nport,t1.tif,t2.tif,changed.gpkg\n")
    labels = []
    for source in (project / "coast", upload(project / "coast", "s3://imagery/coast")):
        (scene,) = rasterise_labels(LAYOUTS["rasters"](source), project / source.parent.name, 255)
        assert scene.t1 == source / "t1.tif"
        labels.append(scene.label.read_bytes())
    assert labels[0] == labels[1]
    with rasterio.open(scene.label) as label:
        assert np.count_nonzero(label.read(1)) == 16 * 28


def test_scenes_of_both_places_are_listed(tmp_path):
    scenes = [
        Scene("a", tmp_path / "1.tif", UPath("s3://bucket/2.tif"), UPath("s3://bucket/l.tif"))
    ]
    write_scenes(tmp_path / "scenes.json", scenes)
    assert read_scenes(tmp_path / "scenes.json") == scenes


def test_an_object_that_was_replaced_is_read_anew(project, store):
    """Within one process, as that of a worker of a cluster, which sees many runs."""
    url = location("s3://replaced")
    scene = Scene("s", *(url / name for name in ("a.tif", "b.tif", "label.tif")))
    for seed in (1, 2):
        for file, pixels in zip(
            (scene.t1, scene.t2, scene.label), made_up(16, 16, seed), strict=True
        ):
            write(project / "new" / file.name, pixels)
        upload(project / "new", "s3://replaced/")
        with SceneReader(scene, None, "binary255") as reader:
            np.testing.assert_array_equal(reader.read(0, 16).t1, made_up(16, 16, seed)[0])


def test_training_from_the_store_gives_the_weights_of_training_from_disk(
    project, store, monkeypatch
):
    imagery(project / "imagery")
    monkeypatch.setenv("DSFER_CACHE", str(project / "cache"))
    weights, scores = [], []
    for place in (None, "s3://imagery/shards/"):
        configure(project, shards=place, in_memory=False, workers=1)
        for stage in (download, crop, split, shard, train, evaluate):
            stage.main()
        results = project / "data/folder/mine/models/dsfer-net"
        weights.append((results / "training/weights.safetensors").read_bytes())
        scores.append((results / "evaluation/tiles.csv").read_bytes())
        tars = list((project / "data/folder/mine/shards").rglob("*.tar"))
        assert len(tars) == (0 if place else 3)
    assert weights[0] == weights[1]
    assert scores[0] == scores[1]
    assert len(list((project / "cache").glob("*.tar"))) == 3


def no_bucket(folder: Path) -> None:
    configure(folder, source="s3://nowhere/city")


def lonely(folder: Path) -> None:
    UPath("s3://bad/label/s1.png").unlink()


def damaged(folder: Path) -> None:
    path = UPath("s3://bad/A/s2.png")
    path.write_bytes(path.read_bytes()[:3000])


def gone_meanwhile(folder: Path) -> None:
    UPath("s3://bad/B/s0.png").unlink()


@pytest.mark.parametrize(
    ("stage", "damage", "parts"),
    [
        (download, no_bucket, ["s3://nowhere/city: no such folder"]),
        (download, lonely, ["s3://bad/label: ", "lacks 's1'", "s3://bad/A/s1.png"]),
        (crop, damaged, ["s3://bad/A/s2.png: ", "damaged"]),
        (crop, gone_meanwhile, ["s3://bad/B/s0.png: no such file"]),
    ],
    ids=["bucket", "partner", "truncated", "gone"],
)
def test_bad_imagery_in_a_bucket(project, store, stage, damage, parts):
    imagery(project / "imagery", scenes=3)
    upload(project / "imagery", "s3://bad/")
    configure(project, source="s3://bad")
    if stage is crop:
        download.main()
    damage(project)
    message = refusal(stage.main)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:1", "Could not connect to the endpoint"),
        ("AWS_ACCESS_KEY_ID", None, "Unable to locate credentials"),
    ],
)
def test_a_store_that_cannot_be_reached(project, store, monkeypatch, variable, value, reason):
    if value is None:
        monkeypatch.delenv(variable)
    else:
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    UPath("s3://imagery").fs.clear_instance_cache()
    configure(project, source="s3://imagery/city")
    message = refusal(download.main, os.EX_TEMPFAIL)
    UPath("s3://imagery").fs.clear_instance_cache()
    assert f"s3://imagery/city: cannot be reached ({reason}" in message
    assert "AWS_ENDPOINT_URL" in message


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:topsecret@bucket/city",
        "s3://key:a/topsecret@bucket/city",
        "s3://bucket/city?token=topsecret",
        "simplecache::s3://key:topsecret@bucket/city",
    ],
)
def test_credentials_in_a_url_are_refused_unseen(project, url):
    configure(project, source=url)
    message = refusal(download.main)
    assert "params.yaml, source: " in message and "by the environment alone" in message
    assert "topsecret" not in message


def test_gdal_is_told_of_the_endpoint(monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    assert "AWS_S3_ENDPOINT" not in gdal_store_options()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://store.example:9000/")
    options = gdal_store_options()
    assert (options["AWS_S3_ENDPOINT"], options["AWS_HTTPS"]) == ("store.example:9000", "YES")

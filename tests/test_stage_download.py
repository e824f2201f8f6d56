import zipfile
from pathlib import Path

import geopandas
import pytest
import rasterio
from PIL import Image
from shapely.geometry import box

from dsfer.data.scenes import read_scenes
from dsfer.errors import DataError, DownloadError
from pipeline.catalog import CATALOG, Archive, DatasetEntry, catalog_entry
from pipeline.params import DataSettings
from pipeline.stages.download import acquire


def settings(entry: DatasetEntry, split: str, source: Path = CATALOG) -> DataSettings:
    return DataSettings(
        entry=entry,
        source=str(source),
        label_rule=entry.label_rule,
        bands=None,
        tile_size=64,
        padding="pad",
        split=split,
        split_ratio=entry.policy(split).ratio,
        split_seed=0,
    )


def with_archives(name: str, release: str, *archives: Archive) -> DatasetEntry:
    """A data set of the catalog whose archives are replaced by small ones."""
    entry = catalog_entry(name)
    small = entry.releases[release].model_copy(update={"archives": archives})
    return entry.model_copy(update={"releases": entry.releases | {release: small}})


def small_zip(folder: Path, name: str, *members: str, into: str = "") -> Archive:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as archive:
        for member in members:
            archive.writestr(member, member)
    return Archive(name=name, kind="zip", into=into, by_hand="the homepage")


def triple(stem: str) -> list[str]:
    return [f"{part}/{stem}.png" for part in ("A", "B", "label")]


def test_demo_is_rendered(tmp_path):
    entry = catalog_entry("demo")
    assert entry.demo is not None
    small = entry.demo.model_copy(update={"count": 2, "size": 64})
    entry = entry.model_copy(update={"demo": small})
    acquire(settings(entry, "scenes"), tmp_path / "raw", tmp_path / "downloads")
    scenes = read_scenes(tmp_path / "raw" / "scenes.json")
    assert len(scenes) == 2
    with rasterio.open(scenes[0].t1) as image:
        assert image.shape == (64, 64)
        assert image.crs is not None


def test_archives_become_scenes_of_the_published_split(tmp_path):
    downloads = tmp_path / "downloads"
    archives = [
        small_zip(downloads, f"{split}.zip", *triple(f"{split}_1"), into=split)
        for split in ("train", "val", "test")
    ]
    data = settings(with_archives("levir-cd", "main", *archives), "published")
    for _ in range(2):  # the second time over what the first one left
        (tmp_path / "raw").mkdir(exist_ok=True)
        (tmp_path / "raw" / "stale").touch()
        acquire(data, tmp_path / "raw", downloads)
        scenes = read_scenes(tmp_path / "raw" / "scenes.json")
        assert [(scene.id, scene.split) for scene in scenes] == [
            ("train_1", "train"),
            ("val_1", "val"),
            ("test_1", "test"),
        ]
        assert scenes[1].t2.read_text() == "B/val_1.png"
        assert not (tmp_path / "raw" / "stale").exists()


def test_the_split_policy_chooses_the_release(tmp_path):
    members = ["before/before.tif", "after/after.tif", "change label/change_label.tif"]
    archive = small_zip(tmp_path / "downloads", "whu.zip", *(f"x/1. y/{m}" for m in members))
    data = settings(with_archives("whu-cd", "single", archive), "random")
    (scene,) = acquire(data, tmp_path / "raw", tmp_path / "downloads")
    assert (scene.id, scene.t1.read_text()) == ("whu", "x/1. y/before/before.tif")


def test_a_wrong_archive_leaves_no_list_of_scenes(tmp_path):
    archive = small_zip(tmp_path / "downloads", "whu.zip", "something/else.tif")
    data = settings(with_archives("whu-cd", "single", archive), "random")
    with pytest.raises(DataError, match=r"'before/before\.tif' is nowhere below"):
        acquire(data, tmp_path / "raw", tmp_path / "downloads")
    assert not (tmp_path / "raw" / "scenes.json").exists()


def test_a_missing_archive_says_where_to_put_it(tmp_path):
    with pytest.raises(DownloadError, match=r"Building change detection dataset\.zip: has no pub"):
        acquire(
            settings(catalog_entry("whu-cd"), "random"), tmp_path / "raw", tmp_path / "downloads"
        )


def own_folder(root: Path) -> Path:
    for member in triple("a") + triple("b"):
        (root / member).parent.mkdir(parents=True, exist_ok=True)
        (root / member).write_text(member)
    return root


def test_own_imagery_is_listed_where_it_lies(tmp_path):
    source = own_folder(tmp_path / "mine")
    with rasterio.open(
        source / "label" / "b.png", "w", driver="PNG", width=2, height=2, count=1, dtype="uint8"
    ):
        pass
    for stem in ("a", "b"):
        (source / "label" / f"{stem}.png").write_bytes((source / "label" / "b.png").read_bytes())
    acquire(
        settings(catalog_entry("folder/mine"), "scenes", source), tmp_path / "raw", tmp_path / "d"
    )
    scenes = read_scenes(tmp_path / "raw" / "scenes.json")
    assert [scene.t1 for scene in scenes] == [source / "A" / "a.png", source / "A" / "b.png"]
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["scenes.json"]


def test_a_published_split_that_is_not_there_stops_at_once(tmp_path):
    archive = small_zip(tmp_path / "downloads", "all.zip", *triple("a"))
    entry = with_archives("folder", "main", archive)
    with pytest.raises(DataError, match="'a' has none") as caught:
        acquire(settings(entry, "published"), tmp_path / "raw", tmp_path / "downloads")
    assert "set split to scenes, random or spatial" in str(caught.value)
    assert not (tmp_path / "raw" / "scenes.json").exists()


def outside(folder: Path) -> Path:
    """A folder of one pair whose label lies elsewhere, as `elsewhere/label.png`."""
    for name in ("own/t1.png", "own/t2.png", "elsewhere/label.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(folder / name)
    return folder / "own"


@pytest.mark.parametrize("label", ["../elsewhere/label.png", "link/label.png"])
def test_what_dvc_would_not_watch_is_refused(tmp_path, label):
    source = outside(tmp_path)
    (source / "link").symlink_to(tmp_path / "elsewhere")
    (source / "pairs.csv").write_text(f"id,t1,t2,label\na,t1.png,t2.png,{label}\n")
    data = settings(catalog_entry("rasters"), "spatial", source)
    with pytest.raises(DataError, match=r"label\.png: lies outside .*own.* link it there"):
        acquire(data, tmp_path / "raw", tmp_path / "downloads")
    assert not (tmp_path / "raw" / "scenes.json").exists()


def test_linked_files_are_watched(tmp_path):
    source = outside(tmp_path)
    (source / "label.png").symlink_to(tmp_path / "elsewhere" / "label.png")
    (source / "pairs.csv").write_text("id,t1,t2,label\na,t1.png,t2.png,label.png\n")
    data = settings(catalog_entry("rasters"), "spatial", source)
    assert len(acquire(data, tmp_path / "raw", tmp_path / "downloads")) == 1


def test_label_polygons_become_rasters(tmp_path):
    for name in ("t1.tif", "t2.tif"):
        with rasterio.open(
            tmp_path / name, "w", driver="GTiff", width=20, height=10, count=3, dtype="uint8",
            crs="EPSG:32633", transform=rasterio.transform.from_origin(500_000, 5_000_000, 1, 1),
        ):  # fmt: skip
            pass
    area = geopandas.GeoDataFrame(geometry=[box(500_000, 4_999_995, 500_004, 5e6)], crs=32633)
    area.to_file(tmp_path / "area.gpkg")
    (tmp_path / "pairs.csv").write_text("id,t1,t2,label\nport,t1.tif,t2.tif,area.gpkg\n")
    data = settings(catalog_entry("rasters/port"), "spatial", tmp_path)
    (scene,) = acquire(data, tmp_path / "raw", tmp_path / "downloads")
    assert scene.label == tmp_path / "raw" / "labels" / "port.tif"
    with rasterio.open(scene.label) as label:
        assert (label.read(1) == 255).sum() == 20

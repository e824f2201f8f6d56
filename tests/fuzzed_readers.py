"""What reads files, each with a valid set of them: the table that `tests.fuzzing` works through."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import torch
from shapely.geometry import box
from torch import nn

from dsfer.checkpoint import load_checkpoint, save_checkpoint
from dsfer.data.layouts import flat, rasters
from dsfer.data.manifest import COLUMNS, read_manifest
from dsfer.data.polygons import rasterise
from dsfer.data.rasters import SceneReader, inspect_scene
from dsfer.data.scenes import Scene, read_scenes, write_scenes
from dsfer.data.shards import TileShards
from dsfer.weights import Metadata, load_weights, read_state_dict, save_weights
from pipeline.archives import check_integrity, check_magic, unpack
from pipeline.catalog import CATALOG, Archive, load_catalog
from pipeline.download import PINS, verify
from pipeline.params import load_params, resolve
from pipeline.published import PUBLISHED, load_published
from pipeline.recipes import RECIPES, load_recipes
from pipeline.report import build_report
from pipeline.results import read_figures, read_results, read_split
from tests.made_up_run import write_run
from tests.test_archives import rarred, zipped
from tests.test_crop import GRID, cut, made_up, scene, write
from tests.test_evaluation import shards_of

ROOT = Path(__file__).parents[1]

Files = list[Path]


@dataclass(frozen=True)
class Reader:
    """Something that reads files.

    Attributes:
        files: write a valid set of files into a folder; returns those to damage, one at a time.
        read: read what lies in the folder, and check that what comes back is sound.
        share: of the inputs that are asked for, less for what is slow.
    """

    files: Callable[[Path], Files]
    read: Callable[[Path], None]
    share: float = 1.0


def image_files(suffix: str, **profile: object) -> Callable[[Path], Files]:
    def files(folder: Path) -> Files:
        pair = scene(folder, 24, 20, suffix=suffix, **profile)
        return [pair.t1, pair.t2, pair.label]

    return files


def read_images(folder: Path) -> None:
    t1, t2, label = (next((folder / name).iterdir()) for name in ("A", "B", "label"))
    facts = inspect_scene(Scene("s", t1, t2, label), None)
    with SceneReader(facts.scene, None, "threshold128") as reader:
        for start in range(0, facts.rows, 16):
            strip = reader.read(start, min(start + 16, facts.rows))
            shape = (strip.stop - start, facts.cols)
            assert strip.t1.shape == strip.t2.shape == (*shape, 3)
            assert strip.label.shape == shape
            assert strip.t1.dtype == strip.t2.dtype == strip.label.dtype == np.uint8
            assert set(np.unique(strip.label)) <= {0, 1, 255}


def vector_files(folder: Path) -> Files:
    write(folder / "t1.tif", made_up(24, 20)[0], crs="EPSG:32633", transform=GRID)
    area = geopandas.GeoDataFrame(geometry=[box(1001, 1992, 1006, 1998)], crs=32633)
    area.to_file(folder / "area.geojson")
    return [folder / "area.geojson", folder / "t1.tif"]


def read_vectors(folder: Path) -> None:
    rasterise(folder / "area.geojson", folder / "t1.tif", folder / "label.tif", 255)


def tile_files(folder: Path) -> TileShards:
    cut([scene(folder, 20, 30, split="train")], folder / "tiles", size=16)
    return shards_of(folder, read_manifest(folder / "tiles" / "manifest.parquet"))


def shard_files(name: str) -> Callable[[Path], Files]:
    def files(folder: Path) -> Files:
        return sorted(tile_files(folder).folder.glob(name))

    return files


def read_shards(folder: Path) -> None:
    """Without comparing hashes, which would refuse every damage before it is read."""
    shards = TileShards(folder / "shards/test", verify=False)
    side = shards.tile_size
    assert len(shards.mean) == len(shards.std) == 3
    for pair, label in (shards[i] for i in range(len(shards))):
        assert (pair.shape, label.shape) == ((2, side, side, 3), (side, side))
        assert pair.dtype == label.dtype == np.uint8


def manifest_files(folder: Path) -> Files:
    tile_files(folder)
    return [folder / "tiles/manifest.parquet"]


def read_rows(folder: Path) -> None:
    table = read_manifest(folder / "tiles/manifest.parquet")
    assert set(COLUMNS) <= set(table)
    assert len(table) == 4
    pd.testing.assert_series_equal(table["row"], pd.Series([0, 0, 16, 16], name="row"))


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def checkpoint_files(folder: Path) -> Files:
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.rand(4, 3, 3, 3)}}
    state = {"fingerprint": "run", "step": 3, "model": small_network().state_dict(),
             "optimiser": {"state": moments, "param_groups": [{"lr": 1e-3, "params": [0]}]},
             "history": [{"step": 1.0}]}  # fmt: skip
    save_checkpoint(folder / "last.pt", state)
    return [folder / "last.pt"]


def read_checkpoint(folder: Path) -> None:
    state = load_checkpoint(folder / "last.pt", "run")
    assert state is not None
    assert state["fingerprint"] == "run"
    assert identical(state["model"], small_network())


def identical(states: dict[str, torch.Tensor], network: nn.Module) -> bool:
    """Whether a checksum kept every flipped bit out."""
    own = network.state_dict()
    return states.keys() == own.keys() and all(torch.equal(states[key], own[key]) for key in own)


def weights_files(folder: Path) -> Files:
    metadata = Metadata("dsfer-net", {"width": 0.5}, (1.0, 2.0, 3.0), (1.0, 1.0, 1.0))
    save_weights(small_network(), folder / "w.safetensors", metadata)
    return [folder / "w.safetensors", folder / "w.json"]


def read_weights(folder: Path) -> None:
    network = small_network()
    metadata = load_weights(network, folder / "w.safetensors", model_name="dsfer-net")
    assert identical(network.state_dict(), small_network())
    assert len(metadata.mean) == len(metadata.std) == 3
    assert isinstance(metadata.options, dict)


def torch_files(*, legacy: bool) -> Callable[[Path], Files]:
    def files(folder: Path) -> Files:
        states = {"state_dict": small_network().state_dict(), "epoch": 3}
        torch.save(states, folder / "w.pth", _use_new_zipfile_serialization=not legacy)
        return [folder / "w.pth"]

    return files


def read_torch(folder: Path) -> None:
    states = read_state_dict(folder / "w.pth")
    assert all(isinstance(value, torch.Tensor) for value in states.values())


def read_zipped_torch(folder: Path) -> None:
    assert identical(read_state_dict(folder / "w.pth"), small_network())


def copied(source: Path) -> Callable[[Path], Files]:
    def files(folder: Path) -> Files:
        (folder / source.name).write_bytes(source.read_bytes())
        return [folder / source.name]

    return files


def read_params(folder: Path) -> None:
    resolve(load_params(folder / "params.yaml")).resolved()


def list_files(folder: Path) -> Files:
    for name in ("A/a.png", "B/a.png", "label/a.png", "A/b.png", "B/b.png", "label/b.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    (folder / "list").mkdir()
    for name, text in (("train", "a.png\n"), ("test", "b\n")):
        (folder / f"list/{name}.txt").write_text(text)
    (folder / "pairs.csv").write_text(
        "id,t1,t2,label,split\np,A/a.png,B/a.png,label/a.png,train\n"
        "q,A/b.png,B/b.png,label/b.png,test\n"
    )
    return [folder / "pairs.csv", folder / "list/train.txt", folder / "list/test.txt"]


def read_lists(folder: Path) -> None:
    for found in (rasters(folder), flat(folder)):
        assert all(one.id and one.split in ("train", "val", "test", None) for one in found)


def scenes_files(folder: Path) -> Files:
    list_files(folder)
    write_scenes(folder / "scenes.json", rasters(folder))
    return [folder / "scenes.json"]


def read_list_of_scenes(folder: Path) -> None:
    for one in read_scenes(folder / "scenes.json"):
        assert isinstance(one.id, str)
        assert one.split in ("train", "val", "test", None)


CONTENT = {"A/1.png": b"before " * 50, "B/1.png": b"after " * 50, "label/1.png": b"\0" * 99}


def zip_files(folder: Path) -> Files:
    return [zipped(folder / "a.zip", CONTENT)]


def rar_files(folder: Path) -> Files:
    return [rarred(folder / "a.rar", CONTENT)]


def read_archive(kind: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        path = folder / f"a.{kind}"
        os.environ["PATH"] = ""  # programs for RAR are not ours to test
        check_magic(path, kind)
        unpack(path, kind, folder / "raw")
        check_integrity(path, kind)
        for place in (folder / "raw").rglob("*"):
            assert not place.is_symlink()

    return read


def pin_files(folder: Path) -> Files:
    zip_files(folder)
    verify(folder / "a.zip", pinned(), folder)
    return [folder / PINS, folder / "a.zip"]


def pinned() -> Archive:
    return Archive(name="a.zip", kind="zip", by_hand="the homepage")


def read_pins(folder: Path) -> None:
    verify(folder / "a.zip", pinned(), folder)


def run_files(folder: Path) -> Files:
    write_run(folder)
    return sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".csv"))


def read_run(folder: Path) -> None:
    results = read_results(folder, "dsfer-net")
    figures = read_figures(folder / "models/dsfer-net/figures")
    assert "</html>" in build_report(results, figures)


def split_files(folder: Path) -> Files:
    write_run(folder)
    return [folder / "split/split.json"]


def read_split_record(folder: Path) -> None:
    assert isinstance(read_split(folder).hash, str)


def yaml_files(folder: Path) -> Files:
    return copied(ROOT / "params.yaml")(folder)


READERS = {
    "image-png": Reader(image_files(".png"), read_images),
    "image-jpeg": Reader(image_files(".jpg"), read_images),
    "image-tiff": Reader(image_files(".tif", crs="EPSG:32633", transform=GRID), read_images),
    "image-tiff-deflate": Reader(
        image_files(".tif", compress="deflate", tiled=True, blockxsize=16, blockysize=16, nodata=0),
        read_images,
    ),
    "image-tiff-lzw": Reader(image_files(".tif", compress="lzw", predictor=2), read_images),
    "label-polygons": Reader(vector_files, read_vectors),
    "shard-tar": Reader(shard_files("*.tar"), read_shards),
    "shard-index": Reader(shard_files("index.json"), read_shards),
    "shard-manifest": Reader(shard_files("manifest.parquet"), read_shards),
    "manifest": Reader(manifest_files, read_rows),
    "checkpoint": Reader(checkpoint_files, read_checkpoint),
    "weights": Reader(weights_files, read_weights),
    "torch": Reader(torch_files(legacy=False), read_zipped_torch),
    "torch-legacy": Reader(torch_files(legacy=True), read_torch),
    "params": Reader(yaml_files, read_params),
    "catalog": Reader(copied(CATALOG), lambda f: load_catalog.__wrapped__(f / CATALOG.name), 0.5),
    "recipes": Reader(copied(RECIPES), lambda f: load_recipes.__wrapped__(f / RECIPES.name)),
    "published": Reader(
        copied(PUBLISHED), lambda f: load_published.__wrapped__(f / PUBLISHED.name), 0.5
    ),
    "lists": Reader(list_files, read_lists),
    "scenes": Reader(scenes_files, read_list_of_scenes),
    "split": Reader(split_files, read_split_record),
    "run": Reader(run_files, read_run, share=0.05),
    "zip": Reader(zip_files, read_archive("zip")),
    "rar": Reader(rar_files, read_archive("rar")),
    "pins": Reader(pin_files, read_pins),
}

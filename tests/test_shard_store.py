"""Shards in object storage: written there, and read through a cache on this machine's disk."""

import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from upath import UPath

from dsfer.data import shard_cache, shards
from dsfer.data.batches import BatchSource
from dsfer.data.manifest import write_table
from dsfer.data.shard_cache import ShardCache
from dsfer.data.shards import TileShards, write_shards
from dsfer.data.workers import Processes
from dsfer.errors import DataError, NoStoreError, ShardError
from dsfer.paths import location
from tests.disks import PAGE
from tests.store import upload
from tests.test_shards import STATISTICS, damage, pixels
from tests.test_shards import content as files_of
from tests.test_shards import tiles as tiles  # a fixture

pytestmark = pytest.mark.xdist_group("store")

ROOT = Path(__file__).parents[1]
SHARDS = 3


def write(tiles, out, url=None):
    folder, manifest = tiles
    write_shards(
        folder, manifest, out, split="train", split_hash="0123456789ab", statistics=STATISTICS,
        spread=Processes(1), store=url, tiles_per_shard=3,
    )  # fmt: skip


@pytest.fixture
def url(tmp_path, store) -> str:
    """A folder of the object store that no other test knows."""
    (tmp_path / "nothing").mkdir()
    return str(upload(tmp_path / "nothing", f"s3://shards/{tmp_path.name}"))


@pytest.fixture
def published(tiles, tmp_path, url) -> Path:
    write(tiles, tmp_path / "index", url)
    return tmp_path / "index"


@pytest.fixture
def cache(tmp_path) -> ShardCache:
    return ShardCache(tmp_path / "cache")


@pytest.fixture
def fetched(monkeypatch) -> list[str]:
    """Names of the shards that were fetched."""
    names: list[str] = []
    download = shard_cache.download

    def counted(source: str, file: Path) -> None:
        names.append(source.rpartition("/")[2])
        download(source, file)

    monkeypatch.setattr(shard_cache, "download", counted)
    return names


def home(folder: Path, url: str) -> UPath:
    """Where the shards lie."""
    return UPath(url) / json.loads((folder / "index.json").read_text())["name"]


def kept(cache: ShardCache) -> list[Path]:
    return sorted(cache.folder.glob("*.tar"))


def assert_all_right(data: TileShards) -> None:
    for number in (6, 0, 3, 1, 2, 5, 4):
        dates, label = data[number]
        np.testing.assert_array_equal(dates, pixels(number)[0])
        np.testing.assert_array_equal(label, pixels(number)[1])


def test_the_store_gets_the_bytes_that_a_disk_would(tiles, published, url, tmp_path):
    write(tiles, tmp_path / "disk")
    disk = files_of(tmp_path / "disk")
    assert files_of(published) == {n: disk[n] for n in ("index.json", "manifest.parquet")}
    place = home(published, url)
    assert {file.name: file.read_bytes() for file in place.iterdir()} == disk


WRITER = """
import sys
from pathlib import Path
from dsfer.data.manifest import read_table
from dsfer.data.shards import Statistics, write_shards
from dsfer.data.workers import Processes
folder, out, url = sys.argv[1:]
write_shards(
    Path(folder), read_table(Path(folder, "rows")), Path(out), split="train",
    split_hash="0123456789ab", statistics=Statistics(*STATISTICS), spread=Processes(2),
    store=url, tiles_per_shard=3,
)
"""


def test_worker_processes_upload_what_they_write(tiles, published, url, tmp_path):
    """In an interpreter of its own: workers get the environment of their first parent."""
    folder, manifest = tiles
    write_table(folder / "rows", manifest)
    code = WRITER.replace("STATISTICS", repr(tuple(STATISTICS)))
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "out"), f"{url}/two"]
    subprocess.run(command, cwd=ROOT, check=True)
    one, two = home(published, url), home(tmp_path / "out", f"{url}/two")
    assert {file.name: file.read_bytes() for file in two.iterdir()} == {
        file.name: file.read_bytes() for file in one.iterdir()
    }
    assert files_of(tmp_path / "out") == files_of(published)


def test_shards_are_fetched_when_they_are_needed_and_once(published, url, cache, fetched):
    data = TileShards(published, store=url, cache=cache)
    assert fetched == []
    np.testing.assert_array_equal(data[4][0], pixels(4)[0])
    assert fetched == ["shard-000001.tar"]
    assert_all_right(data)
    again = TileShards(published, store=url, cache=cache)
    assert_all_right(again)
    assert_all_right(pickle.loads(pickle.dumps(again)))
    assert sorted(fetched) == [f"shard-{number:06d}.tar" for number in range(SHARDS)]


def test_a_folder_of_the_store_is_read_by_its_url(published, url, cache):
    data = TileShards(str(home(published, url)), cache=cache)
    assert list(data.manifest["id"]) == list(data.ids)
    assert_all_right(data)


def test_what_was_published_is_not_changed(tiles, published, url, tmp_path):
    folder, manifest = tiles
    write((folder, manifest[:5]), tmp_path / "fewer", url)
    assert home(tmp_path / "fewer", url) != home(published, url)
    assert len(list(home(published, url).iterdir())) == SHARDS + 2


def test_a_damaged_file_of_the_cache_is_fetched_again(published, url, cache, fetched, caplog):
    assert_all_right(TileShards(published, store=url, cache=cache))
    damage(kept(cache)[0], 700)
    kept(cache)[1].write_bytes(kept(cache)[1].read_bytes()[:2000])
    assert_all_right(TileShards(published, store=url, cache=cache))
    assert len(fetched) == SHARDS + 2
    assert "removed, to be fetched again" in caplog.text


def test_processes_that_share_the_hashing_take_a_part_of_the_cache_each(published, url, cache):
    assert_all_right(TileShards(published, store=url, cache=cache))
    for file in kept(cache):
        damage(file, 700)
    TileShards(published, store=url, cache=cache, verify=slice(1, None, 2))
    first, _, last = json.loads((published / "index.json").read_text())["shards"]
    assert {file.stem for file in kept(cache)} == {first["sha256"], last["sha256"]}


def test_a_damaged_object_is_named_with_both_hashes(published, url, cache):
    shard = home(published, url) / "shard-000001.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(bytes(content))
    data = TileShards(published, store=url, cache=cache)
    expected = json.loads((published / "index.json").read_text())["shards"][1]["sha256"]
    with pytest.raises(ShardError, match=rf"has SHA-256 \w+, .* says {expected}") as refused:
        data[3]
    assert str(refused.value).startswith(f"{shard}: ")
    assert kept(cache) == []


def test_a_missing_object_is_named(published, url, cache):
    (home(published, url) / "shard-000002.tar").unlink()
    data = TileShards(published, store=url, cache=cache)
    with pytest.raises(ShardError, match=r"s3://\S+/shard-000002\.tar: no such shard"):
        data[6]
    with pytest.raises(ShardError, match=r"s3://\S+/nowhere/index\.json: no such file"):
        TileShards(f"{url}/nowhere", cache=cache)


def test_shards_of_other_data_under_the_right_name(tiles, published, url, tmp_path, cache):
    """Hash and size agree with the index, but the index with nothing."""
    index = json.loads((published / "index.json").read_text())
    index["shards"][0] = {**index["shards"][1], "file": "shard-000001.tar"}
    (published / "index.json").write_text(json.dumps(index))
    data = TileShards(published, store=url, cache=cache)
    with pytest.raises(ShardError, match=r"s3://\S+/shard-000001\.tar: member scene_00003"):
        data[0]


def test_a_manifest_of_another_version(tiles, published):
    _, manifest = tiles
    rows = manifest.sort_values("id").assign(scene="another")
    rows.to_parquet(published / "manifest.parquet", index=False)
    with pytest.raises(ShardError, match=r"manifest\.parquet: has SHA-256 \w+, and should have"):
        TileShards(published)


def test_many_readers_fetch_each_shard_once(published, url, cache, fetched):
    readers = [TileShards(published, store=url, cache=cache) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(assert_all_right, readers))
    assert len(fetched) == SHARDS


def test_a_disk_too_small_is_refused_before_anything_is_fetched(
    published, url, small_disk, fetched
):
    cache = ShardCache(small_disk.folder / "cache")
    index = json.loads((published / "index.json").read_text())
    size = sum(shard["bytes"] for shard in index["shards"])
    small_disk.fill(size - 1)
    with pytest.raises(DataError, match=r"cache: \S+ kB of shards are to be .*set DSFER_CACHE"):
        TileShards(published, store=url, cache=cache)
    assert fetched == []
    small_disk.fill(size + SHARDS * PAGE)
    assert_all_right(TileShards(published, store=url, cache=cache))
    small_disk.fill()
    assert_all_right(TileShards(published, store=url, cache=cache))  # nothing more is needed


def test_a_disk_that_is_full_when_a_shard_comes(published, url, small_disk):
    cache = ShardCache(small_disk.folder / "cache")
    data = TileShards(published, store=url, cache=cache)
    small_disk.fill()
    with pytest.raises(OSError, match="No space left") as refused:
        data[0]
    assert Path(refused.value.filename).parent == cache.folder
    assert kept(cache) == []


def test_threads_that_read_ahead_fetch_what_they_need(published, url, tmp_path, monkeypatch):
    monkeypatch.setenv("DSFER_CACHE", str(tmp_path / "cache"))
    data = TileShards(str(home(published, url)))
    source = BatchSource(data, torch.device("cpu"), in_memory=False, workers=2)
    order = np.array([6, 0, 3, 3, 5])
    batches = list(source.batches(order, 2))
    pairs = torch.cat([pair for pair, _ in batches]).numpy()
    np.testing.assert_array_equal(pairs, np.stack([pixels(number)[0] for number in order]))
    assert len(list((tmp_path / "cache").glob("*.tar"))) == SHARDS


def test_an_index_comes_last(tiles, tmp_path, url, monkeypatch):
    monkeypatch.setattr(shards, "upload", lambda file, target: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(tiles, tmp_path / "out", url)
    assert not (tmp_path / "out").exists()
    (folder,) = UPath(url).iterdir()
    assert [file.suffix for file in folder.iterdir()] == [".tar"] * SHARDS


def test_a_store_that_refuses(tiles, tmp_path, store):
    with pytest.raises(NoStoreError, match=r"s3://nowhere/x/train-\w+/shard-000000\.tar: no such"):
        write(tiles, tmp_path / "out", "s3://nowhere/x")
    assert not (tmp_path / "out").exists()


def test_the_cache_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.delenv("DSFER_CACHE", raising=False)
    assert ShardCache.of_this_machine() == ShardCache(Path.home() / ".cache/dsfer")
    monkeypatch.setenv("DSFER_CACHE", str(tmp_path))
    assert ShardCache.of_this_machine() == ShardCache(tmp_path)


@pytest.mark.parametrize("url", ["foo://bucket/x", "s3:///x"])
def test_a_url_of_no_store(url):
    with pytest.raises(NoStoreError, match=r"://\S+: no URL of an object store .*s3://BUCKET"):
        location(url)

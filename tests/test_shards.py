import hashlib
import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import webdataset

from dsfer.data.manifest import COLUMNS
from dsfer.data.shards import Statistics, TileShards, data_statistics, write_shards
from dsfer.data.tars import npy_bytes, tar_members, write_tar
from dsfer.data.workers import Processes
from dsfer.distributed import local_share
from dsfer.errors import DataError, ShardError
from tests.test_crop import elsewhere

SIDE = 8
STATISTICS = Statistics((10.0, 20.0, 30.0), (1.0, 2.0, 3.0), (0.9, 0.1))


def pixels(number):
    rng = np.random.default_rng(number)
    dates = rng.integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
    return dates, rng.integers(0, 2, (SIDE, SIDE), dtype=np.uint8)


@pytest.fixture
def tiles(tmp_path):
    """Seven tiles in two crop tars, and their manifest in an order that is not that of the ids."""
    folder, rows = tmp_path / "tiles", []
    folder.mkdir()
    for tar, numbers in (("tiles-000000.tar", (5, 1, 3)), ("tiles-000001.tar", (0, 2, 6, 4))):
        samples = []
        for number in numbers:
            (t1, t2), label = pixels(number)
            members = {"t1": npy_bytes(t1), "t2": npy_bytes(t2), "label": npy_bytes(label)}
            samples.append((f"scene_{number:05d}_00000", members))
            rows.append(
                dict.fromkeys(COLUMNS)
                | {"id": f"scene_{number:05d}_00000", "shard": tar, "size": SIDE}
                | {f"{m}_sha256": hashlib.sha256(b).hexdigest() for m, b in members.items()}
            )
        write_tar(folder / tar, samples)
    return folder, pd.DataFrame(rows)


@pytest.fixture
def shards(tiles, tmp_path):
    folder, manifest = tiles
    out = tmp_path / "shards" / "train"
    write(folder, manifest, out)
    return out


def write(folder, manifest, out, spread=None):
    write_shards(
        folder, manifest, out, split="train", split_hash="0123456789ab", statistics=STATISTICS,
        spread=spread or Processes(1), tiles_per_shard=3,
    )  # fmt: skip


def content(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def edit_index(folder, **changes):
    path = folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_tiles_come_back_in_the_order_of_their_ids(shards):
    data = TileShards(shards)
    assert len(data) == 7
    assert list(data.ids) == sorted(data.ids) == list(data.manifest["id"])
    for number in (6, 0, 3, 3):
        dates, label = data[number]
        assert dates.dtype == label.dtype == np.uint8
        np.testing.assert_array_equal(dates, pixels(number)[0])
        np.testing.assert_array_equal(label, pixels(number)[1])
    assert (data.split, data.split_hash, data.tile_size) == ("train", "0123456789ab", SIDE)
    assert (data.mean, data.std, data.class_frequency) == tuple(STATISTICS)


def test_no_tile_beyond_the_end(shards):
    data = TileShards(shards)
    with pytest.raises(IndexError, match="tile 7 of 7"):
        data[7]
    assert len(list(data)) == 7


def test_the_caller_may_write_to_what_it_gets(shards):
    data = TileShards(shards)
    dates, label = data[2]
    dates[:], label[:] = 0, 0
    np.testing.assert_array_equal(data[2][0], pixels(2)[0])


def test_same_bytes_on_every_run_and_for_every_row_order(tiles, shards, tmp_path):
    folder, manifest = tiles
    again = tmp_path / "again"
    write(folder, manifest.sample(frac=1, random_state=3), again)
    assert content(again) == content(shards)
    assert sorted(content(shards)) == [
        "index.json", "manifest.parquet", "shard-000000.tar", "shard-000001.tar",
        "shard-000002.tar",
    ]  # fmt: skip


# WebDataset leaves closing the file to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_them_without_pickle(shards):
    url = str(shards / "shard-000000.tar")
    samples = list(webdataset.WebDataset(url, shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in samples] == [f"scene_{n:05d}_00000" for n in range(3)]
    t1 = np.load(io.BytesIO(samples[1]["t1.npy"]), allow_pickle=False)
    np.testing.assert_array_equal(t1, pixels(1)[0][0])


def test_a_pickled_reader_reads_and_carries_no_pixels(shards):
    data = TileShards(shards)
    data[0]
    size = len(pickle.dumps(data))
    copy = pickle.loads(pickle.dumps(data))
    assert size == len(pickle.dumps(TileShards(shards)))
    np.testing.assert_array_equal(copy[4][0], pixels(4)[0])


def test_statistics_equal_those_of_the_pixels():
    dates = [pixels(number)[0].astype(np.int64) for number in range(3)]
    rows = pd.DataFrame(
        {
            "valid_pixels": SIDE * SIDE,
            "changed_pixels": [3, 5, 8],
            **{f"t{t + 1}_sum": [d[t].sum((0, 1)) for d in dates] for t in (0, 1)},
            **{
                f"t{t + 1}_sum_of_squares": [(d[t] ** 2).sum((0, 1)) for d in dates] for t in (0, 1)
            },
        }
    )
    mean, std, frequency = data_statistics(rows)
    pooled = np.stack(dates).reshape(-1, 3)
    np.testing.assert_allclose(mean, pooled.mean(0), rtol=1e-14)
    np.testing.assert_allclose(std, pooled.std(0), rtol=1e-14)
    assert frequency == pytest.approx((1 - 16 / 192, 16 / 192))


def test_statistics_of_nothing_are_refused():
    with pytest.raises(DataError, match="no valid pixel"):
        data_statistics(pd.DataFrame({"valid_pixels": [0], "changed_pixels": [0]}))


def test_a_member_that_differs_from_the_manifest_stops_the_copy(tiles, tmp_path):
    folder, manifest = tiles
    tar = folder / "tiles-000001.tar"
    offset, _ = tar_members(tar)["scene_00002_00000.t2.npy"]
    damage(tar, offset + 130)
    with pytest.raises(ShardError, match=r"tiles-000001\.tar: scene_00002_00000\.t2\.npy has SHA"):
        write(folder, manifest, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".tmp*"))


def test_a_tile_that_no_tar_holds(tiles, tmp_path):
    folder, manifest = tiles
    with pytest.raises(ShardError, match=r"tiles-000001\.tar: holds no scene_00001"):
        write(folder, manifest.assign(shard="tiles-000001.tar"), tmp_path / "out")
    with pytest.raises(ShardError, match=r"gone\.tar: no such file"):
        write(folder, manifest.assign(shard="gone.tar"), tmp_path / "out")


def test_a_split_without_tiles(tiles, tmp_path):
    folder, manifest = tiles
    with pytest.raises(DataError, match="the split 'train' has no tile"):
        write(folder, manifest[:0], tmp_path / "out")


def damage(path: Path, offset: int):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def cut_short(function, items, **_how):
    """A `Spread` of which this machine sees less than was written."""
    for item in items:
        yield function(item)
        os.truncate(item[-1], 2000)


def test_a_worker_makes_no_folder_for_a_shard(tiles, shards, tmp_path):
    before = content(shards)
    with pytest.raises(DataError, match=r"none/shard-000000\.tar: .* does not see the folder"):
        write(*tiles, shards, elsewhere(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    assert content(shards) == before


@pytest.mark.parametrize("where", ["elsewhere", "here, cut short"])
def test_shards_that_do_not_arrive_are_missed(tiles, shards, tmp_path, where):
    (tmp_path / "other").mkdir()
    spread = elsewhere(tmp_path / "other") if where == "elsewhere" else cut_short
    before = content(shards)
    with pytest.raises(
        DataError, match=r"train/shard-000000\.tar: a worker wrote it where .* share"
    ):
        write(*tiles, shards, spread)
    assert content(shards) == before


@pytest.mark.parametrize("offset", [0, 700, -1])
def test_a_flipped_byte(shards, offset):
    damage(shards / "shard-000001.tar", offset)
    with pytest.raises(ShardError, match=r"shard-000001\.tar: has SHA-256 .* To mend it: run the"):
        TileShards(shards)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_processes_of_a_machine_share_the_hashing(shards, monkeypatch, number):
    damage(shards / f"shard-00000{number}.tar", 700)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", str((number + 1) % 2))
    TileShards(shards, verify=local_share())
    monkeypatch.setenv("LOCAL_RANK", str(number % 2))
    with pytest.raises(ShardError, match=rf"shard-00000{number}\.tar: has SHA-256"):
        TileShards(shards, verify=local_share())


def test_a_missing_shard(shards):
    (shards / "shard-000002.tar").unlink()
    with pytest.raises(ShardError, match=r"shard-000002\.tar: no such shard"):
        TileShards(shards, verify=False)


def test_a_truncated_shard(shards):
    path = shards / "shard-000000.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:2000])
    with pytest.raises(ShardError, match=rf"has 2000 bytes, the index says {len(whole)}"):
        TileShards(shards, verify=False)
    with pytest.raises(ShardError, match="not a whole tar"):
        tar_members(path)


def test_shards_in_another_order(shards):
    first, second = shards / "shard-000000.tar", shards / "shard-000001.tar"
    first_bytes, second_bytes = first.read_bytes(), second.read_bytes()
    first.write_bytes(second_bytes)
    second.write_bytes(first_bytes)
    with pytest.raises(ShardError, match=r"shard-000000\.tar: has SHA-256"):
        TileShards(shards)
    with pytest.raises(ShardError, match=r"shard-000000\.tar: member scene_00003\S+ stands where"):
        TileShards(shards, verify=False)


def rewrite_first_shard(folder, change):
    """Pass the samples of the first shard through `change`, and make sizes and hashes agree."""
    path = folder / "shard-000000.tar"
    with tarfile.open(path) as tar:
        members = {item.name: tar.extractfile(item).read() for item in tar}
    names = list(dict.fromkeys(name.split(".")[0] for name in members))
    samples = [
        (tile, {m: members[f"{tile}.{m}.npy"] for m in ("t1", "t2", "label")}) for tile in names
    ]
    write_tar(path, change(samples))
    index = json.loads((folder / "index.json").read_text())
    data = path.read_bytes()
    index["shards"][0] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "index.json").write_text(json.dumps(index))


def test_reordered_members(shards):
    rewrite_first_shard(shards, lambda samples: samples[::-1])
    with pytest.raises(ShardError, match=r"member scene_00002\S+ stands where .* scene_00000"):
        TileShards(shards)


def test_a_shard_with_a_tile_less(shards):
    rewrite_first_shard(shards, lambda samples: samples[:2])
    with pytest.raises(ShardError, match="holds 6 members, the index expects 9"):
        TileShards(shards)


def test_a_tile_of_another_shape(shards):
    def grow(samples):
        samples[1][1]["t2"] = npy_bytes(np.zeros((SIDE, SIDE + 1, 3), np.uint8))
        return samples

    rewrite_first_shard(shards, grow)
    with pytest.raises(ShardError, match=r"scene_00001_00000\.t2\.npy is no uint8 array of 8 x 8"):
        TileShards(shards)


def test_ids_that_disagree_with_the_manifest(shards):
    ids = json.loads((shards / "index.json").read_text())["tiles"]
    edit_index(shards, tiles=[*ids[:4], "other", *ids[5:]])
    with pytest.raises(ShardError, match="row 4 is tile scene_00004_00000, the index says other"):
        TileShards(shards)


def test_counts_that_disagree(shards):
    edit_index(shards, count=8)
    with pytest.raises(ShardError, match="says 8 tiles, lists 7, and its shards hold 7"):
        TileShards(shards)


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 1}', '{"schema": 2}'])
def test_an_index_that_is_none(shards, text):
    (shards / "index.json").write_text(text)
    with pytest.raises(ShardError, match=r"index\.json: not"):
        TileShards(shards)


def test_an_empty_folder(tmp_path):
    with pytest.raises(ShardError, match=r"index\.json: no such file.* run the shard stage"):
        TileShards(tmp_path)

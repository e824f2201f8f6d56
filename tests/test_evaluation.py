"""Evaluation: counts of tiles and of stitched scenes, against plain loops over the pixels."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import dsfer
from dsfer.data.batches import BatchSource
from dsfer.data.crop import crop_scenes
from dsfer.data.fragments import cut_fragments
from dsfer.data.manifest import read_manifest
from dsfer.data.scenes import Scene
from dsfer.data.shards import Statistics, TileShards, write_shards
from dsfer.data.workers import Processes
from dsfer.evaluation import (
    Inference,
    assemble_scene,
    count_tiles,
    has_bf16,
    stitch,
    stitched_scenes,
    whole_scenes,
)
from dsfer.models.output import ChangeOutput
from dsfer.prediction import blend_weights, fading_sides, window_starts
from tests.test_crop import made_up, scene, write

SIZE = 16
SHAPES = {"even": (32, 48), "padded": (40, 21), "small": (10, 12)}
STATISTICS = Statistics((100.0, 110.0, 120.0), (50.0, 60.0, 70.0), (0.5, 0.5))


class Difference(nn.Module):
    """Change where date 2 is brighter; `context` adds a say of the whole window's mean."""

    def __init__(self, context: float = 0.0):
        super().__init__()
        self.context = context

    def forward(self, t1: torch.Tensor, t2: torch.Tensor) -> ChangeOutput:
        changed = (t2 - t1).mean(dim=1) + self.context * t2.mean(dim=(1, 2, 3))[:, None, None]
        return ChangeOutput(torch.stack((torch.zeros_like(changed), changed), dim=1))


def inference(**options) -> Inference:
    return Inference(torch.tensor(STATISTICS.mean), torch.tensor(STATISTICS.std), **options)


def shards_of(folder: Path, rows: pd.DataFrame) -> TileShards:
    write_shards(
        folder / "tiles", rows, folder / "shards" / "test",
        split="test", split_hash="0123456789ab", statistics=STATISTICS, spread=Processes(1),
        tiles_per_shard=4,
    )  # fmt: skip
    return TileShards(folder / "shards" / "test")


@pytest.fixture(scope="module")
def cropped(tmp_path_factory) -> Path:
    """Three scenes as tiles, one of them with nodata, one smaller than a tile."""
    folder = tmp_path_factory.mktemp("cropped")
    scenes = [
        scene(folder, *SHAPES[name], name=name, seed=i) for i, name in enumerate(SHAPES, start=1)
    ]
    t1, _, _ = made_up(*SHAPES["even"], seed=1)
    t1[3:9, 5:40] = 0
    scenes[0] = Scene(
        "even", write(folder / "hole.tif", t1, nodata=0), scenes[0].t2, scenes[0].label
    )
    crop_scenes(
        scenes, folder / "tiles", tile_size=SIZE, padding="pad", label_rule="binary255",
        bands=None, spread=Processes(1),
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def tiles(cropped: Path) -> TileShards:
    return shards_of(cropped, read_manifest(cropped / "tiles" / "manifest.parquet"))


def truth(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The pixels that the scene was written with."""
    t1, t2, label = made_up(*SHAPES[name], seed=list(SHAPES).index(name) + 1)
    label = label // 255
    if name == "even":
        t1[3:9, 5:40] = 0
        label[3:9, 5:40] = 255
    return np.stack((t1, t2)), label


def probability_of(pair: np.ndarray, context: float = 0.0) -> np.ndarray:
    """What `Difference` says, in float64."""
    t1, t2 = (pair.astype(float) - STATISTICS.mean) / STATISTICS.std
    return 1 / (1 + np.exp(-((t2 - t1).mean(-1) + context * t2.mean())))


def counted(predicted: np.ndarray, label: np.ndarray) -> list[int]:
    """tp, fp, fn, tn, pixel by pixel."""
    counts = [0, 0, 0, 0]
    for said, is_changed in zip(predicted.ravel().tolist(), label.ravel().tolist(), strict=True):
        if is_changed != 255:
            counts[{(1, 1): 0, (1, 0): 1, (0, 1): 2, (0, 0): 3}[int(said), is_changed]] += 1
    return counts


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("in_memory", [True, False])
def test_counts_of_tiles_are_those_of_a_plain_loop(tiles, batch_size, in_memory):
    source = BatchSource(tiles, torch.device("cpu"), in_memory=in_memory, workers=1)
    counts, rate = count_tiles(Difference(), source, inference(batch_size=batch_size))
    expected = [
        counted(probability_of(pair) > 0.5, label)
        for pair, label in (tiles[i] for i in range(len(tiles)))
    ]
    assert counts.tolist() == expected
    assert rate > 0
    for name, (rows, cols) in SHAPES.items():
        inside = counts[torch.tensor((tiles.manifest["scene"] == name).tolist())].sum()
        assert inside == rows * cols - (6 * 35 if name == "even" else 0)


def test_scenes_come_together_from_their_tiles(tiles):
    assert whole_scenes(tiles.manifest) == sorted(SHAPES)
    for name in SHAPES:
        pair, label = assemble_scene(tiles, name)
        expected_pair, expected_label = truth(name)
        np.testing.assert_array_equal(pair, expected_pair)
        np.testing.assert_array_equal(label, expected_label)


def test_a_scene_that_lacks_a_tile_is_not_whole(cropped, tmp_path):
    manifest = read_manifest(cropped / "tiles" / "manifest.parquet")
    for name in SHAPES:
        for tile in manifest["id"][manifest["scene"] == name]:
            rest = manifest[manifest["id"] != tile]
            assert whole_scenes(rest) == sorted(set(SHAPES) - {name})
    assert whole_scenes(manifest[:0]) == []


def test_windows_left_out_at_the_edge_leave_a_scene_that_is_not_whole(tmp_path):
    scenes = [scene(tmp_path, *SHAPES[name], name=name) for name in ("even", "padded")]
    crop_scenes(
        scenes, tmp_path / "tiles", tile_size=SIZE, padding="drop", label_rule="binary255",
        bands=None, spread=Processes(1),
    )  # fmt: skip
    assert whole_scenes(read_manifest(tmp_path / "tiles" / "manifest.parquet")) == ["even"]


def test_turned_fragments_never_make_a_scene(cropped, tmp_path):
    base = scene(tmp_path, 96, 96, name="wide")
    cut_fragments(
        [base], tmp_path / "tiles", size=SIZE, counts={"train": 12, "val": 12, "test": 36}, seed=0,
        label_rule="binary255", bands=None, spread=Processes(1),
    )  # fmt: skip
    fragments = read_manifest(tmp_path / "tiles" / "manifest.parquet")
    drawn = fragments["size"].pow(2).sum()
    # As many pixels as the scene has, by chance: they are still no scene.
    by_chance = fragments.assign(scene_rows=SIZE, scene_cols=drawn // SIZE)
    assert whole_scenes(fragments) == whole_scenes(by_chance) == []
    # Not even where every fragment starts on the grid.
    grid = read_manifest(cropped / "tiles" / "manifest.parquet")
    assert whole_scenes(grid.assign(angle=0.3)) == []
    model = Difference()
    with pytest.raises(StopIteration):
        next(stitched_scenes(model, shards_of(tmp_path, fragments), inference(), overlap=4))


def test_tiles_off_the_grid_or_twice_do_not_add_up_to_a_scene(cropped):
    manifest = read_manifest(cropped / "tiles" / "manifest.parquet")
    even = manifest[manifest["scene"] == "even"]
    assert whole_scenes(pd.concat([even[:-1], even[:1]])) == []
    shifted = even.assign(col=even["col"] + even["row"] // 2)
    assert whole_scenes(shifted) == []


@pytest.mark.parametrize("context", [0.0, 2.0])
@pytest.mark.parametrize("overlap", [0, 5])
def test_stitched_scenes_are_the_weighted_mean_of_their_windows(tiles, context, overlap):
    found = list(stitched_scenes(Difference(context), tiles, inference(), overlap=overlap))
    assert [each.scene for each in found] == sorted(SHAPES)
    for name, pair, label, probability in found:
        expected_pair, expected_label = truth(name)
        np.testing.assert_array_equal(pair, expected_pair)
        np.testing.assert_array_equal(label, expected_label)
        rows, cols = SHAPES[name]
        full = np.pad(
            pair,
            ((0, 0), (0, max(0, SIZE - rows)), (0, max(0, SIZE - cols)), (0, 0)),
            mode="edge",
        )
        total, weight = np.zeros(full.shape[1:3]), np.zeros(full.shape[1:3])
        for top in window_starts(rows, SIZE, overlap):
            for left in window_starts(cols, SIZE, overlap):
                window = slice(top, top + SIZE), slice(left, left + SIZE)
                sides = (fading_sides(top, SIZE, rows), fading_sides(left, SIZE, cols))
                weights = blend_weights(SIZE, overlap, *sides)
                total[window] += weights * probability_of(full[:, *window], context)
                weight[window] += weights
        assert probability.shape == (rows, cols)
        np.testing.assert_allclose(probability, (total / weight)[:rows, :cols], atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_network_itself_gives_the_same_for_any_batch_size(tiles, precision):
    torch.manual_seed(0)
    model = dsfer.create_model("dsfer-net", width=0.125, image_size=SIZE, hopfield_dim=16)
    source = BatchSource(tiles, torch.device("cpu"), in_memory=True)
    pair, _ = assemble_scene(tiles, "padded")
    results = []
    for batch_size in (1, 4, 32):
        run = inference(precision=precision, batch_size=batch_size)
        counts, _ = count_tiles(model, source, run)
        maps = stitch(model, pair, run, tile_size=SIZE, overlap=8)
        assert maps.dtype == np.float32
        assert ((maps >= 0) & (maps <= 1)).all()
        results.append((counts, maps))
    assert not model.training
    # Sums in another order may turn the pixels whose two scores are all but equal.
    near = 2e-2 if precision == "bf16" else 1e-5
    for counts, maps in results[1:]:
        np.testing.assert_allclose(maps, results[0][1], atol=near)
        assert (counts - results[0][0]).abs().sum() <= counts.sum() * near


def test_bf16_is_close_to_float32(tiles):
    torch.manual_seed(0)
    model = dsfer.create_model("dsfer-net", width=0.125, image_size=SIZE, hopfield_dim=16)
    pair, _ = assemble_scene(tiles, "even")
    full, half = (
        stitch(model, pair, inference(precision=precision), tile_size=SIZE, overlap=8)
        for precision in ("float32", "bf16")
    )
    assert not np.array_equal(full, half)  # autocast did something
    np.testing.assert_allclose(full, half, atol=0.05)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx2": True}, False)],
)
def test_bf16_is_for_cpus_that_multiply_in_it(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert has_bf16(torch.device("cpu")) == expected

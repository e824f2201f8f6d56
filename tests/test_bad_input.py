"""Bad input as a user meets it: a stage stops with one message, and leaves nothing half-written.

What the functions below the stages make of bad input is tested beside them (test_layouts,
test_crop, test_shards, test_weights, ...); here whole stages run. A GPU that runs out of memory
cannot be provoked where there is none; test_training pretends that it does.
"""

import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rasterio.transform import Affine
from ruamel.yaml import YAML

import dsfer
from dsfer.checkpoint import save_checkpoint
from dsfer.data.manifest import read_manifest, write_manifest
from dsfer.data.shards import TileShards
from dsfer.files import read_json
from dsfer.weights import SCHEMA, Metadata, save_weights
from pipeline import stages
from pipeline.params import current_settings
from pipeline.stages import crop, download, evaluate, shard, split, train, validate
from tests.test_crop import GRID, write

ROOT = Path(__file__).parents[1]
TINY = {
    "dataset": "folder/mine", "source": "imagery", "tile_size": 32, "padding": "pad",
    "split": "scenes", "split_ratio": [2, 1, 1], "split_seed": 0, "label_rule": None,
    "model": "dsfer-net", "variant": "base+cf+dsfr", "norm": "volume", "hopfield_dim": 16,
    "width": 0.125, "pretrained": "none", "recipe": "modern", "iterations": 2, "batch_size": 2,
    "validate_every": 2, "class_weights": "inverse-frequency", "device": "cpu", "compile": False,
    "in_memory": True, "workers": 1,
}  # fmt: skip


def configure(folder: Path, **changes: Any) -> None:
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load((ROOT / "params.yaml").read_text()) | TINY | changes
    with (folder / "params.yaml").open("w") as file:
        yaml.dump(values, file)


def imagery(folder: Path, *, scenes: int = 4, size: int = 64, changed: bool = True) -> None:
    """A user's folder of small scenes."""
    rng = np.random.default_rng(0)
    for i in range(scenes):
        label = np.zeros((size, size), np.uint8)
        label[: size // 2, ::3] = 255 * changed
        pixels = {
            "A": rng.integers(0, 256, (size, size, 3), dtype=np.uint8),
            "B": rng.integers(0, 256, (size, size, 3), dtype=np.uint8),
            "label": label,
        }
        for name, values in pixels.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(folder / name / f"s{i}.png")


def content(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its bytes, and every folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.suffix != ".lock" and path.relative_to(folder).parts not in SCRATCH
    }


SCRATCH = ((".dvc",), (".dvc", "tmp"), (".dvc", "tmp", "resume"))
"""Folders that hold the locks of training runs; what else lies in them counts."""


def refusal(main: Callable[[], None], status: int = 1) -> str:
    """What a stage says when it stops on an error; nothing in the project may have changed."""
    before = content(Path())
    ended, message = ending(main)
    assert ended == status
    assert message.startswith("error: ")
    assert message.count("To mend it: ") == 1
    assert "\n" not in message and "Traceback" not in message
    assert content(Path()) == before
    return message


def ending(main: Callable[[], None]) -> tuple[int, str]:
    """The exit status of a stage that stops, and its last line."""
    said = io.StringIO()
    with pytest.raises(SystemExit) as stop, redirect_stderr(said):
        stages.run(main)
    return stop.value.code, said.getvalue().rstrip("\n").rpartition("\n")[2]


def process(module: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A stage as DVC starts it."""
    environment = {k: v for k, v in os.environ.items() if k != "DVC_ROOT"} | {
        "PYTHONPATH": str(ROOT)
    }
    return subprocess.run(
        [sys.executable, "-m", module], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """An empty project with a folder of imagery, and the current folder in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    configure(tmp_path)
    imagery(tmp_path / "imagery")
    return tmp_path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A project whose shards are written."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        configure(folder)
        imagery(folder / "imagery")
        for stage in (download, crop, split, shard):
            stage.main()
    return folder


@pytest.fixture
def sharded(prepared, tmp_path, monkeypatch) -> Path:
    """A copy of it, and the current folder in the copy; returns the data set's folder."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return Path("data/folder/mine")


# As processes: exit status and streams.


def test_a_wrong_parameter_stops_a_stage_before_it_starts(tmp_path):
    configure(tmp_path, tile_size=100, norm="channel")
    before = content(tmp_path)
    done = process("pipeline.stages.download", tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "error: params.yaml, tile_size: 100 is not divisible by 16, which dsfer-net needs. "
        "To mend it: set tile_size to 96 or 112.\n"
    )
    assert content(tmp_path) == before


def test_a_missing_archive_says_where_to_put_it(tmp_path):
    configure(tmp_path, dataset="whu-cd", source="pipeline/catalog.yaml", split=None,
              split_ratio=None)  # fmt: skip
    done = process("pipeline.stages.download", tmp_path)
    assert done.returncode == os.EX_TEMPFAIL
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    archive = "data/downloads/whu-cd/Building change detection dataset.zip"
    assert last.startswith(f"error: {archive}: ")
    assert "To mend it: " in last
    assert not (tmp_path / "data" / "whu-cd").exists()
    assert not (tmp_path / archive).exists()


KILLED = """
import os, signal
from dsfer.data import tiles
from pipeline.stages import crop

tiles.write_manifest = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    crop.main()
"""


def test_what_a_killed_crop_left_is_gone_after_the_next(project):
    download.main()
    (project / "killed.py").write_text(KILLED)
    done = process("killed", project)
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = project / "data" / "folder" / "mine"
    left = list(folder.glob(".tmp-*"))
    assert len(left) == 1 and list(left[0].glob("*.tar"))
    assert not (folder / "tiles").exists()
    crop.main()
    assert sorted(path.name for path in folder.iterdir()) == ["raw", "tiles"]
    assert len(read_manifest(folder / "tiles" / "manifest.parquet")) == 16


# Imagery.


def copy_under_another_suffix(folder: Path) -> None:
    shutil.copy(folder / "A/s1.png", folder / "A/s1.tif")


def empty(folder: Path) -> None:
    for path in folder.glob("B/*"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda f: (f / "label/s2.png").unlink(), ["imagery/label: ", "'s2'", "imagery/A/s2.png"]),
        (lambda f: (f / "B/s0.png").unlink(), ["imagery/B: ", "'s0'"]),
        (empty, ["imagery/B: ", "holds no image"]),
        (copy_under_another_suffix, ["imagery/A: ", "s1.png", "s1.tif", "same stem"]),
        (lambda f: shutil.rmtree(f / "label"), ["imagery: ", "label"]),
        (shutil.rmtree, ["imagery: ", "no such folder"]),
    ],
    ids=["label", "partner", "empty", "stems", "labels", "folder"],
)
def test_folders_that_do_not_pair(project, damage, parts):
    damage(project / "imagery")
    message = refusal(download.main)
    assert all(part in message for part in parts), message


def test_no_published_split_in_a_folder_without_one(project):
    configure(project, split="published", split_ratio=None)
    message = refusal(download.main)
    assert "imagery: " in message and "set split to scenes, random or spatial" in message


def wider(folder: Path) -> None:
    Image.new("RGB", (65, 64)).save(folder / "B/s1.png")


def wrong_values(folder: Path) -> None:
    Image.fromarray(np.full((64, 64), 7, np.uint8)).save(folder / "label/s3.png")


def truncated(folder: Path) -> None:
    path = folder / "A/s2.png"
    path.write_bytes(path.read_bytes()[:3000])


def a_web_page(folder: Path) -> None:
    (folder / "B/s2.png").write_text("<html>quota exceeded</html>")


def replaced(folder: Path, name: str, pixels: np.ndarray, **profile: Any) -> None:
    """Put a GeoTIFF in the place of a picture."""
    (folder / f"{name}.png").unlink()
    write(folder / f"{name}.tif", pixels, **profile)


def not_a_number(folder: Path) -> None:
    replaced(folder, "A/s1", np.full((64, 64, 3), np.nan, np.float32))


def infrared(folder: Path) -> None:
    replaced(folder, "B/s0", np.ones((64, 64, 4), np.uint8), photometric="minisblack")


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (not_a_number, ["imagery/A/s1.tif: ", "float32", "-ot Byte -scale"]),
        (lambda f: replaced(f, "A/s1", np.ones((64, 64, 3), np.uint16)), ["uint16, not 8-bit"]),
        (lambda f: replaced(f, "B/s2", np.ones((64, 64), np.uint8)), ["s2.tif: has 1 band,"]),
        (lambda f: replaced(f, "B/s2", np.ones((64, 64, 2), np.uint8)), ["has 2 bands", "bands:"]),
        (infrared, ["imagery/B/s0.tif: ", "has 4 bands", "bands: [3, 2, 1]"]),
        (lambda f: replaced(f, "label/s3", np.ones((64, 64, 3), np.uint8)),
         ["imagery/label/s3.tif: ", "3 bands, not one", "store the label as one 8-bit band"]),
        (lambda f: replaced(f, "label/s3", np.full((64, 64), np.nan, np.float32)),
         ["imagery/label/s3.tif: ", "float32"]),
    ],
    ids=["nan", "16-bit", "grey", "two", "four", "rgb-label", "float-label"],
)  # fmt: skip
def test_rasters_of_other_kinds(project, damage, parts):
    damage(project / "imagery")
    download.main()
    message = refusal(crop.main)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("crs", "transform", "part"),
    [
        ("EPSG:32634", GRID, "same coordinate reference system"),
        ("EPSG:32633", GRID @ Affine.translation(3, 0), "differ by at most"),
        ("EPSG:32633", GRID @ Affine.rotation(5), "differ by at most"),
        (None, None, "same coordinate reference system"),
    ],
    ids=["crs", "shifted", "rotated", "none"],
)
def test_dates_on_different_grids(project, crs, transform, part):
    t1, t2 = np.random.default_rng(9).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    other = {} if crs is None else {"crs": crs, "transform": transform}
    replaced(project / "imagery", "A/s1", t1, crs="EPSG:32633", transform=GRID)
    replaced(project / "imagery", "B/s1", t2, **other)
    for stage in (download, crop, split):
        stage.main()
    status, message = ending(validate.main)
    assert status == 1
    assert "scene s1: " in message and part in message and "gdalwarp" in message
    assert "To mend it: " in message


def test_a_label_on_another_grid(project):
    t1, t2 = np.random.default_rng(9).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    label = np.zeros((64, 64), np.uint8)
    moved = GRID @ Affine.translation(0, 5)
    for name, pixels, grid in (("A/s1", t1, GRID), ("B/s1", t2, GRID), ("label/s1", label, moved)):
        replaced(project / "imagery", name, pixels, crs="EPSG:32633", transform=grid)
    for stage in (download, crop, split):
        stage.main()
    status, message = ending(validate.main)
    assert status == 1
    assert "scene s1: 5, but expected: A label with a place on earth lies on the grid" in message
    assert "gdalwarp -r near" in message


def test_a_name_that_no_table_could_hold(project):
    name = os.fsencode(project / "imagery/A") + b"/bad\xff.png"
    try:
        Path(os.fsdecode(name)).touch()
    except OSError:
        pytest.skip("this file system takes no such name")
    message = refusal(download.main)
    assert "'bad\\udcff.png' is not valid UTF-8" in message


def test_a_name_too_long_for_the_file_system(project):
    configure(project, dataset="folder/" + "x" * 300)
    message = refusal(download.main)
    assert "params.yaml, dataset: 'xxx" in message and "use up to 100 letters" in message


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (wider, ["imagery/B/s1.png: ", "65 x 64", "64 x 64"]),
        (wrong_values, ["imagery/label/s3.png: ", "values 7", "binary255"]),
        (truncated, ["imagery/A/s2.png: ", "damaged"]),
        (a_web_page, ["imagery/B/s2.png: ", "cannot be opened as an image"]),
        (lambda f: (f / "label/s0.png").unlink(), ["imagery/label/s0.png: ", "no such file"]),
        (lambda f: configure(f.parent, padding="drop", tile_size=128),
         ["imagery/A/s0.png: ", "128 x 128", "padding: pad"]),
        (lambda f: configure(f.parent, label_rule="binary01"), ["values 255", "binary255"]),
        (lambda f: configure(f.parent, bands=[4, 3, 2]), ["imagery/A/s0.png: ", "no band 4"]),
        (lambda f: shutil.rmtree(f.parent / "data"), ["scenes.json: no such file", "run the "]),
    ],
    ids=["size", "values", "truncated", "page", "gone", "tile", "rule", "bands", "stage"],
)  # fmt: skip
def test_imagery_that_cannot_be_cut(project, damage, parts):
    download.main()
    damage(project / "imagery")
    message = refusal(crop.main)
    assert all(part in message for part in parts), message


def test_too_few_scenes_for_the_split(sharded):
    configure(Path(), split_ratio=[1000, 1, 1], split="random")
    message = refusal(split.main)
    assert "1000:1:1" in message and "without a tile" in message and "split_ratio" in message


# Shards, weights and checkpoints.


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def another_split(shards: Path) -> None:
    shutil.copy(shards / "val/shard-000000.tar", shards / "train")


def another_manifest(shards: Path) -> None:
    path = shards / "train/manifest.parquet"
    write_manifest(path, read_manifest(path).assign(changed_pixels=1))


class Payload:
    """A pickle that would make a folder."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("code-ran",)


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda s: flip(s / "train/shard-000000.tar"), ["train/shard-000000.tar: ", "SHA-256"]),
        (lambda s: flip(s / "val/shard-000000.tar"), ["val/shard-000000.tar: ", "SHA-256"]),
        (lambda s: (s / "train/shard-000000.tar").unlink(), ["no such shard"]),
        (lambda s: cut(s / "train/shard-000000.tar"), ["has 1000 bytes, the index says"]),
        (another_split, ["train/shard-000000.tar: ", "bytes, the index says"]),
        (another_manifest, ["train/manifest.parquet: has SHA-256"]),
        (lambda s: (s / "val/index.json").unlink(), ["val/index.json: no such file"]),
        (lambda s: shutil.rmtree(s), ["train/index.json: no such file"]),
    ],
    ids=["flipped", "flipped-val", "missing", "cut", "swapped", "manifest", "index", "all"],
)
def test_damaged_shards_stop_training(sharded, damage, parts):
    damage(sharded / "shards")
    message = refusal(train.main)
    assert all(part in message for part in parts), message
    assert "run the shard stage again" in message


def test_a_tile_that_changed_after_the_crop_stops_the_shards(sharded):
    flip(next((sharded / "tiles").glob("*.tar")))
    before = content(sharded / "shards")
    assert "the manifest says" in refusal(shard.main)
    assert content(sharded / "shards") == before


def test_tiles_of_nodata_alone_are_not_trained_on(project):
    t1, t2 = np.random.default_rng(9).integers(1, 256, (2, 64, 64, 3), dtype=np.uint8)
    t1[:32] = 0  # two tiles of each scene
    for i in range(4):
        replaced(project / "imagery", f"A/s{i}", t1 + np.uint8(i), nodata=i)
        replaced(project / "imagery", f"B/s{i}", t2)
    for stage in (download, crop, split, shard):
        stage.main()
    manifest = read_manifest(Path("data/folder/mine/split/manifest.parquet"))
    counts = manifest["split"].value_counts()
    shards = {name: TileShards(Path("data/folder/mine/shards") / name) for name in counts.index}
    assert (shards["train"].manifest["valid_pixels"] > 0).all()
    assert len(shards["train"]) == counts["train"] // 2
    assert len(shards["val"]) == counts["val"]
    assert len(shards["test"]) == counts["test"]


def test_a_training_split_without_change(project):
    imagery(project / "imagery", changed=False)
    for stage in (download, crop, split, shard):
        stage.main()
    message = refusal(train.main)
    assert "data/folder/mine/shards/train: all training pixels are unchanged" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(sharded):
    configure(Path(), device="cuda")
    assert "device: 'cuda' was asked for" in refusal(train.main)


def test_imagenet_weights_that_do_not_fit(sharded):
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, "vgg.pth")
    configure(Path(), pretrained="vgg.pth", width=1)
    message = refusal(train.main)
    assert "vgg.pth: does not fit VGG-16" in message
    Path("vgg.pth").write_text("<html>quota exceeded</html>")
    assert "error: vgg.pth: " in refusal(train.main)
    torch.save({"features.0.weight": Payload()}, "vgg.pth")
    assert "error: vgg.pth: not a readable state dict" in refusal(train.main)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("cut", "not a readable checkpoint"),
        ("flip", "not a readable checkpoint"),
        ("pickle", "not a readable checkpoint"),
        ("schema", "schema 0"),
        ("run", "belongs to run other"),
        ("network", "does not hold the state of this network"),
    ],
)
def test_a_checkpoint_that_is_not_of_this_run(sharded, damage, said):
    settings = current_settings()
    splits = (TileShards(sharded / "shards" / name) for name in ("train", "val"))
    fingerprint = train.run_fingerprint(settings, *splits)
    path = Path(".dvc/tmp/resume") / fingerprint / "last.pt"
    other = {"step": 1, "model": {"weight": torch.zeros(1000)}}
    save_checkpoint(path, other | {"fingerprint": "other" if damage == "run" else fingerprint})
    if damage in ("cut", "flip"):
        {"cut": cut, "flip": flip}[damage](path)
    if damage == "schema":
        torch.save({"fingerprint": fingerprint, "schema": 0}, path)
    if damage == "pickle":
        torch.save({"fingerprint": fingerprint, "model": Payload()}, path)
    message = refusal(train.main)
    assert f"error: {path}: " in message and said in message
    assert "delete it to start this run anew" in message


def weights(
    folder: Path, *, model: str = "dsfer-net", schema: int = SCHEMA, **options: Any
) -> Path:
    path = folder / "models/dsfer-net/training/weights.safetensors"
    built = {"width": 0.125, "image_size": 32, "hopfield_dim": 16}
    network = dsfer.create_model("dsfer-net", **built)
    about = {"best": {"step": 1}, "split_hash": TileShards(folder / "shards/val").split_hash}
    about |= dict.fromkeys(("seed", "variant", "encoder", "recipe", "trained_on", "iterations"), 0)
    metadata = Metadata(model, built | options, (0, 0, 0), (1, 1, 1), about, schema)
    save_weights(network, path, metadata)
    return path


@pytest.mark.parametrize(
    ("options", "damage", "parts"),
    [
        ({"model": "bit"}, None, ["holds weights of 'bit', not of 'dsfer-net'", "set model to"]),
        ({"schema": 9}, None, ["schema 9", "write it again"]),
        ({"width": 0.25}, None, ["misshapen", "width"]),
        ({"variant": "base+cf"}, None, ["unknown", "variant"]),
        ({}, cut, ["has SHA-256", "its record weights.json says"]),
        ({}, Path.unlink, ["no such file", "train first"]),
    ],
    ids=["model", "schema", "width", "variant", "cut", "missing"],
)
def test_weights_that_cannot_be_evaluated(sharded, options, damage, parts):
    path = weights(sharded, **options)
    if damage is not None:
        damage(path)
    message = refusal(evaluate.main)
    at_fault = path.with_suffix(".json") if "schema" in options else path
    assert f"error: {at_fault}: " in message
    assert all(part in message for part in parts), message


def test_a_damaged_test_split_stops_the_evaluation(sharded):
    weights(sharded)
    flip(sharded / "shards/test/shard-000000.tar")
    assert "shards/test/shard-000000.tar: has SHA-256" in refusal(evaluate.main)


def test_weights_for_another_tile_size(sharded):
    path = sharded / "models/dsfer-net/training/weights.safetensors"
    options = {"width": 0.125, "image_size": 64, "hopfield_dim": 16}
    about = {"split_hash": TileShards(sharded / "shards/val").split_hash}
    metadata = Metadata("dsfer-net", options, (0, 0, 0), (1, 1, 1), about)
    save_weights(dsfer.create_model("dsfer-net", **options), path, metadata)
    message = refusal(evaluate.main)
    assert "layer norm was built for" in message and "image_size" in message


def test_weights_of_another_split_may_have_seen_the_test_tiles(sharded):
    path = weights(sharded)
    metadata = Metadata("dsfer-net", {}, (0, 0, 0), (1, 1, 1), {"split_hash": "another"})
    save_weights(torch.nn.Identity(), path, metadata)
    assert "trained on split another" in refusal(evaluate.main)


@pytest.mark.parametrize("room", [2, 1, 0], ids=lambda pairs: f"{pairs} pairs")
def test_an_evaluation_takes_as_many_pairs_at_a_time_as_gpu_memory_holds(
    sharded, monkeypatch, room
):
    def stitched(model, test, inference, *rest):
        tried.append(inference.batch_size)
        if inference.batch_size > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return whole(model, test, inference, *rest)

    weights(sharded)
    tried, whole = [], evaluate.stitched_counts
    monkeypatch.setattr(evaluate, "stitched_counts", stitched)
    if room:
        evaluate.main()
        assert read_json(sharded / "models/dsfer-net/evaluation/metrics.json")["tiles"]["n"] > 0
    else:
        message = refusal(evaluate.main)
        assert "with batch_size 1." in message
        assert "device: cpu" in message and "try batch_size" not in message  # which trains anew
    assert tried == [4, 2, 1][: 3 - room // 2]


def test_a_run_that_another_process_trains_is_left_alone(sharded):
    splits = (TileShards(sharded / "shards" / name) for name in ("train", "val"))
    resume = train.resume_folder(train.run_fingerprint(current_settings(), *splits))
    code = (
        "import sys, time; from pathlib import Path; from pipeline.workspace import hold\n"
        "with hold(Path(sys.argv[1]), Path(), 'other'): print('held', flush=True); time.sleep(100)"
    )
    command = [sys.executable, "-c", code, str(resume.absolute())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
        assert holder.stdout.readline() == "held\n"
        message = refusal(train.main)
        holder.kill()
    assert f"{resume.absolute()}: other (process {holder.pid} on " in message
    assert "goes on where it stopped" in message
    train.main()
    assert (sharded / "models/dsfer-net/training/weights.safetensors").is_file()
    assert list(resume.parent.iterdir()) == []

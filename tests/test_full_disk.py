"""Disks that are full or may not be written to: every stage says so and keeps what it wrote before,
and completes once there is room. Real file systems, not stand-ins for the functions that fail."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
from shapely.geometry import box

from pipeline import stages
from pipeline.catalog import catalog_entry
from pipeline.stages import (
    crop,
    download,
    evaluate,
    figures,
    network,
    report,
    shard,
    split,
    train,
    validate,
)
from tests.disks import PAGE, Disk
from tests.test_bad_input import configure, imagery
from tests.test_crop import GRID, write
from tests.test_stage_download import settings

pytestmark = pytest.mark.xdist_group("full-disk")  # one finished project for all

DATA = Path("data/folder/mine")
MODEL = DATA / "models/dsfer-net"
OUTPUTS: dict[Callable[[], None], list[Path]] = {
    download.main: [DATA / "raw"],
    crop.main: [DATA / "tiles"],
    split.main: [DATA / "split"],
    validate.main: [DATA / "validation"],
    shard.main: [DATA / "shards" / name for name in ("train", "val", "test")],
    network.main: [MODEL / "network.json"],
    train.main: [
        MODEL / "training" / name
        for name in ("weights.safetensors", "weights.json", "history.csv", "settings.json")
    ],
    evaluate.main: [MODEL / "evaluation"],
    figures.main: [MODEL / "figures"],
    report.main: [MODEL / "report.html"],
}  # fmt: skip
"""What each stage writes; each of these is replaced as a whole."""

PASSING = [MODEL / "training/live", Path(".dvc/tmp/resume")]
"""What training writes while it is under way: its log and its state."""

ROOMS = [0, PAGE, 4 * PAGE, 16 * PAGE, 64 * PAGE]
"""Bytes left on the disk: nothing at all, or enough to get to the middle of what is written."""

ROOM_FOR_THE_STATE = 11_000_000
"""Bytes that hold the state of the training, and not the weights after it."""

by_stage = pytest.mark.parametrize("main", OUTPUTS, ids=lambda main: main.__module__.split(".")[-1])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose stages have all run."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
        configure(folder, figures=["s1_00000_00000"])  # each tile has a plate, alike to the disk
        imagery(folder / "imagery")
        for main in OUTPUTS:
            main()
    return folder


@pytest.fixture
def project(finished: Path, small_disk: Disk, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A copy of it on a disk of its own, and the current folder in it."""
    shutil.copytree(finished, small_disk.folder, dirs_exist_ok=True)
    monkeypatch.chdir(small_disk.folder)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return small_disk


def files(path: Path) -> dict[str, bytes]:
    """A file, or every file of a folder, with its bytes."""
    found = [path, *path.rglob("*")]
    return {str(each.relative_to(path)): each.read_bytes() for each in found if each.is_file()}


def mark(outputs: list[Path]) -> list[dict[str, bytes]]:
    """Make former outputs that no run would write."""
    for path in outputs:
        for name in files(path):
            (path / name).write_bytes(b"former " + name.encode())
    return [files(path) for path in outputs]


def said(main: Callable[[], Any], capsys: pytest.CaptureFixture[str]) -> str | None:
    """The message that a stage stops with, or None where it succeeds."""
    capsys.readouterr()
    try:
        stages.run(main)
    except SystemExit as stop:
        assert stop.code == 1
    else:
        return None
    message = capsys.readouterr().err.rstrip("\n").rpartition("\n")[2]
    assert message.startswith("error: ")
    return message


def remains(folder: Path) -> list[str]:
    return [str(p) for p in folder.rglob("*") if p.name.startswith((".tmp-", ".former-"))]


@by_stage
def test_a_full_disk_costs_nothing_and_the_stage_completes_once_there_is_room(
    main, project, finished, capsys
):
    outputs = OUTPUTS[main]
    places, rooms = outputs, ROOMS
    if main is train.main:
        places, rooms = [*outputs, *PASSING], [*ROOMS, ROOM_FOR_THE_STATE]
    former, whole = mark(outputs), [files(finished / path) for path in outputs]
    refused = set()
    for room in rooms:
        project.fill(room)
        message = said(main, capsys)
        project.clear()
        if message is None:  # more room suffices, too
            assert room > 0
            break
        place, _, rest = message.removeprefix("error: ").partition(": ")
        refused.add(Path(place).name)
        assert any(Path(place).is_relative_to(each) for each in places), message
        assert rest.startswith("no space left on device. To mend it: make room on that disk")
        for path, old, new in zip(outputs, former, whole, strict=True):
            assert files(path) == old or (room > 0 and files(path) == new)
        assert not remains(Path())
    assert main is not train.main or {"last.pt", "weights.safetensors"} <= refused
    assert said(main, capsys) is None
    for path, old, new in zip(outputs, former, whole, strict=True):
        assert files(path).keys() == new.keys()
        assert files(path) != old
        # Paths of the imagery and the speed of the evaluation are others here.
        assert main in (download.main, evaluate.main) or files(path) == new


@by_stage
def test_a_disk_that_may_not_be_written_to(main, project, capsys):
    former = mark(OUTPUTS[main])
    project.protect()
    message = said(main, capsys)
    assert "read-only file system. To mend it: remount that disk" in message
    assert "/.tmp-" not in message
    assert [files(path) for path in OUTPUTS[main]] == former


def vector_labels(disk: Path) -> tuple[Any, Path]:
    """A pair whose label is a polygon."""
    source = disk / "mine"
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    for name in ("t1.tif", "t2.tif"):
        write(source / name, noise[:, :, :1].repeat(3, 2) // 255, crs="EPSG:32633", transform=GRID)
    area = geopandas.GeoDataFrame(geometry=[box(1000, 1900, 1100, 2000)], crs=32633)
    area.to_file(source / "area.gpkg")
    (source / "pairs.csv").write_text("id,t1,t2,label\nport,t1.tif,t2.tif,area.gpkg\n")
    return settings(catalog_entry("rasters/port"), "spatial", source), Path("labels/port.tif")


def demo(disk: Path) -> tuple[Any, Path]:
    """The rendered demo, small."""
    entry = catalog_entry("demo")
    small = entry.demo.model_copy(update={"count": 2, "size": 128})
    data = settings(entry.model_copy(update={"demo": small}), "scenes")
    return data, Path("t1/demo_000.tif")


@pytest.mark.parametrize("room", [0, 2 * PAGE])
@pytest.mark.parametrize("kind", [vector_labels, demo])
def test_rasters_that_do_not_fit(small_disk, kind, room, capsys):
    """GDAL leaves an empty file on a full disk, and says nothing."""
    data, file = kind(small_disk.folder)
    raw = small_disk.folder / "raw"

    def acquire() -> None:
        download.acquire(data, raw, small_disk.folder)

    small_disk.fill(room)
    message = said(acquire, capsys)
    small_disk.clear()
    if message is not None or room == 0:
        assert message.startswith(f"error: {raw}/{file.parent}")
        assert "no space left on device. To mend it: make room" in message
        assert not raw.exists() and not remains(small_disk.folder)
        assert said(acquire, capsys) is None
    assert (raw / file).stat().st_size > 0

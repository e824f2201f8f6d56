"""Work over a Dask cluster of two workers, started here, with a Prefect server."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from unittest.mock import Mock

import numpy as np
import psutil
import pytest
import torch
from distributed import Client, LocalCluster
from filelock import FileLock
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    FlowFilter,
    FlowFilterName,
)
from prefect.client.schemas.objects import State, StateType
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.testing.utilities import prefect_test_harness
from upath import UPath

import dsfer
from dsfer.data import crop as cropping
from dsfer.data.crop import CropUnit
from dsfer.data.manifest import read_manifest
from dsfer.data.shards import data_statistics, write_shards
from dsfer.data.tiles import inspect_scenes, write_tiles
from dsfer.data.workers import Processes, Spread
from dsfer.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    GridMismatchError,
    LabelError,
    NoStoreError,
    StoreError,
)
from dsfer.mapping.pairs import list_pairs, map_pair, map_pairs
from dsfer.mapping.predict import MapOptions
from dsfer.processes import process_mark
from dsfer.weights import Metadata, save_weights
from pipeline import cluster, prediction
from pipeline.cluster import spread_out
from pipeline.stages import crop, download, shard, split
from tests.killed import KilledOnce, RowsKilledOnce, kill
from tests.project import ROOT
from tests.test_bad_input import configure, content, imagery, wrong_values
from tests.test_crop import cut, scene
from tests.test_mapping import read, scenes, write
from tests.test_shard_store import files_of, home
from tests.waiting import wait_for

pytestmark = pytest.mark.xdist_group("cluster")  # one server and one cluster for all


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="module")
def local_cluster(server: None, store: str) -> Iterator[LocalCluster]:
    """A scheduler with two workers, who know the object store."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", env=cluster.QUIET
    ) as started:
        yield started


@pytest.fixture(scope="module")
def scheduler(local_cluster: LocalCluster) -> str:
    """Its address."""
    return str(local_cluster.scheduler_address)


def test_stages_write_the_same_bytes_on_a_cluster(tmp_path, monkeypatch, scheduler):
    imagery(tmp_path / "imagery", scenes=12)
    monkeypatch.setattr(cluster, "usable_cpus", lambda: 1)  # `here` starts no processes
    results = []
    for name, where in (("here", None), ("cluster", scheduler)):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        configure(folder, cluster=where, source="../imagery")
        for stage in (download, crop, split, shard):
            stage.main()
        results.append(content(folder / "data"))
    assert results[0] == results[1]
    assert any(name.endswith("tiles-000001.tar") for name in results[0])  # several units of work


def test_an_error_of_the_input_arrives_whole_and_is_not_tried_again(
    tmp_path, monkeypatch, scheduler
):
    monkeypatch.setattr(cropping, "unit_size", lambda total: 4)  # of ten units the fourth is wrong
    monkeypatch.chdir(tmp_path)
    configure(tmp_path, cluster=scheduler)
    imagery(tmp_path / "imagery", scenes=10)
    download.main()
    crop.main()
    before = content(tmp_path / "data")
    wrong_values(tmp_path / "imagery")
    with pytest.raises(LabelError, match=r"label/s3\.png: label holds the values 7"):
        crop.main()
    assert content(tmp_path / "data") == before  # and nobody writes there any more:
    with Client(scheduler, set_as_default=False) as client:
        assert not any(client.call_stack().values())
    with get_client(sync_client=True) as client:
        (failed,) = [run for run in client.read_task_runs() if run.state_name == "Failed"]
    assert (failed.name.rpartition("-")[0], failed.run_count) == ("write_unit", 1)


def test_a_stage_that_is_killed_counts_as_crashed(scheduler):
    code = (
        "import sys, time; from pipeline.cluster import spread_out\n"
        "work = lambda spread: print('works', flush=True) or time.sleep(600)\n"
        "spread_out(sys.argv[1], 'lost', work)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, scheduler], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value())},
    ) as stage:  # fmt: skip
        assert stage.stdout
        assert any(line == "works\n" for line in stage.stdout)
        stage.kill()
    lost = FlowFilter(name=FlowFilterName(any_=["lost"]))
    with get_client(sync_client=True) as client:
        (flow_run,) = client.read_flow_runs(flow_filter=lost)
        wait_for(lambda: client.read_flow_run(flow_run.id).state_name == "Crashed")


def test_workers_with_other_libraries_are_refused(monkeypatch, scheduler):
    monkeypatch.setattr(cluster, "_versions", lambda: {"numpy": "1.0"})
    with pytest.raises(DataError, match=r"a worker has numpy \S+, and .* started with 1\.0: .*"):
        spread_out(scheduler, "versions", lambda spread: list(spread(abs, [1])))


def test_workers_with_several_threads_are_refused():
    with Client(
        processes=False, n_workers=1, threads_per_worker=2, dashboard_address="127.0.0.1:0",
        set_as_default=False,
    ) as client:  # fmt: skip
        work = client.submit(cluster._apply, abs, [1], Path.cwd(), cluster._versions())
        with pytest.raises(ConfigError, match=r"has 2 threads, .* `dask worker --nthreads 1`"):
            work.result()


def test_a_cluster_that_is_not_there(monkeypatch, server):
    monkeypatch.setattr(cluster, "PATIENCE", 0.2)
    with pytest.raises(ConfigError, match=r"params\.yaml, cluster: no Dask scheduler answers at"):
        spread_out("tcp://127.0.0.1:1", "nowhere", lambda spread: None)


def test_a_prefect_server_is_needed():
    with (
        temporary_settings({PREFECT_API_URL: None}),
        pytest.raises(ConfigError, match="2 needs a Prefect server"),
    ):
        spread_out(2, "alone", lambda spread: None)


def test_a_prefect_server_that_is_down_is_named():
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}),
        pytest.raises(ConfigError, match=r"answers at http://127\.0\.0\.1:1/api .*`make up`"),
    ):
        spread_out(2, "down", lambda spread: None)


def test_processes_of_this_machine_are_the_default():
    seen: list[Spread] = []
    spread_out(None, "here", seen.append)
    assert seen == [Processes(cluster.usable_cpus())]


@pytest.fixture
def mapped(tmp_path: Path) -> Path:
    """A folder with the weights of a tiny network, and two good pairs and a broken one."""
    options = {"width": 0.125, "image_size": 32, "hopfield_dim": 16}
    torch.manual_seed(0)
    record = Metadata("dsfer-net", options, (90,) * 3, (50,) * 3, tile_size=32)
    save_weights(
        dsfer.create_model("dsfer-net", **options), tmp_path / "weights.safetensors", record
    )
    lines = ["id,t1,t2"]
    for name in ("good", "broken", "Fine_2"):
        for date, image in enumerate(scenes(50, 60), start=1):
            write(tmp_path / f"{name}{date}.tif", image)
        lines.append(f"{name},{name}1.tif,{name}2.tif")
    (tmp_path / "broken2.tif").write_bytes(b"no image")
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    return tmp_path


def test_maps_of_pairs_of_which_one_is_broken(mapped, scheduler):
    given = {
        "pairs": str(mapped / "pairs.csv"),
        "weights": str(mapped / "weights.safetensors"),
        "out": str(mapped / "maps"),
        "cluster": scheduler,
        "options": {"min_area": 5, "threshold": 0.25},  # as a deployment is given them
    }
    parameters = prediction.predict.validate_parameters(given)
    assert parameters["options"] == MapOptions(min_area=5, threshold=0.25)
    with pytest.raises(DataError, match=r"1 of 3 pairs failed: broken\. .*broken2\.tif: cannot be"):
        prediction.predict(**given)
    rows = {row["id"]: row for row in json.loads((mapped / "maps/maps.json").read_text())}
    assert {name: row["status"] for name, row in rows.items()} == {
        "good": "done", "broken": "failed", "Fine_2": "done",
    }  # fmt: skip
    assert sorted(each.name for each in (mapped / "maps").iterdir()) == [
        "Fine_2", "good", "maps.json",
    ]  # fmt: skip
    with get_client(sync_client=True) as client:
        runs = [run for run in client.read_task_runs(limit=200) if run.name == "broken"]
        assert "Failed" in {run.state_name for run in runs}
        assert {run.run_count for run in runs} == {1}  # no input is tried again
        for key in ("map-good", "map-fine-2", "maps"):
            wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
            (found, *_) = client.read_artifacts(artifact_filter=wanted)
            assert key == "maps" or "data:image/webp" in found.data
    # Mended, only what is missing is done.
    before = (mapped / "maps/good/summary.json").stat().st_mtime_ns
    write(mapped / "broken2.tif", scenes(50, 60)[1])
    assert [row["status"] for row in prediction.predict(**given)] == ["done"] * 3
    assert (mapped / "maps/good/summary.json").stat().st_mtime_ns == before
    # Wherever and beside whatever a pair was mapped, it is what one process makes of it.
    network, options = dsfer.load(given["weights"]), parameters["options"]
    map_pairs(list_pairs(mapped), network, mapped / "one", options=options)
    for name in ("good", "broken", "Fine_2"):
        for layer, near in (("probability.tif", 1e-5), ("change.tif", 0)):
            there, one = (read(mapped / out / name / layer) for out in ("maps", "one"))
            np.testing.assert_allclose(there, one, rtol=0, atol=near)
    with pytest.raises(DataError, match=r"3 of 3 pairs failed: .*were made with .*5"):
        prediction.predict(**given | {"options": {"min_area": 6, "threshold": 0.25}})


def test_workers_that_the_flow_starts_take_turns_on_its_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5a")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with prediction._runner(3) as runner, Client(runner.address, set_as_default=False) as client:
        client.wait_for_workers(3)
        found = client.run(os.getenv, "CUDA_VISIBLE_DEVICES")
        assert sorted(found.values()) == ["3", "3", "GPU-5a"]
        assert set(client.run(os.getenv, "DASK_LOGGING__DISTRIBUTED").values()) == {"critical"}


def test_a_flow_whose_pairs_are_mapped_elsewhere_needs_no_gpu(mapped, monkeypatch, scheduler):
    given = {name: str(mapped / file) for name, file in (
        ("pairs", "pairs.csv"), ("weights", "weights.safetensors"), ("out", "maps"),
    )} | {"device": "cuda"}  # fmt: skip
    monkeypatch.setattr(prediction, "map_listed", mapping := Mock())
    monkeypatch.setattr(prediction, "_row", lambda pair, _: {"id": pair.id, "status": "done"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        prediction.predict(**given)
    (mapped / "maps").mkdir()
    prediction.predict(**given, cluster=scheduler)
    assert mapping.submit.call_args.args[4] == "cuda"  # that of the workers
    (mapped / "weights.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="has SHA-256"):
        prediction.predict(**given, cluster=scheduler)


def test_a_pair_that_was_out_of_reach_is_mapped_at_the_next_try(mapped, server, monkeypatch):
    tries = []

    def flaky(pair, *given, **how):
        tries.append(pair.id)
        if tries == ["good"]:
            raise DataError("cannot be opened", where="https://host/good1.tif")
        return map_pair(pair, *given, **how)

    monkeypatch.setattr(prediction, "map_pair", flaky)
    monkeypatch.setattr(prediction.map_listed, "retry_delay_seconds", 0)
    given = {name: str(mapped / name) for name in ("pairs.csv", "weights.safetensors", "maps")}
    with pytest.raises(DataError, match=r"1 of 3 pairs failed: broken\."):
        prediction.predict(*given.values())
    assert tries == ["good", "good", "broken", "Fine_2"]
    assert (mapped / "maps/good/summary.json").is_file()


def test_work_is_tried_again_where_its_error_may_pass():
    def passing(error: Exception) -> bool:
        return cluster.may_pass(None, None, State(type=StateType.FAILED, data=error))

    assert passing(OSError("connection reset"))
    assert passing(StoreError("cannot be reached (503)", where="s3://bucket/a.tar"))
    assert passing(DataError("cannot be opened", where="https://host/a.tif"))
    assert not passing(DataError("cannot be opened", where="/data/a.tif"))
    assert not passing(GridMismatchError("sizes differ", where="https://host/a.tif"))
    assert not passing(LabelError("holds the values 7", where="s3://bucket/a.tif"))
    assert not passing(NoStoreError("no such bucket", where="s3://bucket"))
    assert not passing(ConfigError("no share", where="overlap"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [None, 2])
def test_ctrl_c_ends_maps_in_time_with_the_workers_that_make_them(mapped, server, workers):
    for date, image in enumerate(scenes(300_000, 40), start=1):
        write(mapped / f"long{date}.tif", image)
    (mapped / "pairs.csv").write_text("id,t1,t2\nlong,long1.tif,long2.tif")
    given = [str(mapped / name) for name in ("pairs.csv", "weights.safetensors", "maps")]
    code = f"from pipeline.prediction import predict; predict(*{given}, cluster={workers})"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, start_new_session=True,
        env=os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value())},
    ) as called:  # fmt: skip
        wait_for((mapped / "maps/.long.partial/run.json").exists)
        started = psutil.Process(called.pid).children(recursive=True)
        marks = {process.pid: process_mark(process.pid) for process in started}
        assert len(marks) > (workers or 0)  # and a witness
        os.killpg(called.pid, signal.SIGINT)  # what a terminal does at Ctrl-C
        called.wait(10)
    wait_for(lambda: not any(mark == process_mark(pid) for pid, mark in marks.items()), 10)
    with FileLock(mapped / "maps/.long.partial/lock").acquire(timeout=0):
        assert not (mapped / "maps/long").exists()


# These come last: a worker that takes the place of a killed one imports everything anew.


@pytest.mark.slow
def test_a_pair_whose_worker_is_killed_is_mapped_by_another(mapped, scheduler):
    for date, image in enumerate(scenes(800, 600), start=1):
        write(mapped / f"large{date}.tif", image)
    (mapped / "pairs.csv").write_text("id,t1,t2\nlarge,large1.tif,large2.tif")
    lock, killed = mapped / "maps/.large.partial/lock", []

    def holders() -> list[psutil.Process]:
        workers = psutil.Process().children(recursive=True)
        return [each for each in workers if str(lock) in {file.path for file in each.open_files()}]

    def kill_one() -> None:
        (process,) = wait_for(holders)
        process.kill()
        killed.append(process.pid)

    thread = Thread(target=kill_one)
    thread.start()
    (row,) = prediction.predict(
        str(mapped / "pairs.csv"),
        str(mapped / "weights.safetensors"),
        str(mapped / "maps"),
        cluster=scheduler,
    )
    thread.join()
    assert len(killed) == 1
    assert row["status"] == "done"
    network = dsfer.load(mapped / "weights.safetensors")
    map_pairs(list_pairs(mapped), network, mapped / "one")
    there, one = (read(mapped / out / "large/probability.tif") for out in ("maps", "one"))
    np.testing.assert_allclose(there, one, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_of_a_tar_changes_nothing(tmp_path, monkeypatch, scheduler):
    monkeypatch.setattr(cropping, "unit_size", lambda total: 4)
    scenes = [scene(tmp_path, 32, 32, name=f"s{i}", seed=i) for i in range(6)]
    here = Processes(1)
    facts = inspect_scenes(scenes, None, spread=here)
    pieces = cropping._plan(facts, [(2, 2)] * 6)
    units = [CropUnit(tuple(each), 16, "pad", "binary255", None) for each in pieces]
    write_tiles(tmp_path / "here", units, facts, spread=here)

    killed = KilledOnce(units[2], tmp_path / "mark")

    def work(spread: Spread) -> None:
        write_tiles(tmp_path / "cluster", [*units[:2], killed, *units[3:]], facts, spread=spread)

    spread_out(scheduler, "crop", work)
    assert killed.mark.exists()
    assert content(tmp_path / "cluster") == content(tmp_path / "here")


@pytest.mark.parametrize("where", [pytest.param("folder", marks=pytest.mark.slow), "bucket"])
def test_a_worker_killed_in_the_middle_of_a_shard_changes_nothing(tmp_path, scheduler, where):
    cut([scene(tmp_path, 32, 32, name=f"s{i}", seed=i) for i in range(6)], tmp_path / "tiles")
    rows, mark = read_manifest(tmp_path / "tiles/manifest.parquet"), tmp_path / "mark"
    url = None
    if where == "bucket":
        url = "s3://cluster/shards"
        UPath("s3://cluster").mkdir()

    def shards(out: Path, spread: Spread, store: str | None = None) -> None:
        write_shards(
            tmp_path / "tiles", rows, out, split="train", split_hash="0123456789ab",
            statistics=data_statistics(rows), spread=spread, store=store, tiles_per_shard=4,
        )  # fmt: skip

    def work(spread: Spread) -> None:
        def killing(function, items, **how):
            tiles, part, path = items[2]
            items[2] = tiles, RowsKilledOnce(part, mark), path
            return spread(function, items, **how)

        shards(tmp_path / "cluster", killing, url)

    shards(tmp_path / "here", Processes(1))
    spread_out(scheduler, "shard", work)
    assert mark.exists()
    written = home(tmp_path / "cluster", url) if url else tmp_path / "cluster"
    here = files_of(tmp_path / "here")
    assert {file.name: file.read_bytes() for file in written.iterdir()} == here
    assert len(here) == 6 + 2


def test_work_that_kills_every_worker_is_given_up(monkeypatch, local_cluster, scheduler):
    monkeypatch.setattr(local_cluster.scheduler, "allowed_failures", 0)
    with pytest.raises(DataError, match="killed every worker"):
        spread_out(scheduler, "kill", lambda spread: list(spread(kill, [0])))

"""Data preparation over a Dask cluster of two workers, started here, with a Prefect server."""

from collections.abc import Iterator

import dask
import pytest
from distributed import LocalCluster
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.testing.utilities import prefect_test_harness

from dsfer.data import crop as cropping
from dsfer.data.crop import CropUnit
from dsfer.data.tiles import inspect_scenes, write_tiles
from dsfer.data.workers import Processes, Spread
from dsfer.errors import ConfigError, DataError, LabelError
from pipeline import cluster
from pipeline.cluster import spread_out
from pipeline.stages import crop, download, shard, split
from tests.killed import KilledOnce, kill
from tests.test_bad_input import configure, content, imagery, wrong_values
from tests.test_crop import scene

pytestmark = pytest.mark.xdist_group("cluster")  # one server and one cluster for all


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="module")
def scheduler(server: None) -> Iterator[str]:
    """Address of a scheduler with two workers."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", env=cluster.QUIET
    ) as started:
        yield started.scheduler_address


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


def test_stages_write_the_same_bytes_on_a_cluster(tmp_path, monkeypatch, scheduler):
    imagery(tmp_path / "imagery", scenes=12)
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
    monkeypatch.chdir(tmp_path)
    configure(tmp_path, cluster=scheduler)
    imagery(tmp_path / "imagery")
    download.main()
    crop.main()
    before = content(tmp_path / "data")
    wrong_values(tmp_path / "imagery")
    with pytest.raises(LabelError, match=r"label/s3\.png: label holds the values 7"):
        crop.main()
    assert content(tmp_path / "data") == before
    with get_client(sync_client=True) as client:
        (failed,) = [run for run in client.read_task_runs() if run.state_name == "Failed"]
    assert (failed.name.rpartition("-")[0], failed.run_count) == ("write_unit", 1)


def test_work_that_kills_every_worker_is_given_up(server):
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        pytest.raises(DataError, match="killed every worker"),
    ):
        spread_out(1, "kill", lambda spread: list(spread(kill, [0])))


def test_workers_with_other_libraries_are_refused(monkeypatch, scheduler):
    monkeypatch.setattr(cluster, "_versions", lambda: {"numpy": "1.0"})
    with pytest.raises(DataError, match=r"a worker has numpy \S+, and .* started with 1\.0: .*"):
        spread_out(scheduler, "versions", lambda spread: list(spread(abs, [1])))


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


def test_processes_of_this_machine_are_the_default():
    seen: list[Spread] = []
    spread_out(None, "here", seen.append)
    assert seen == [Processes(cluster.usable_cpus())]

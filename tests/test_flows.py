"""Prefect for real: server, deployments and worker are started, runs cancelled, workers killed."""

import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from dvc.api import DVCFileSystem
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    FlowRunFilter,
    LogFilter,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, Running, Scheduled
from ruamel.yaml import YAML

from dsfer.errors import ConfigError
from dsfer.files import read_json
from dsfer.processes import process_mark
from pipeline import operate
from pipeline.cells import Cell, read_metrics
from pipeline.cluster import RETRIES
from pipeline.comparison import draw_plates
from pipeline.experiments import WORKERS
from pipeline.flows import check_jobs
from pipeline.results import read_figures
from pipeline.tables import entries_of
from tests.project import TINY, commit, dvc, environment, executed, restore, run
from tests.test_mapping import scenes, write
from tests.waiting import PATIENCE, wait_for

pytestmark = pytest.mark.xdist_group("dvc")  # one project, and one server, for all


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Operation:
    """The project with a server and a worker of its own."""

    def __init__(self, project: Path, client: SyncPrefectClient):
        self.project, self.client = project, client

    def start(self, deployment: str, **parameters: Any) -> FlowRun:
        found = self.client.read_deployment_by_name(deployment)
        return self.client.create_flow_run_from_deployment(found.id, parameters=parameters)

    def start_on(self, worker: str) -> FlowRun:
        """A run that a worker had started before it was lost."""
        found = self.client.read_deployment_by_name("pipeline/gpu")
        labels = {"prefect.worker.name": worker}
        later = Scheduled(scheduled_time=datetime.now(UTC) + timedelta(days=1))
        flow_run = self.client.create_flow_run_from_deployment(found.id, state=later, labels=labels)
        self.client.set_flow_run_state(flow_run.id, Running(), force=True)
        return flow_run

    def state(self, flow_run: FlowRun) -> str:
        now = self.client.read_flow_run(flow_run.id).state
        return now.name if now and now.is_final() else ""

    def finish(self, flow_run: FlowRun) -> str:
        return wait_for(lambda: self.state(flow_run))

    def message(self, flow_run: FlowRun) -> str:
        return self.client.read_flow_run(flow_run.id).state.message

    def log(self, flow_run: FlowRun) -> str:
        chosen = LogFilter(flow_run_id={"any_": [flow_run.id]})
        return "\n".join(entry.message for entry in self.client.read_logs(chosen, limit=200))

    def artifacts(self, flow_run: FlowRun) -> dict[str, Any]:
        chosen = FlowRunFilter(id={"any_": [flow_run.id]})
        found = self.client.read_artifacts(flow_run_filter=chosen)
        return {artifact.key: artifact for artifact in found if artifact.key}  # others are results

    def started(self, name: str) -> psutil.Process:
        entries = json.loads((self.project / ".prefect/started.json").read_text())
        return next(
            psutil.Process(entry["pid"]) for entry in reversed(entries) if entry["name"] == name
        )

    def start_worker(self) -> None:
        code = "from pipeline import operate; operate.start_worker('cpu', '--pool', 'cpu', gpu='')"
        run(self.project, sys.executable, "-c", code)


@pytest.fixture(scope="module")
def operation(project: Path) -> Iterator[Operation]:
    """`make up` and `make down`, on a free port, with nothing left over in between."""
    port = str(free_port())
    with pytest.MonkeyPatch.context() as patch:
        url = f"http://127.0.0.1:{port}/api"
        patch.setenv("PREFECT_SERVER_API_PORT", port)
        patch.setenv("PREFECT_API_URL", url)
        patch.setenv("PREFECT_TASKS_DEFAULT_RETRY_DELAY_SECONDS", "0")
        printed = run(project, sys.executable, "-m", "pipeline.operate", "up")
        assert url in printed
        operated = None
        try:
            with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
                operated = Operation(project, client)
                yield operated
        finally:
            server = operated.started("server") if operated else None
            run(project, sys.executable, "-m", "pipeline.operate", "down")
            assert server is not None and process_mark(server.pid) is None


@pytest.fixture(scope="module")
def refused(operation: Operation) -> FlowRun:
    """A run that ends by itself, while another test waits for its own."""
    return operation.start("pipeline/local", dataset="lever-cd")


@pytest.fixture(scope="module")
def mapping(operation: Operation, tmp_path_factory: pytest.TempPathFactory) -> FlowRun:
    """Another one: maps of three pairs, of which one is good."""
    folder = tmp_path_factory.mktemp("pairs")
    for name in ("good", "broken"):
        for date, image in enumerate(scenes(50, 60), start=1):
            write(folder / f"{name}{date}.tif", image)
    (folder / "broken1.tif").write_bytes(b"no image")
    (folder / "pairs.csv").write_text(
        "id,t1,t2\nbroken,broken1.tif,broken2.tif\ngood,good1.tif,good2.tif\n"
        "signed,http://me:topsecret@127.0.0.1:1/1.tif?sig=topsecret,good2.tif"
    )
    return operation.start(
        "predict/local",
        pairs=str(folder / "pairs.csv"),
        weights=f"data/{TINY['dataset']}/models/dsfer-net/training/weights.safetensors",
        out=str(folder / "maps"),
        options={"min_area": 5},
    )


def running(project: Path, program: str | None = None) -> list[psutil.Process]:
    """Processes that run a program, or any, in this project or in a copy of it."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        command, folder = process.info["cmdline"] or [], process.info["cwd"] or ""
        if (program is None or program in command) and Path(folder).is_relative_to(project):
            found.append(process)
    return found


def training(project: Path) -> list[psutil.Process]:
    return running(project, "pipeline.stages.train")


@contextmanager
def download_by(project: Path, code: str) -> Iterator[None]:
    """The stage `download` runs another program, `program.py`."""
    program, yaml = project / "program.py", YAML()
    program.write_text(code)
    stages = yaml.load(project / "dvc.yaml")
    stages["stages"]["download"]["cmd"] = "python program.py"
    stages["stages"]["download"]["deps"].append(program.name)  # or DVC takes another one's outputs
    yaml.dump(stages, project / "dvc.yaml")
    try:
        yield
    finally:
        program.unlink()
        run(project, "git", "checkout", "dvc.yaml")
        restore(project)


def experiments(project: Path) -> dict[str, dict[str, Any]]:
    """Parameters of each experiment, by its name."""
    shown = json.loads(dvc(project, "exp", "show", "--json"))
    found = {}
    for commit_ in shown:
        for group in commit_["experiments"] or []:
            for revision in group["revs"]:
                found[revision["name"]] = revision["data"]["params"]["params.yaml"]["data"]
    return found


def copies(project: Path) -> list[Path]:
    return [path for path in project.glob(".dvc/tmp/flows/*") if path.is_dir()]


@pytest.mark.usefixtures("refused", "mapping")
def test_a_run_with_parameters_becomes_an_experiment_and_shows_its_results(operation):
    project = operation.project
    printed = run(
        project, sys.executable, "-m", "prefect", "deployment", "run", "pipeline/local", "--watch",
        "-p", f"dataset={TINY['dataset']}", "-p", "lambda=0.3", "-p", "iterations=4",
    )  # fmt: skip
    assert "Flow run finished successfully" in " ".join(printed.split())
    runs = operation.client.read_flow_runs()
    (flow_run,) = [run for run in runs if run.parameters.get("lambda") == 0.3]
    assert operation.state(flow_run) == "Completed", operation.log(flow_run)
    log = operation.log(flow_run)
    assert "Stage 'shard' is cached" in log and "Running stage 'train'" in log
    (name,) = [name for name in experiments(project) if name.startswith("flow-")]
    assert experiments(project)[name]["lambda"] == 0.3
    assert run(project, "git", "status", "--short") == ""
    assert copies(project) == []
    artifacts = operation.artifacts(flow_run)
    outputs = {f"outputs-{stage}" for stage in YAML().load(project / "dvc.yaml")["stages"]}
    shown = {"validation", "progress-train", "scores", "change-maps", "report"}
    assert set(artifacts) == outputs | shown
    rows = json.loads(artifacts["scores"].data)
    assert [row["change class, %"] for row in rows] == [
        "This run, tiles", "This run, stitched", "Baseline, tiles",
    ]  # fmt: skip
    assert "data:image/webp;base64," in artifacts["change-maps"].data
    assert f"dvc exp apply {name}" in artifacts["report"].data


def test_parameters_that_exclude_each_other_end_the_run_with_the_reason(operation, refused):
    assert operation.finish(refused) == "Failed"
    assert "unknown data set 'lever-cd'; perhaps you mean 'levir-cd'" in operation.message(refused)
    assert operation.artifacts(refused) == {}
    assert copies(operation.project) == []


def test_maps_of_pairs_of_which_one_is_broken_by_a_worker(operation, mapping):
    assert operation.finish(mapping) == "Failed", operation.log(mapping)
    maps = Path(mapping.parameters["out"])
    assert "2 of 3 pairs failed: broken, signed" in operation.message(mapping)
    rows = json.loads(operation.artifacts(mapping)["maps"].data)
    assert [(row["id"], row["status"]) for row in rows] == [
        ("broken", "failed"), ("good", "done"), ("signed", "failed"),
    ]  # fmt: skip
    assert "http://127.0.0.1:1/1.tif?...: " in rows[2]["error"]
    tries = {run.name: run.run_count for run in operation.client.read_task_runs(limit=200)}
    assert (tries["broken"], tries["signed"]) == (1, 1 + RETRIES)  # an address may answer later
    check_unknown(operation.project, "topsecret")
    (shown,) = operation.client.read_artifacts(
        artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["map-good"]))
    )
    assert "data:image/webp;base64," in shown.data
    assert read_json(maps / "good/summary.json")["options"]["min_area"] == 5
    assert sorted(each.name for each in maps.iterdir()) == ["good", "maps.json"]


@pytest.mark.slow
def test_a_stage_with_parameters_finds_what_came_before_and_does_what_comes_after(operation):
    flow_run = operation.start("stage/local", name="evaluate", overlap=0.25)
    assert operation.finish(flow_run) == "Completed", operation.log(flow_run)
    log = operation.log(flow_run)
    assert "Running stage 'evaluate'" in log and "Running stage 'report'" in log
    assert "stage 'train'" not in log
    changed = experiments(operation.project).values()
    assert any(values["overlap"] == 0.25 for values in changed)
    assert copies(operation.project) == []


def test_impossible_parameters_are_refused_before_anything_starts(operation):
    printed = run(
        operation.project, sys.executable, "-m", "prefect", "deployment", "run",
        "pipeline/local", "-p", "lamda=1", fails=True,
    )  # fmt: skip
    assert "not found on the deployment" in " ".join(printed.split())
    for name, value, reason in [
        ("lambda", -1, "less than the minimum of 0"),
        ("from_stage", "trian", "is not one of"),
        ("source", "s3://key:topsecret@bucket/x", "credentials in a URL"),
    ]:
        with pytest.raises(PrefectHTTPStatusError, match=reason):
            operation.start("pipeline/local", **{name: value})
    check_unknown(operation.project, "topsecret")


def check_unknown(project: Path, secret: str) -> None:
    """Prefect holds a text neither in its data base nor in its logs."""
    held = {
        file.name: file.read_bytes() for file in (project / ".prefect").iterdir() if file.is_file()
    }
    assert any(b"pipeline" in content for name, content in held.items() if ".db" in name)
    assert not [name for name, content in held.items() if secret.encode() in content]


def test_pools_stay_as_they_were_set_and_schedules_are_off(operation, monkeypatch):
    limit = WorkPoolUpdate(concurrency_limit=5)  # workers have their own: one run on each GPU
    operation.client.update_work_pool("gpu", limit)
    monkeypatch.setattr(operate, "API", str(operation.client.api_url))
    operate.create_pools("cpu", "gpu")
    pools = {pool.name: pool.concurrency_limit for pool in operation.client.read_work_pools()}
    assert pools == {"cpu": None, "gpu": 5}
    deployments = operation.client.read_deployments()
    assert {(found.name, found.work_pool_name) for found in deployments} == {
        ("local", "cpu"), ("gpu", "gpu"),
    }  # fmt: skip
    schedules = [schedule for found in deployments for schedule in found.schedules]
    assert len(schedules) == 2
    assert not any(schedule.active for schedule in schedules)


def test_experiments_do_not_share_a_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    check_jobs(1)
    with pytest.raises(ConfigError, match="2 experiments at a time would share GPU 3"):
        check_jobs(2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")  # as of a worker that was started by hand
    with pytest.raises(ConfigError, match=r"would share GPU 0.*start the worker with CUDA_VISIBLE"):
        check_jobs(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    check_jobs(2)


def test_a_second_start_is_refused_and_lost_runs_are_settled(operation, monkeypatch):
    monkeypatch.setattr(operate, "API", str(operation.client.api_url))
    with pytest.raises(operate.OperationError, match="a server answers there already"):
        operate.up()
    lost, other = (
        operation.start_on(f"cpu@{host}") for host in (platform.node(), "another-machine")
    )
    operate.settle_lost_runs()
    assert operation.state(lost) == "Crashed"
    assert operation.state(other) == ""
    operation.client.delete_flow_run(other.id)


def test_a_port_that_another_program_uses_is_refused(monkeypatch):
    with socket.create_server((operate.HOST, 0)) as taken:
        monkeypatch.setattr(operate, "PORT", str(taken.getsockname()[1]))
        with pytest.raises(operate.OperationError, match="another program uses this port"):
            operate.check_port()


@pytest.mark.slow
def test_a_sweep_is_one_table_and_says_which_experiment_failed(operation):
    flow_run = operation.start("sweep/local", grid={"lambda": [0.2, 1e300]}, jobs=2)
    assert operation.finish(flow_run) == "Failed"
    assert "1 of 2 experiments have no result" in operation.message(flow_run)
    good, bad = json.loads(operation.artifacts(flow_run)["sweep"].data)
    assert (good["lambda"], good["status"]) == (0.2, "done")
    assert experiments(operation.project)[good["experiment"]]["lambda"] == 0.2
    assert bad["lambda"] == 1e300
    assert bad["status"] == "failed: lr: the loss is inf at step 1."
    # What is done is read, not computed again.
    queued = dvc(operation.project, "queue", "status")
    assert " done " in run(operation.project, *sweep_command({"lambda": [0.2]}))
    assert dvc(operation.project, "queue", "status") == queued


@pytest.mark.slow
def test_a_table_of_the_paper_is_run_once_shown_and_drawn(operation, monkeypatch, tmp_path):
    project, where = operation.project, "data/tables"
    flow_run = operation.start("benchmark/local", tables=["III"], datasets=["folder/tiny"], jobs=2)
    assert operation.finish(flow_run) == "Completed", operation.log(flow_run)
    text = operation.artifacts(flow_run)["table-iii"].data
    assert text == (project / where / "table-III.md").read_text()
    assert "paper, other data" in text and "Base+Concat+DSFR" in text and "†" not in text
    # What is done is read, not computed again, by whatever name a table calls it.
    queued = dvc(project, "queue", "status")
    command = [sys.executable, "-m", "pipeline.benchmark", "III", "--dataset", "folder/tiny"]
    assert f"tables III are in {where}" in run(project, *command)
    assert dvc(project, "queue", "status") == queued
    assert run(project, "git", "status", "--short") == ""
    monkeypatch.chdir(project)
    check_plates(project, tmp_path)


def check_plates(project: Path, tmp_path: Path) -> None:
    """Variants of Table III in place of methods: no folder of the project has two of them."""
    base, failed, _, whole = entries_of("III", ["folder/tiny"], [0], {})
    own = whole.model_copy(update={"key": "dsfer-net"})
    of_base, of_failed, of_own = (entry.cells[0] for entry in (base, failed, own))
    outcomes = {cell.name: read_metrics(cell) for cell in (of_own, of_base)}
    folder = tmp_path / "comparison-folder-tiny"
    shards = project / "data/folder/tiny/shards"
    shards.rename(tmp_path / "shards")  # of the project itself nothing is read
    try:
        draw_plates([base, failed, own], outcomes | {of_failed.name: "failed: no room."}, folder)
    finally:
        (tmp_path / "shards").rename(shards)
    record, pictures = read_figures(folder)
    hashes = {
        entry.key: json.loads(kept_weights(cell))["sha256"]
        for entry, cell in ((base, of_base), (own, of_own))
    }
    assert record.methods == hashes and list(record.methods) == [base.key, "dsfer-net"]
    assert [figure.name for figure in record.figures] == [
        "comparison", "difference", "retrieval", "evidence-1",
    ]  # fmt: skip
    caption = record.figures[0].caption
    assert "of Table III with seed 0" in caption
    assert caption.endswith(f"Left out: {failed.label}: failed: no room.")
    assert {path.name for path in folder.iterdir()} == {"figures.json"} | {
        picture.with_suffix(suffix).name for picture in pictures for suffix in (".png", ".pdf")
    }
    assert list(tmp_path.iterdir()) == [folder]


def kept_weights(cell: Cell) -> str:
    """The record of the weights that an experiment trained."""
    path = cell.settings.model_folder / "training/weights.json"
    return DVCFileSystem(rev=cell.name).read_text(path.as_posix())


def sweep_command(grid: dict[str, Any]) -> list[str]:
    return [sys.executable, "-m", "pipeline.sweep", "--grid", json.dumps(grid)]


def start_sweep(project: Path, grid: dict[str, Any], *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*sweep_command(grid), *options], cwd=project, env=environment(), start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_a_sweep_that_is_stopped_stops_training_and_leaves_no_queue(project):
    with start_sweep(project, {"iterations": [100_000], "seed": [1, 2]}) as sweep:
        saved_state(project)
        second = run(project, *sweep_command({"seed": [3]}), fails=True)
        assert f"another sweep (process {sweep.pid}" in second
        sweep.send_signal(signal.SIGINT)
        printed, _ = sweep.communicate(timeout=PATIENCE)
    assert sweep.returncode == 1
    assert "stopped with 2 experiments to do" in printed
    wait_for(lambda: not training(project))
    assert not {"Queued", "Running"} & set(dvc(project, "queue", "status").split())
    shutil.rmtree(project / ".dvc/tmp/resume")


@pytest.mark.slow
def test_a_sweep_that_is_cancelled_stops_training_and_leaves_no_queue(operation):
    project = operation.project
    flow_run = operation.start("sweep/local", grid={"iterations": [100_000], "seed": [4, 5]})
    saved_state(project)
    operation.client.set_flow_run_state(flow_run.id, Cancelling())
    wait_for(lambda: not training(project))
    assert operation.finish(flow_run) == "Cancelled"
    assert not {"Queued", "Running"} & set(dvc(project, "queue", "status").split())
    shutil.rmtree(project / ".dvc/tmp/resume")


@pytest.mark.slow
def test_a_sweep_goes_on_when_the_worker_of_its_queue_is_killed(project, tmp_path):
    grid, out = {"iterations": [300], "validate_every": [100]}, tmp_path / "rows.json"
    with start_sweep(project, grid, "--out", str(out)) as sweep:
        saved_state(project)
        noted = json.loads((project / WORKERS / "dvc-exp-worker-1.json").read_text())
        os.kill(noted["pid"], signal.SIGKILL)
        printed, _ = sweep.communicate(timeout=PATIENCE)
    assert "no worker of DVC's queue lives: 1 experiments go on" in printed
    assert sweep.returncode == 0, printed
    (row,) = json.loads(out.read_text())
    assert row["status"] == "done"
    log = dvc(project, "queue", "logs", row["experiment"])
    assert set(executed(log)) <= {"train", "evaluate", "figures", "report"}
    assert "continuing from step" in log or "Stage 'train' is cached" in log
    assert not training(project) and not list(project.glob(".dvc/tmp/exps/tmp*"))


@pytest.mark.slow
def test_a_download_that_failed_is_tried_again(operation):
    """The stage's exit status says that the reason may pass; here it passes at the third try."""
    project, tries = operation.project, operation.project / "tries"
    code = (
        "import pathlib, sys\n"
        "tries = pathlib.Path('tries')\n"
        "tries.write_text(tries.read_text() + 'x' if tries.exists() else 'x')\n"
        "if len(tries.read_text()) < 3: sys.exit(75)\n"
        "from pipeline.stages import download, run\n"
        "run(download.main)\n"
    )
    with download_by(project, code):
        flow_run = operation.start("stage/local", name="download")
        assert operation.finish(flow_run) == "Completed", operation.log(flow_run)
        assert tries.read_text() == "xxx"
        tries.unlink()


@pytest.mark.slow
def test_a_run_that_was_called_counts_as_crashed_after_ctrl_c(operation):
    project = operation.project
    call = "from pipeline.flows import stage; stage(name='download')"
    with download_by(project, "import time; time.sleep(600)"):
        with subprocess.Popen(
            [sys.executable, "-c", call], cwd=project, env=environment(), start_new_session=True
        ) as called:
            assert wait_for(lambda: running(project, "program.py"))
            os.killpg(called.pid, signal.SIGINT)  # what a terminal does at Ctrl-C
            wait_for(lambda: not running(project, "program.py"), 10)
        (first,) = operation.client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)
        assert operation.finish(first) == "Crashed"


def test_training_is_cancelled_within_seconds_and_the_next_run_goes_on(operation):
    project, others = operation.project, set(running(operation.project))
    try:
        for said in ("Running stage 'train'", "continuing from step"):
            flow_run = operation.start("stage/local", name="train", iterations=100_000)
            saved_state(project)
            wait_for(lambda run=flow_run, said=said: said in operation.log(run))
            operation.client.set_flow_run_state(flow_run.id, Cancelling())
            wait_for(lambda: not training(project), 10)
            assert operation.finish(flow_run) == "Cancelled"
            wait_for(lambda: set(running(project)) <= others, 60)
            assert list(project.glob(".dvc/tmp/flows/*")) == []  # neither copy nor lock
            assert [path.name for path in project.glob(".dvc/tmp/resume/*/*")] == ["last.pt"]
            assert list(project.glob(".dvc/tmp/resume/*.lock")) == []
    finally:
        shutil.rmtree(project / ".dvc/tmp/resume")


@pytest.mark.slow
def test_training_is_cancelled_continued_and_never_runs_unseen(operation):
    """It is cancelled as two processes, each of which leads a session, and continued as one."""
    project = operation.project
    yaml = YAML()
    params = yaml.load(project / "params.yaml")
    params.update({"iterations": 100_000, "processes": 2})
    yaml.dump(params, project / "params.yaml")
    commit(project, "long")
    others = set(running(project))  # the server and its worker

    def ended() -> bool:
        """Neither training nor a flow run, DVC, guard or witness is left."""
        return set(running(project)) <= others

    try:
        first = operation.start("stage/local", name="train")
        saved_state(project)
        second = operation.start("stage/local", name="report")
        assert operation.finish(second) == "Failed"
        said = operation.message(second)
        assert f"flow run '{first.name}' (process" in said, operation.log(first)

        sessions = {os.getsid(process.pid) for process in training(project)}
        assert len(sessions) == 3  # of their launcher, too
        operation.client.set_flow_run_state(first.id, Cancelling())
        wait_for(lambda: not training(project), 10)
        assert operation.finish(first) == "Cancelled"
        wait_for(ended, 60)
        params["processes"] = 1
        yaml.dump(params, project / "params.yaml")

        # Ctrl-C in the worker's terminal goes to its runs, too; of a kill they hear later.
        for kill, end, seconds in ((os.killpg, signal.SIGINT, 10), (os.kill, signal.SIGKILL, 60)):
            assert list(project.glob(".dvc/tmp/resume/*/last.pt"))
            assert not any(read_json(project / ".dvc/tmp/rwlock").values())
            later = operation.start("stage/local", name="train")
            wait_for(lambda run=later: "continuing from step" in operation.log(run))
            worker = operation.started("worker-cpu")
            kill(worker.pid, end)
            wait_for(lambda: not training(project), seconds)
            assert operation.finish(later) == "Crashed"
            assert wait_for(lambda worker=worker: not worker.is_running())
            wait_for(ended, 60)
            operation.start_worker()
    finally:
        run(project, "git", "reset", "--quiet", "--hard", "HEAD~1")
        restore(project)
        shutil.rmtree(project / ".dvc/tmp/resume")


def saved_state(project: Path) -> None:
    """Wait until a training that lives has saved its state; one that has ended may have left it."""
    wait_for(lambda: training(project) and list(project.glob(".dvc/tmp/resume/*/last.pt")))


@pytest.mark.slow
def test_maps_that_are_cancelled_end_in_time_and_go_on(operation, tmp_path):
    """A pair of which the rows were noted once, long before it is done."""
    project, maps = operation.project, tmp_path / "maps"
    for date, image in enumerate(scenes(300_000, 40), start=1):
        write(tmp_path / f"long{date}.tif", image)
    (tmp_path / "pairs.csv").write_text("id,t1,t2\nlong,long1.tif,long2.tif\n")
    weights = f"data/{TINY['dataset']}/models/dsfer-net/training/weights.safetensors"
    given = {"pairs": str(tmp_path / "pairs.csv"), "weights": weights, "out": str(maps)}
    others = set(running(project))  # the server and its worker
    progress = maps / ".long.partial/progress.json"
    for _ in range(2):
        before = progress.stat().st_mtime if progress.exists() else 0
        flow_run = operation.start("predict/local", **given)
        wait_for(lambda before=before: progress.exists() and progress.stat().st_mtime > before)
        operation.client.set_flow_run_state(flow_run.id, Cancelling())
        wait_for(lambda: set(running(project)) <= others, 10)
        assert operation.finish(flow_run) == "Cancelled"
        assert not (maps / "long").exists()
    first, second = read_json(progress)["runs"]
    assert first["from_row"] == 0 and 0 < second["from_row"] < read_json(progress)["rows"]


@pytest.mark.slow
def test_training_of_a_killed_run_stops_and_the_next_run_continues_it(operation):
    """Its own process is killed: alone at first, then with its worker, which could report it."""
    project = operation.project
    yaml = YAML()
    params = yaml.load(project / "params.yaml")
    params["iterations"] = 100_000
    yaml.dump(params, project / "params.yaml")
    commit(project, "long")
    others = set(running(project))
    try:
        for also in (False, True):
            flow_run = operation.start("stage/local", name="train")
            saved_state(project)
            wait_for(lambda: training(project))
            if also:
                wait_for(lambda run=flow_run: "continuing from step" in operation.log(run))
            worker = operation.started("worker-cpu")
            (process,) = worker.children()
            for each in [worker] * also + [process]:
                each.kill()
            wait_for(lambda: not training(project), 60)
            assert operation.finish(flow_run) == "Crashed"
            wait_for(lambda: set(running(project)) <= others, 60)
        operation.start_worker()
    finally:
        run(project, "git", "reset", "--quiet", "--hard", "HEAD~1")
        restore(project)
        shutil.rmtree(project / ".dvc/tmp/resume")

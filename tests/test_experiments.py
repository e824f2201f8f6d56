"""DVC's queue for real, in a project of one stage that fails at will."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from dvc.repo import Repo

from pipeline.experiments import WORKERS, failure, finished, run_queued
from tests.project import command, commit, dvc, environment, run
from tests.waiting import PATIENCE, wait_for

STAGES = f"""\
stages:
  measure:
    cmd: {sys.executable} measure.py
    deps: [measure.py]
    params: [amount]
    metrics: [metrics.json]
"""

MEASURE = """\
import os, pathlib, sys, time

amount, here = pathlib.Path("params.yaml").read_text(), pathlib.Path({folder!r})
with (here / "tries").open("a") as tries:
    tries.write(amount)
with (here / "gpus").open("a") as gpus:
    print(os.environ.get("CUDA_VISIBLE_DEVICES"), file=gpus)
while "5" in amount and not (here / "end").exists():
    time.sleep(0.1)
if "2" in amount and not (here / "room").exists():
    sys.exit("error: disk: no room. To mend it: make some.")
pathlib.Path("metrics.json").write_text("{{}}")
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    project = tmp_path / "project"
    project.mkdir()
    run(project, "git", "init", "--quiet", "--initial-branch=main")
    dvc(project, "init", "--quiet")
    (project / "params.yaml").write_text("amount: 0\n")
    (project / "dvc.yaml").write_text(STAGES)
    (project / "measure.py").write_text(MEASURE.format(folder=str(tmp_path)))
    commit(project, "project")
    monkeypatch.chdir(project)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    return project


@pytest.mark.slow
def test_what_failed_is_told_and_tried_again_when_the_same_is_started_again(
    project, tmp_path, capfd
):
    def start():
        experiments = {"small": {"amount": 1}, "large": {"amount": 2}}
        run_queued(experiments, 1, stopped=lambda: False, check=lambda: None)
        tries = (tmp_path / "tries").read_text().splitlines()
        return capfd.readouterr().out, tries.count("amount: 1"), tries.count("amount: 2")

    told = "DVC's queue holds a failed run of large: disk: no room.\nit is taken away, and"
    printed, *tries = start()
    assert "2 of 2 experiments are through" in printed and "failed run" not in printed
    assert tries == [1, 1] and finished() == {"small"}
    assert failure("large") == "disk: no room." and failure("small") is None

    printed, *tries = start()
    assert told in printed and "1 of 1 experiments are through" in printed
    assert tries == [1, 2] and finished() == {"small"}
    assert dvc(project, "queue", "status").count("Failed") == 1

    (tmp_path / "room").touch()
    printed, *tries = start()
    assert told in printed and tries == [1, 3]
    assert finished() == {"small", "large"} and failure("large") is None


def test_what_a_worker_took_and_never_began_is_run(project, tmp_path):
    broker = project / WORKERS / "broker"
    with Repo() as repo:
        repo.experiments.run(params=["amount=1"], name="lost", queue=True)
        for message in (broker / "in").glob("*.celery.msg"):  # as a worker takes it
            message.rename(broker / "processed" / message.name)
        (row,) = repo.experiments.celery_queue.status()
        assert (row["name"], row["status"]) == ("lost", "Running")
    run_queued({"lost": {"amount": 1}}, 1, stopped=lambda: False, check=lambda: None)
    assert (tmp_path / "tries").read_text() == "amount: 1\n"
    assert finished() == {"lost"}


SWEEP = """
import os, sys
from pathlib import Path
from dvc.repo.experiments.queue.base import BaseStashQueue
from dsfer.signals import stop_on_signals
from pipeline.cells import queue_held
from pipeline.experiments import run_queued
from pipeline.stages import run
from pipeline.workspace import restore_params

def stash(queue, *args, **kwargs):  # by now the values are in params.yaml
    if kwargs["run_env"]["DVC_EXP_NAME"] == sys.argv[2]:
        Path("../told").touch()
        os.kill(os.getpid(), int(sys.argv[1]))
    return real(queue, *args, **kwargs)

def main():
    restore_params(Path(), "a sweep")
    with queue_held("a sweep"):
        experiments = {"long": {"amount": 5}, "short": {"amount": 1}}
        run_queued(experiments, 1, stop_on_signals(patience=None), check=lambda: None)

real, BaseStashQueue._pack_args = BaseStashQueue._pack_args, stash
run(main)
"""


def start_sweep(number: int, at: str = "") -> subprocess.Popen[str]:
    """Start a sweep that sends itself a signal while it queues an experiment."""
    command = [sys.executable, "-c", SWEEP, str(int(number)), at]
    return subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_sweep_that_is_killed_itself_goes_on(project, tmp_path):
    """While it queues the second experiment, and again while the first one runs."""

    def begun():
        return (tmp_path / "tries").read_text().split() if (tmp_path / "tries").exists() else []

    params = project / "params.yaml"
    assert start_sweep(signal.SIGKILL, at="short").wait() == -signal.SIGKILL
    assert params.read_text() == "amount: 1\n"  # as DVC wrote it

    with start_sweep(signal.SIGKILL) as sweep:
        wait_for(begun)
        sweep.kill()
    assert params.read_text() == "amount: 0\n"
    assert (project / ".dvc/tmp/flows/params.replaced.yaml").read_text() == "amount: 1\n"
    assert begun() == ["amount:", "5"]  # and it still runs

    with start_sweep(signal.SIGKILL) as sweep:
        wait_for(lambda: begun().count("5") == 2)
        (tmp_path / "end").touch()
    assert sweep.returncode == 0
    assert begun() == ["amount:", "5"] * 2 + ["amount:", "1"]
    assert finished() == {"long", "short"}
    assert not {"Queued", "Running"} & set(dvc(project, "queue", "status").split())
    assert run(project, "git", "status", "--short", "--branch") == "## main\n"


@pytest.mark.slow
@pytest.mark.parametrize("at", ["short", ""], ids=["while it queues", "while experiments run"])
def test_ctrl_c_ends_a_sweep_and_all_it_started_in_time(project, tmp_path, at):
    with start_sweep(signal.SIGINT, at) as sweep:
        if not at:
            wait_for((tmp_path / "tries").exists)
            assert measuring(project)
            (tmp_path / "told").touch()
            sweep.send_signal(signal.SIGINT)
        _, said = sweep.communicate(timeout=PATIENCE)
        assert time.time() - (tmp_path / "told").stat().st_mtime < 10
    assert sweep.returncode == 1 and "stopped with 2 experiments to do" in said
    assert not measuring(project)
    assert dvc(project, "queue", "status").count("Queued") == 0
    assert run(project, "git", "status", "--short", "--branch") == "## main\n"
    assert not (project / ".dvc/tmp/flows/params.replaced.yaml").exists()
    assert not list((project / ".dvc/tmp/flows").glob("*.lock"))


def measuring(project: Path) -> list[psutil.Process]:
    """Processes of the stage, in the project or a copy of it."""
    found = psutil.process_iter(["cmdline", "cwd"])
    return [
        process for process in found
        if "measure.py" in (process.info["cmdline"] or [])
        and Path(process.info["cwd"] or "/").is_relative_to(project)
    ]  # fmt: skip


@pytest.mark.slow
def test_a_sweep_right_after_another_runs_in_its_own_environment(project, tmp_path, monkeypatch):
    for gpu, amount in (("0", 3), ("1", 4)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpu)
        names = {f"on{gpu}": {"amount": amount}}
        run_queued(names, 1, stopped=lambda: False, check=lambda: None)
    assert (tmp_path / "gpus").read_text().split() == ["0", "1"]
    assert finished() == {"on0", "on1"}


@pytest.mark.slow
def test_what_somebody_else_has_started_goes_on(project, tmp_path, capfd):
    with Repo() as repo:
        repo.experiments.run(params=["amount=5"], name="theirs", queue=True)
    start = command("queue", "start")
    subprocess.run(start, stdout=subprocess.DEVNULL, check=True)  # workers keep what they inherit
    try:
        wait_for((tmp_path / "tries").exists)
        run_queued({"ours": {"amount": 1}}, 2, stopped=lambda: False, check=lambda: None)
        assert finished() == {"ours"}
        assert "at other work" in capfd.readouterr().out
    finally:
        (tmp_path / "end").touch()
    wait_for(lambda: finished() == {"ours", "theirs"})

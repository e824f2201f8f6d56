"""What all stages have in common, and what the processes of one share."""

import os
import signal
import subprocess
import sys
from unittest.mock import Mock

import psutil
import pytest
import torch

from pipeline.stages import train
from tests.project import ROOT

STAGE = """
import pipeline, os, time
print('begins', flush=True)
while os.environ['KILL'] == 'early' and os.getppid() == pipeline.STARTED_BY:
    time.sleep(0.01)
from pipeline.stages import run
run(lambda: print('works', flush=True) or time.sleep(60))
"""


def stage_without_dvc(kill: str, **variables: str) -> psutil.Process:
    """A stage whose DVC, a shell here, was killed: `early` in its imports, or `late`, at work."""
    environment = os.environ | {"KILL": kill} | variables
    shell = f'{sys.executable} -c "{STAGE}" & echo $!; wait'
    with subprocess.Popen(
        ["/bin/sh", "-c", shell], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as dvc:
        assert dvc.stdout
        stage = psutil.Process(int(dvc.stdout.readline()))
        assert dvc.stdout.readline() == "begins\n"
        if kill == "late":
            assert dvc.stdout.readline() == "works\n"
        dvc.kill()
    return stage


@pytest.mark.parametrize("kill", ["early", "late"])
def test_a_stage_ends_when_only_dvc_is_killed(kill):
    stage = stage_without_dvc(kill, DVC_STAGE="stage")
    try:
        stage.wait(50)
    finally:
        if stage.is_running():
            stage.kill()


def test_a_stage_started_by_hand_outlives_its_shell():
    stage = stage_without_dvc("late")
    with pytest.raises(psutil.TimeoutExpired):
        stage.wait(0.5)
    stage.send_signal(signal.SIGKILL)


def test_what_computes_nothing_does_not_wait_for_torch():
    stages = ["download", "crop", "split", "validate", "shard", "network", "report"]
    modules = ["dsfer.cli", "pipeline.flows", *(f"pipeline.stages.{name}" for name in stages)]
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_processes_of_a_machine_share_the_hashing_of_what_they_train_on(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    opened = Mock()
    monkeypatch.setattr(train, "open_shards", opened)
    monkeypatch.setattr(train, "wait_for_all", Mock(side_effect=InterruptedError))
    with pytest.raises(InterruptedError):
        train.train_from_shards(Mock(), torch.device("cpu"))
    assert [each.kwargs for each in opened.call_args_list] == [{"verify": slice(1, None, 2)}] * 2

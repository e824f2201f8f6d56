"""What all stages have in common."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from tests.project import ROOT

STAGE = (
    "from pipeline.stages import run; import time; "
    "run(lambda: print('at work', flush=True) or time.sleep(60))"
)


@pytest.mark.parametrize("started_by_dvc", [True, False])
def test_a_stage_ends_when_only_dvc_is_killed(started_by_dvc):
    environment = os.environ | ({"DVC_STAGE": "stage"} if started_by_dvc else {})
    shell = [f'{sys.executable} -c "{STAGE}" & echo $!; wait']
    with subprocess.Popen(
        ["/bin/sh", "-c", *shell], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as dvc:
        assert dvc.stdout
        stage = psutil.Process(int(dvc.stdout.readline()))
        assert dvc.stdout.readline() == "at work\n"
        dvc.kill()
        try:
            stage.wait(10 if started_by_dvc else 0.5)
            assert started_by_dvc
        except psutil.TimeoutExpired:
            assert not started_by_dvc
            stage.send_signal(signal.SIGKILL)

"""`make down` finds what `make up` has started, and nothing else."""

import os
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from dsfer.files import write_json
from dsfer.processes import process_mark
from pipeline import operate


@pytest.fixture
def started(tmp_path, monkeypatch) -> Iterator[subprocess.Popen[bytes]]:
    """What stands for a worker, which `make up` has noted."""
    monkeypatch.setattr(operate, "HOME", tmp_path)
    monkeypatch.setattr(operate, "RECORD", tmp_path / "started.json")
    command = [sys.executable, "-c", "import time; time.sleep(100)"]
    popen = subprocess.Popen
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", lambda _, **how: popen(command, **how))
        process = operate._start("worker-cpu", "worker", "start")
    with process:
        yield process
        process.kill()


def test_a_worker_is_ended_even_after_the_clock_was_set(started, monkeypatch):
    created = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: created(process) + 3600)
    assert operate.end_started() == 1
    assert not operate.RECORD.exists()
    assert process_mark(started.pid) is None


def test_another_process_that_has_the_number_by_now_is_left_alone(started):
    entry = {"name": "worker-cpu", "pid": started.pid, "mark": process_mark(os.getpid())}
    write_json(operate.RECORD, [entry])
    assert operate.end_started() == 0
    assert started.poll() is None

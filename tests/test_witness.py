"""A flow run that was told to end is over in time, whatever it is doing."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

from dsfer.processes import process_mark
from tests.project import ROOT, environment
from tests.waiting import wait_for

PROGRAM = """
import signal, subprocess, sys, time
from pipeline.witness import witnessed

for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: None)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with witnessed({flow_run!r}, 1):
    print("at work", flush=True)
    {work}
time.sleep(2)
child.kill()
"""

DEAF = "sum(range(10**12))"
"""Work in C, in which no Python code of the process runs, as when GDAL traces outlines."""


def start(**parts: str | None) -> subprocess.Popen[bytes]:
    """Start a run, of which no server can be told, and wait until it is at work."""
    away = {"PREFECT_API_URL": "http://127.0.0.1:1/api"}
    command = [sys.executable, "-c", PROGRAM.format(**parts)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=environment() | away)
    assert run.stdout is not None
    assert run.stdout.readline() == b"at work\n"
    return run


@pytest.mark.parametrize("flow_run", [None, "0197f3a4-0000-7000-8000-000000000000"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_does_not_end_is_killed_with_what_it_has_started(number, flow_run):
    with start(flow_run=flow_run, work=DEAF) as run:
        started = psutil.Process(run.pid).children()
        assert len(started) == 2  # its child and its witness
        marks = {process.pid: process_mark(process.pid) for process in started}
        told = time.monotonic()
        run.send_signal(number)
        assert run.wait(60) == -signal.SIGKILL
        assert 1 <= time.monotonic() - told < 10
    wait_for(lambda: not any(mark == process_mark(pid) for pid, mark in marks.items()), 60)


def test_what_ends_in_time_is_not_killed():
    with start(flow_run=None, work="signal.pause()") as run:
        run.send_signal(signal.SIGTERM)
    assert run.returncode == 0

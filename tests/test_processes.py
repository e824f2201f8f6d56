"""What tells processes apart."""

import os
import subprocess
import sys

import psutil

from dsfer import processes
from dsfer.processes import process_mark


def test_a_process_keeps_its_mark_when_the_clock_is_set_and_loses_it_when_it_ends(monkeypatch):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        mark = process_mark(process.pid)
        assert mark is not None and mark != process_mark(os.getpid())
        with monkeypatch.context() as patch:
            patch.setattr(psutil.Process, "create_time", lambda _: 0.0)
            assert process_mark(process.pid) == mark
        process.stdin.close()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert process_mark(process.pid) is None  # it has ended, and nobody has buried it
    assert process_mark(process.pid) is None


def test_a_process_of_another_boot_is_another(tmp_path, monkeypatch):
    mark, boot = process_mark(os.getpid()), tmp_path / "boot_id"
    boot.write_text("another\n")
    monkeypatch.setattr(processes, "BOOT", boot)
    assert process_mark(os.getpid()) != mark

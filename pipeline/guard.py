"""Run a command that must not outlive its caller: `python -m pipeline.guard SECONDS COMMAND…`.

`pipeline.commands` starts it as leader of a session, in which the command gets a process group of
its own. That group is asked to stop, as by Ctrl-C, when this process is told to end or when its
standard input closes, which happens by itself when the caller dies, however it dies. What of the
session has not stopped so many seconds later, or is left when the command has ended, is killed.
"""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

import psutil

GRACE = 8.0
"""Seconds between asking and killing: a training step and its checkpoint fit in, 10 s are kept."""

QUEUE_GRACE = 25.0
"""The same for what has experiments in DVC's queue: it waits for them and tidies up after them.
Prefect kills a cancelled flow run after 30 s."""


def guard(grace: float, command: list[str]) -> int:
    """Run `command` until it ends or has to; returns its exit status as a shell would."""
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: asked.set())
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)

    def end() -> None:
        asked.wait()
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGINT)
        try:
            child.wait(grace)
        except subprocess.TimeoutExpired:
            kill_session(os.getpid())

    def watch_caller() -> None:
        while os.read(0, 1024):
            pass
        asked.set()

    for work in (end, watch_caller):
        threading.Thread(target=work, daemon=True).start()
    status = child.wait()
    kill_session(os.getpid())
    return status if status >= 0 else 128 - status


def kill_session(leader: int) -> None:
    """Kill all processes of a session but its leader."""
    for pid in psutil.pids():
        with suppress(ProcessLookupError):
            if pid != leader and os.getsid(pid) == leader:
                os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(guard(float(sys.argv[1]), sys.argv[2:]))

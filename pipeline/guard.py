"""Run a command that must not outlive whoever started it: `python -m pipeline.guard COMMAND…`.

The command gets a process group of its own. The group is asked to stop, as by Ctrl-C, when this
process is told to end or when its standard input closes, which happens by itself when the caller
dies, however it dies. What has not stopped `GRACE` seconds later is killed.
"""

import os
import signal
import subprocess
import sys
import threading

GRACE = 8.0
"""Seconds between asking and killing: a training step and its checkpoint fit in, 10 s are kept."""


def guard(command: list[str]) -> int:
    """Run `command` until it ends or has to; returns its exit status as a shell would."""
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: asked.set())
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)

    def end() -> None:
        asked.wait()
        signal_group(child.pid, signal.SIGINT)
        try:
            child.wait(GRACE)
        except subprocess.TimeoutExpired:
            signal_group(child.pid, signal.SIGKILL)

    def watch_caller() -> None:
        while os.read(0, 1024):
            pass
        asked.set()

    for work in (end, watch_caller):
        threading.Thread(target=work, daemon=True).start()
    status = child.wait()
    signal_group(child.pid, signal.SIGKILL)  # what the command itself left behind
    return status if status >= 0 else 128 - status


def signal_group(group: int, number: signal.Signals) -> None:
    """Send a signal to a process group, if it is still there."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    sys.exit(guard(sys.argv[1:]))

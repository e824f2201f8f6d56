"""Sees that a flow run ends when it is told to: `python -m pipeline.witness PID SECONDS [ID]`.

A flow run has a witness: a process of a session of its own that holds one end of a pair of sockets.
A run that ends by itself says farewell there. The numbers of the signals that reach the run arrive
there too, written by Python's own handler in C, whatever the run is doing: GDAL may trace outlines
for a minute, in which no Python code of the process runs. So many seconds after a signal that asks
the run to end the witness kills it, with all that it has started.

A worker that ends, by Ctrl-C as by `kill`, kills the processes of its runs at once and tells the
server nothing of them (Prefect 3.8). Of a run that went without farewell the witness therefore asks
the server, and tells it that the run is over if it does not know.
"""

import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

import psutil

FAREWELL = b"."
"""No signal has its number, 46."""

ENDING = (signal.SIGINT, signal.SIGTERM)
"""Signals that ask a flow run to end."""

SECONDS_TO_TELL = 2.0
"""What the server has to answer before a flow run is killed. A worker that lives sees the kill, and
would be the first to say so: that the run crashed, even where it was cancelled."""


@contextmanager
def witnessed(flow_run_id: str | None, seconds: float) -> Iterator[None]:
    """Have a witness for as long as this process works on a flow run, in its main thread.

    Args:
        flow_run_id: the run, or None where no server has to hear of it.
        seconds: what this process has between Ctrl-C or SIGTERM and being killed.
    """
    ours, its = socket.socketpair()
    ours.setblocking(False)
    given = [str(os.getpid()), str(seconds), *([flow_run_id] if flow_run_id else [])]
    witness = subprocess.Popen(
        [sys.executable, "-m", "pipeline.witness", *given],
        stdin=its.fileno(),
        stdout=subprocess.DEVNULL,  # the worker reads the run's until nobody holds it
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    its.close()
    former = signal.set_wakeup_fd(ours.fileno())

    def farewell() -> None:
        signal.set_wakeup_fd(former)
        with ours, suppress(BrokenPipeError):  # it was killed
            ours.send(FAREWELL)
        witness.wait()

    try:
        yield
    except Exception:
        farewell()
        raise
    except BaseException:
        # It tells this process to end, which may take long and be followed by a kill: no farewell.
        ours.detach()
        raise
    farewell()


def watch(pid: int, seconds: float, flow_run_id: UUID | None = None) -> None:
    """Wait until a process says farewell or ends, and see that it does.

    Args:
        pid: number of the process, which holds the other end of this one's standard input.
        seconds: what it has to end, see `witnessed`.
        flow_run_id: the run that it works on, if a server has to hear of it.
    """
    ended = threading.Event()
    end = threading.Thread(target=_end, args=(pid, seconds, flow_run_id, ended), daemon=True)
    with socket.socket(fileno=os.dup(sys.stdin.fileno())) as run:
        while heard := run.recv(1):
            if heard == FAREWELL:
                return
            if heard[0] in ENDING and end.ident is None:
                end.start()
    ended.set()
    if flow_run_id:
        settle(flow_run_id)


def _end(pid: int, seconds: float, flow_run_id: UUID | None, ended: threading.Event) -> None:
    """Kill a flow run, and what it has started, if it has not ended in so many seconds."""
    told = time.monotonic()
    if flow_run_id:
        importlib.import_module("prefect.client.orchestration")  # takes seconds: `settle` needs it
    if ended.wait(max(0.0, told + seconds - time.monotonic())):
        return
    if flow_run_id:
        telling = threading.Thread(target=settle, args=(flow_run_id,), daemon=True)
        telling.start()
        telling.join(SECONDS_TO_TELL)
    if ended.is_set():  # another process may have its number by now
        return
    with suppress(psutil.NoSuchProcess):
        started = psutil.Process(pid).children(recursive=True)
        for each in (pid, *(process.pid for process in started)):
            if each != os.getpid():
                with suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)


def settle(flow_run_id: UUID) -> None:
    """Give a flow run that has no final state one: cancelled if that was asked for, else crashed.

    The worker may have been faster, where it lives.
    """
    from prefect.client.orchestration import get_client  # slow, and seldom needed
    from prefect.states import Cancelled, Crashed

    with get_client(sync_client=True) as client:
        state = client.read_flow_run(flow_run_id).state
        if state and not state.is_final():
            kind = Cancelled if state.is_cancelling() else Crashed
            client.set_flow_run_state(flow_run_id, kind(message="Its process was killed."))


if __name__ == "__main__":
    watch(int(sys.argv[1]), float(sys.argv[2]), *map(UUID, sys.argv[3:]))

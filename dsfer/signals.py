"""How a process is told to stop, by a signal or by the end of its parent, and its time to do so."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dsfer.console import end_now

PATIENCE = 7.0
"""Seconds in which a run that is told to stop may finish its step and save its state."""

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a run to stop."""


def stop_on_signals(patience: float | None = PATIENCE) -> Callable[[], bool]:
    """A question that becomes true once the process is told to stop.

    That is by Ctrl-C, SIGTERM, or the end of its terminal, unless `nohup` started it.

    Args:
        patience: seconds after which a process that has not stopped ends where it stands; None for
            one that has to come to its end.
    """
    told = threading.Event()
    # Python runs its handlers between two instructions of the main thread, which may wait for a
    # GPU or another rank meanwhile; the number of the signal is written here all the same.
    received, written = socket.socketpair()
    written.setblocking(False)

    def watch() -> None:
        while received.recv(1)[0] not in STOPPING:  # whatever else Python handles comes here too
            pass
        told.set()
        if patience is not None:
            time.sleep(patience)
            print(file=sys.stderr)  # the progress bar stays on its line
            end_now("interrupted: the next run goes on from the state saved last", 1)

    threading.Thread(target=watch, daemon=True).start()
    for number in STOPPING:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: told.set())
    signal.set_wakeup_fd(written.detach())
    return told.is_set


@contextmanager
def signals_restored() -> Iterator[None]:
    """After the block, signals mean what they meant before it."""
    former = {number: signal.getsignal(number) for number in STOPPING}
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in former.items():
            signal.signal(number, handler)


def when_parent_ends(act: Callable[[], object], parent: int) -> None:
    """Call `act` in a thread once the process that started this one has ended, however it did.

    Args:
        act: what to do.
        parent: number of that process, noted early: it may have ended since.
    """

    def watch() -> None:
        while os.getppid() == parent:  # changes at once, even where nobody buries the parent
            time.sleep(0.2)
        act()

    threading.Thread(target=watch, daemon=True).start()

"""One module per DVC stage, each a thin `main` over plain functions."""

import os
import signal
import threading
import time
from collections.abc import Callable

from dsfer import console

__all__ = ["run"]

STARTED_BY = os.getppid()
"""The process that started this one, noted before the slow imports of a stage begin."""

SECONDS_BETWEEN_LOOKS = 0.2


def run(main: Callable[[], object]) -> None:
    """Run a stage, or another command of the pipeline, and end a stage when its DVC is killed.

    Nobody would see the stage any more, and the next run of DVC would start it a second time, with
    both writing the same files. It is told to end as by `kill`, to which training answers by saving
    its state.
    """
    if "DVC_STAGE" in os.environ:
        threading.Thread(target=_end_with, args=(STARTED_BY,), daemon=True).start()
    console.run(main)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os.kill(os.getpid(), signal.SIGTERM)

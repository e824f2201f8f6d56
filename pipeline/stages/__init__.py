"""One module per DVC stage, each a thin `main` over plain functions."""

import os
import signal
from collections.abc import Callable

import pipeline
from dsfer import console
from dsfer.signals import when_parent_ends

__all__ = ["run"]


def run(main: Callable[[], object]) -> None:
    """Run a stage, or another command of the pipeline, and end a stage when its DVC is killed.

    Nobody would see the stage any more, and the next run of DVC would start it a second time, with
    both writing the same files. It is told to end as by `kill`, to which training answers by saving
    its state.
    """
    if "DVC_STAGE" in os.environ:
        when_parent_ends(lambda: os.kill(os.getpid(), signal.SIGTERM), pipeline.STARTED_BY)
    console.run(main)

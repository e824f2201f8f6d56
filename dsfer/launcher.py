"""Start training on several processes of this machine, as torchrun does."""

import os
import signal
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dsfer.data.workers import usable_cpus
from dsfer.errors import TrainingError


def launch(command: Sequence[str], processes: int) -> None:
    """Run a command as several ranks on this machine, as torchrun does, until all have ended.

    Signals are passed on to the ranks, which have half a minute to save their state.

    Args:
        command: program and arguments; a rank finds its number in the environment.
        processes: number of ranks.

    Raises:
        TrainingError: a rank was killed; the others were ended.
        SystemExit: a rank failed and has said why, or this process was told to stop.
    """
    # The cores are shared out, else every rank would compute on all of them.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(usable_cpus() // processes, 1)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"dsfer-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
    )
    program, *arguments = command
    try:
        elastic_launch(config, program)(*arguments)
    except SignalException as told:
        sys.exit(f"interrupted: {told.sigval.name} ended all {processes} processes")
    except ChildFailedError as error:
        # The others fail because of the first: one that was killed has the least to say of itself.
        number, failure = min(
            error.failures.items(), key=lambda item: (item[1].exitcode >= 0, item[1].timestamp)
        )
        if failure.exitcode >= 0:
            sys.exit(f"rank {number} of {processes} ended with exit status {failure.exitcode}")
        raise TrainingError(
            f"rank {number} of {processes} was killed by "
            f"{signal.Signals(-failure.exitcode).name}, and the others were ended",
            mend="see whether memory ran out, then start again: training goes on where it was "
            "last saved",
        ) from error

"""Start training on several processes of this machine, as torchrun does."""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dsfer.data.workers import usable_cpus
from dsfer.distributed import LAUNCHER
from dsfer.errors import TrainingError
from dsfer.files import read_json


def launch(command: Sequence[str], processes: int) -> None:
    """Run a command as several ranks on this machine, as torchrun does, until all have ended.

    Signals are passed on to the ranks, which have half a minute to save their state.

    Args:
        command: program and arguments; a rank finds its number in the environment, and reports
            there why it ended (`dsfer.console`).
        processes: number of ranks.

    Raises:
        TrainingError: a rank was killed; the others were ended.
        SystemExit: a rank failed, or this process was told to stop; it says what the first of them
            has reported; the status is that of `dsfer.console`.
    """
    # The cores are shared out, else every rank would compute on all of them.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(usable_cpus() // processes, 1)))
    os.environ[LAUNCHER] = str(os.getpid())
    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # it would tell the same in its way
    with TemporaryDirectory(prefix="dsfer-", ignore_cleanup_errors=True) as reports:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=f"dsfer-{os.getpid()}",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=reports),
        )
        program, *arguments = command
        try:
            elastic_launch(config, program)(*arguments)
        except SignalException as told:
            said = _first_report(Path(reports))
            sys.exit(said or f"interrupted: {told.sigval.name} ended all {processes} processes")
        except ChildFailedError as error:
            said = _first_report(Path(reports))
            _refuse_killed(error.failures, processes, reported=said is not None)
            print(
                said or f"error: {len(error.failures)} of {processes} processes failed",
                file=sys.stderr,
            )
            passing = os.EX_TEMPFAIL in {failure.exitcode for failure in error.failures.values()}
            sys.exit(os.EX_TEMPFAIL if passing else 1)


def _refuse_killed(failures: dict[int, ProcessFailure], processes: int, *, reported: bool) -> None:
    """Name a rank that was killed; not one that was ended since another had reported an error."""
    for number, failure in failures.items():
        ended = reported and failure.exitcode == -signal.SIGTERM
        if failure.exitcode < 0 and not ended:
            print(file=sys.stderr)  # its progress bar stays on its line
            raise TrainingError(
                f"rank {number} of {processes} was killed by "
                f"{signal.Signals(-failure.exitcode).name}, and the others were ended",
                mend="see whether memory ran out, then start again: training goes on where it was "
                "last saved",
            )


def _first_report(folder: Path) -> str | None:
    """What the rank said that was the first to end: the others ended for want of it."""
    reports = [read_json(file) for file in folder.glob("**/error.json")]
    first = min(reports, key=lambda report: float(report["timestamp"]), default=None)
    return first and str(first["message"])

"""Work spread over processes or machines, with results in the order of the work."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from dsfer.errors import DataError

T = TypeVar("T")
R = TypeVar("R")


def usable_cpus() -> int:
    """Number of CPU cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Spread(Protocol):
    """Applies a function to many items, wherever it likes, and yields the results in order.

    Who prepares data takes one as an argument: `Processes` of this machine, or whatever spreads
    work over a cluster. Machines must see the files that the items name under the same paths.
    """

    def __call__(
        self,
        function: Callable[[T], R],
        items: Sequence[T],
        *,
        chunk: int = 1,
        preload: Sequence[str] = (),
    ) -> Iterator[R]:
        """Apply `function` to each item and yield the results in order.

        Args:
            function: a function of an importable module. It may be called again with an item
                whose process was killed, so it must write a file in one step or not at all.
            items: what to apply it to; items and results travel between processes by pickle.
            chunk: items that are sent to a process at a time.
            preload: modules that `function` imports only when it runs, which may be imported once
                for all processes.

        Raises:
            DataError: a process was killed from outside.
            Exception: what `function` raises; work that has not begun is then given up.
        """


def check_written(path: Path, size: int | None = None) -> None:
    """Refuse to go on without a file that a worker says it has written.

    Args:
        path: the file.
        size: its bytes, or None where nobody has counted them.

    Raises:
        DataError: on this machine there is no such file, or one of another size.
    """
    if path.is_file() and size in (None, path.stat().st_size):
        return
    raise DataError(
        "a worker wrote it where this machine does not see it",
        where=path,
        mend="share the folder, so that all machines see the same files in it under this path, and "
        "run the stage again",
    )


@dataclass(frozen=True)
class Processes:
    """A `Spread` over processes of this machine.

    Attributes:
        workers: number of processes; with 1, or when one chunk holds all, nothing is started.
    """

    workers: int

    def __call__(
        self,
        function: Callable[[T], R],
        items: Sequence[T],
        *,
        chunk: int = 1,
        preload: Sequence[str] = (),
    ) -> Iterator[R]:
        """Apply `function` to each item and yield the results in order, see `Spread`."""
        workers = min(self.workers, -(-len(items) // chunk))
        if workers <= 1:
            yield from map(function, items)
            return
        # A fork of this process could inherit locks of its threads; a fork server has none, and
        # pays the imports once for all workers.
        forkserver = "forkserver" in multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if forkserver else "spawn")
        context.set_forkserver_preload([function.__module__, *preload])
        with ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool:
            try:
                yield from pool.map(function, items, chunksize=chunk)
            except BrokenProcessPool as error:
                raise DataError(
                    "a worker process was killed",
                    mend="see whether memory ran out, then run the stage again",
                ) from error


def _end_with_parent() -> None:
    """Leave no worker behind when the parent is killed without a chance to stop them.

    Ctrl-C reaches the workers too; only the parent answers it, and says so once.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

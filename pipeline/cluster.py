"""Data preparation over a Dask cluster, by Prefect's task runner; or over this machine's cores.

A stage hands its work over as a function of a `Spread`. On a cluster that function is a Prefect
flow, and each chunk of the work one of its tasks: seen in Prefect's pages, tried again when its
error may pass, and run elsewhere when its worker is killed.
"""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dsfer.data.workers import Processes, Spread, usable_cpus
from dsfer.errors import ConfigError, DataError, DsferError, first_line
from pipeline.guard import GRACE
from pipeline.prefect_settings import check_prefect_settings
from pipeline.witness import witnessed

if TYPE_CHECKING:
    from distributed import Future, Worker

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 1000
"""Chunks that are handed to the cluster before the first of them is done."""

PATIENCE = 10.0
"""Seconds that a scheduler may take to answer."""

PAUSE = 0.1
"""Seconds between two looks at what still runs."""

RETRIES = 2
"""How often a chunk is tried again after an error that no input can be blamed for."""

LIBRARIES = ("imagehash", "numpy", "pillow", "rasterio", "scipy", "webdataset")
"""What decides the bytes of tiles, hashes and tars."""


QUIET = {
    "DASK_LOGGING__DISTRIBUTED": "critical",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
}
"""Environment of workers started here: an error is said once, by the stage."""


def spread_out(cluster: int | str | None, name: str, work: Callable[[Spread], object]) -> None:
    """Do a stage's work on this machine or on a cluster; its results are the same.

    Args:
        cluster: None for processes of this machine, a number of Dask workers to start here, or
            the address of a Dask scheduler.
        name: what the flow is called.
        work: does it all, given where to do it.

    Raises:
        ConfigError: no Prefect server is known, or it does not answer; a setting of Prefect is
            impossible; no scheduler answers at the address; or a worker has several threads.
        DataError: a chunk killed one worker after the other.
    """
    if cluster is None:
        work(Processes(usable_cpus()))
        return
    check_prefect_settings()
    # These take seconds to import.
    from prefect import flow, runtime
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL
    from prefect_dask.task_runners import DaskTaskRunner

    mend = (
        "start one (`make up`) and set PREFECT_API_URL as it says; or set cluster to null, which "
        "uses the cores of this machine"
    )
    if not PREFECT_API_URL.value():
        raise ConfigError(
            f"{cluster!r} needs a Prefect server, and PREFECT_API_URL names none",
            where="params.yaml, cluster",
            mend=mend,
        )
    with get_client(sync_client=True) as client:
        if problem := client.api_healthcheck():
            raise ConfigError(
                f"no Prefect server answers at {PREFECT_API_URL.value()} ({first_line(problem)})",
                where="PREFECT_API_URL",
                mend=mend,
            ) from problem
    # The pages of Prefect have it all; the terminal gets what the stage says, and warnings.
    logging.getLogger("prefect").propagate = False
    logging.getLogger("distributed").setLevel(logging.WARNING)
    with scheduler(cluster) as address:

        @flow(name=name, task_runner=DaskTaskRunner(address=address))  # type: ignore[arg-type]
        def run() -> None:
            with witnessed(runtime.flow_run.id, GRACE):  # no worker looks after this flow run
                work(_over_tasks)

        run()


@contextlib.contextmanager
def scheduler(cluster: int | str, gpus: Sequence[str] = ()) -> Iterator[str]:
    """Address of a scheduler; that of a number of workers is started here and ended.

    Args:
        cluster: as in `spread_out`, but for None.
        gpus: names of GPUs, see `dsfer.devices.visible_gpus`; each of the workers started here sees
            one of them, in turn.
    """
    from distributed import Client, LocalCluster, Nanny

    class OneGpu(Nanny):
        def __init__(self, address: str, *, name: int, **kwargs: Any):
            seen = {"CUDA_VISIBLE_DEVICES": gpus[name % len(gpus)]} if gpus else {}
            super().__init__(address, name=name, env=QUIET | seen, **kwargs)

    if isinstance(cluster, int):
        with LocalCluster(  # type: ignore[no-untyped-call]
            n_workers=cluster,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",
            worker_class=OneGpu,
        ) as started:
            yield started.scheduler_address
        return
    try:
        with Client(cluster, timeout=PATIENCE, set_as_default=False) as client:  # type: ignore[no-untyped-call]
            workers = len(client.scheduler_info(n_workers=-1)["workers"])
    except OSError as error:
        raise ConfigError(
            f"no Dask scheduler answers at '{cluster}'",
            where="params.yaml, cluster",
            mend="start one (`dask scheduler`) and workers (`dask worker`), see docs/cluster.md",
        ) from error
    if workers:
        log.info("%d workers at %s", workers, cluster)
    else:
        log.warning("no worker has joined %s yet: waiting for the first", cluster)
    yield cluster


def _over_tasks(
    function: Callable[[T], R],
    items: Sequence[T],
    *,
    chunk: int = 1,
    preload: Sequence[str] = (),
) -> Iterator[R]:
    """A `Spread` over tasks of the flow that is running."""
    from distributed.client import FutureCancelledError
    from distributed.scheduler import KilledWorker
    from prefect import task
    from prefect.cache_policies import NO_CACHE

    del preload  # a worker of the cluster outlives its tasks, and imports once
    apply = task(
        name=function.__name__.strip("_"),
        retries=RETRIES,
        retry_condition_fn=may_pass,
        cache_policy=NO_CACHE,
        persist_result=False,
    )(_apply)
    here = Path.cwd(), _versions()
    chunks = (items[start : start + chunk] for start in range(0, len(items), chunk))
    submitted = (apply.submit(function, part, *here) for part in chunks)
    waiting: deque[Any] = deque()
    try:
        waiting.extend(islice(submitted, AHEAD))
        while waiting:
            results = waiting[0].result()
            waiting.popleft()
            waiting.extend(islice(submitted, 1))
            yield from results
    except (KilledWorker, FutureCancelledError) as error:
        raise DataError(
            "a piece of work killed every worker that it was given to, or the scheduler is gone",
            mend="see whether memory ran out (`dask worker --memory-limit`), then run the stage "
            "again",
        ) from error
    finally:  # the caller removes what was written, so that nobody may write any more
        _give_up([future.wrapped_future for future in waiting])


def _give_up(futures: Sequence["Future[Any]"]) -> None:
    """Let none of these tasks begin, and wait for those at work: nobody can stop a thread."""
    if not futures:
        return
    client, keys = futures[0].client, {future.key for future in futures}
    with contextlib.suppress(OSError):  # a scheduler that is gone knows nothing of its workers
        client.cancel(futures)
        # A worker has a task until it has heard that nobody wants it and no thread is at it.
        while any(client.run(_has_any, keys, on_error="ignore").values()):
            time.sleep(PAUSE)


def _has_any(keys: set[str], dask_worker: "Worker") -> bool:
    """Whether the worker that this runs on has one of these tasks."""
    return not keys.isdisjoint(dask_worker.state.tasks)


def may_pass(_task: Any, _run: Any, state: Any) -> bool:
    """Whether a piece of work that failed is worth another try: not if the input is at fault.

    A raster in a store or behind an address that cannot be read may only be out of reach for a
    while; errors of other classes say what is wrong with it.
    """
    error = state.result(raise_on_failure=False)
    if not isinstance(error, DsferError):
        return True
    return error.passing or (type(error) is DataError and "://" in str(error.where))


def _versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


def _apply(
    function: Callable[[T], R], items: Sequence[T], folder: Path, versions: dict[str, str]
) -> list[R]:
    """Do a chunk on a worker, in the folder that paths count from."""
    from distributed import get_worker

    # Workers may join at any time, so that it is only here that all are known.
    if (threads := get_worker().state.nthreads) > 1:
        raise ConfigError(
            f"a worker has {threads} threads, which would change each other's current folder",
            where="params.yaml, cluster",
            mend="start workers with `dask worker --nthreads 1`, and more of them by `--nworkers`",
        )
    ours = _versions()
    if wrong := [name for name in versions if ours[name] != versions[name]]:
        raise DataError(
            f"a worker has {wrong[0]} {ours[wrong[0]]}, and the stage was started with "
            f"{versions[wrong[0]]}: their results might differ",
            mend="install the same versions on all machines, with constraints.txt",
        )
    with contextlib.chdir(folder):
        return [function(item) for item in items]

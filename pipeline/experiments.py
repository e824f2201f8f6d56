"""DVC's queue of experiments: put some in, and wait until it has worked them off.

The queue's workers are processes that DVC starts and nobody watches. Here they are watched: when
none lives any more, what they had begun is ended and put into the queue again for new ones.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.repo.experiments.executor.base import ExecutorInfo
from dvc.repo.experiments.queue.celery import LocalCeleryQueue
from dvc_task.proc.process import ProcessInfo
from hydra.core.override_parser.types import Quote, QuotedString
from tenacity import Retrying, stop_after_delay, wait_fixed
from tenacity.retry import retry_if_result

from dsfer.errors import DsferError
from pipeline.commands import environment
from pipeline.guard import GRACE
from pipeline.recovery import is_leftover
from pipeline.workspace import params_kept, project_workspace

WORKERS = Path(".dvc/tmp/exps/celery")
"""Where DVC notes the workers of its queue and keeps their logs."""

START_LIMIT = 60.0
"""Seconds that a worker may take until it is noted there."""

STARTS = 3
"""So often workers are started before the queue is given up."""

SECONDS_BETWEEN_LOOKS = 2.0


class QueueError(DsferError):
    """Experiments were stopped before they were through, or DVC failed."""


def run_queued(
    experiments: Mapping[str, dict[str, Any]],
    jobs: int,
    stopped: Callable[[], bool],
    check: Callable[[], None],
    target: str | None = None,
) -> None:
    """Run those experiments that have no result yet, and wait until all are through.

    One that fails stops no other; `failure` tells why. When `stopped` says so, what runs is
    interrupted (training saves its state) and what waits is taken from the queue.

    Args:
        experiments: for each name, values by their key in `params.yaml`.
        jobs: how many run at a time.
        stopped: asked again and again, whether this has to end.
        check: called before experiments are queued; raises if they would no longer be those named.
        target: the last stage that is run; None for all.

    Raises:
        QueueError: it was stopped, or DVC failed, or workers of its queue died again and again.
        WorkspaceError: somebody works in the project, whose parameters DVC changes to queue them.
    """
    done = finished()
    left = {name: values for name, values in experiments.items() if name not in done}
    _tell_failed(left)
    _withdraw(left)  # what was left by a process that was killed
    starts = 0
    try:
        while left:
            if starts == STARTS:
                raise QueueError(
                    f"its workers died {STARTS} times; {len(left)} experiments are left",
                    where="DVC's queue", mend=f"see {WORKERS}/*.out, then start the same again",
                )  # fmt: skip
            _end_idle_workers(stopped)
            with project_workspace(Path(), "a sweep"), params_kept(Path()):
                check()
                _enqueue(left, stopped, target)
            _start_workers(jobs, stopped)
            starts += 1
            lost = _wait(left, stopped)
            if lost:
                print(f"no worker of DVC's queue lives: {len(lost)} experiments go on", flush=True)
                _withdraw(lost)
            left = {name: left[name] for name in lost}
    finally:
        _withdraw(left)


def finished() -> set[str]:
    """Names of the experiments that have a result, over all commits."""
    with Repo() as repo:
        found = repo.experiments.ls(all_commits=True)
    return {name for names in found.values() for name, _ in names}


def failure(name: str) -> str | None:
    """Why an experiment that was run has no result: the first error that its log tells."""
    with Repo() as repo:
        if _statuses(repo.experiments.celery_queue, {name}).get(name) != "Failed":
            return None
    try:
        printed = _dvc("queue", "logs", name)
    except QueueError as error:  # it has none: DVC failed before its first stage
        return str(error)
    said = [line.strip() for line in printed.splitlines() if line.startswith(("error:", "ERROR:"))]
    reason = said[0].partition(":")[2].partition(" To mend it")[0].strip() if said else ""
    return reason or "see its log"


def _tell_failed(names: Collection[str]) -> None:
    """Say which experiments of former tries have failed, and why, before they are tried again."""
    with Repo() as repo:
        status = _statuses(repo.experiments.celery_queue, names)
    for name in status:
        if status[name] == "Failed":
            print(f"DVC's queue holds a failed run of {name}: {failure(name)}", flush=True)
            print("it is taken away, and the experiment is tried again", flush=True)


def _enqueue(
    experiments: Mapping[str, dict[str, Any]], stopped: Callable[[], bool], target: str | None
) -> None:
    targets = [target] if target else None
    with Repo() as repo:
        queue = repo.experiments.celery_queue
        _forget(queue, experiments)
        for name, values in experiments.items():
            if stopped():
                raise _stopped(len(experiments))
            changes = [f"{key}={_quoted(value)}" for key, value in values.items()]
            try:
                repo.experiments.run(targets=targets, params=changes, name=name, queue=True)
            except DvcException as error:
                raise QueueError(str(error), where=f"experiment {name}") from error


def _forget(queue: LocalCeleryQueue, names: Collection[str]) -> None:
    """Remove what former tries left in the queue.

    A worker that ends may have taken an experiment and never begun it. Of such a one DVC removes
    the changes at first, and only when asked again the task that has failed.
    """
    for _ in range(2):
        status = _statuses(queue, names)
        queue.remove([name for name in status if status[name] != "Running"])


def _end_idle_workers(stopped: Callable[[], bool]) -> None:
    """End workers that have nothing to do, and wait until they are gone.

    A worker outlives the queue by many seconds. It would run new experiments in the environment
    that it was started in: on the GPUs that CUDA_VISIBLE_DEVICES named then. Workers of which
    somebody's experiments are run, or wait to be, go on.
    """
    if not _has_worker():
        return
    with Repo() as repo:
        queue = repo.experiments.celery_queue
        if any(queue.iter_active()) or any(queue.iter_queued()):
            print(
                "workers of DVC's queue are at other work: experiments that they take run in the "
                "environment that these workers were started in",
                flush=True,
            )
            return
        queue.shutdown()
        if not _comes_true(lambda: stopped() or not _has_worker(), START_LIMIT):
            raise QueueError(
                "an idle worker does not end",
                where="DVC's queue",
                mend=f"end it, see {WORKERS}/*.json",
            )
        queue.celery.clean()  # what dead ones were told must not reach those that get their names


def _start_workers(jobs: int, stopped: Callable[[], bool]) -> None:
    _dvc("queue", "start", "--jobs", str(jobs))
    if not _comes_true(lambda: stopped() or _has_worker(), START_LIMIT):
        raise QueueError("no worker starts", where="DVC's queue", mend=f"see {WORKERS}/*.out")


def _comes_true(question: Callable[[], bool], seconds: float) -> bool:
    """Ask again and again, for so many seconds, until the answer is yes."""
    asking = Retrying(
        retry=retry_if_result(lambda yes: not yes),
        wait=wait_fixed(0.2),
        stop=stop_after_delay(seconds),
        retry_error_callback=lambda _: False,
    )
    return asking(question)


def _has_worker() -> bool:
    return any(map(_is_alive, WORKERS.glob("dvc-exp-worker-*.json")))


def _is_alive(record: Path) -> bool:
    """Whether a process runs that DVC has noted in a file."""
    noted = ProcessInfo.load(str(record))
    return noted.returncode is None and not is_leftover(record, noted.pid)


def _wait(names: Collection[str], stopped: Callable[[], bool]) -> set[str]:
    """Wait until all are through or no worker lives; returns which are not through."""
    left = len(names)
    while True:
        works = _has_worker()  # before the next line: the last one may end in between
        # One that a worker is just taking from the queue has no status at all.
        open_ = set(names) - _that_are(names, "Failed", "Success")
        if len(open_) < left:
            left = len(open_)
            print(f"{len(names) - left} of {len(names)} experiments are through", flush=True)
        if not (open_ and works):
            return open_
        if _comes_true(stopped, SECONDS_BETWEEN_LOOKS):
            raise _stopped(left)


def _stopped(left: int) -> QueueError:
    return QueueError(
        f"stopped with {left} experiments to do",
        mend="start the same again; it goes on from there",
    )


def _withdraw(names: Collection[str]) -> None:
    """Take away what waits, interrupt what runs, and wait until that has saved its state."""
    asked: set[str] = set()

    def are_gone() -> bool:
        with Repo() as repo:
            queue = repo.experiments.celery_queue
            _interrupt(queue, names, asked)
            status = _statuses(queue, names)
            with suppress(DvcException):  # a worker has just taken one: the next look sees it run
                queue.remove([name for name in status if status[name] == "Queued"])
        return not _open(names)

    if not _comes_true(are_gone, GRACE):
        with Repo() as repo, suppress(DvcException):  # gone after all
            repo.experiments.celery_queue.kill(_open(names), force=True)
        _comes_true(are_gone, GRACE)


def _interrupt(queue: LocalCeleryQueue, names: Collection[str], asked: set[str]) -> None:
    """Interrupt what runs unless it was asked already; mark as failed what died unseen."""
    active = {entry.name: entry.stash_rev for entry in queue.iter_active() if entry.name in names}
    running = {name for name, revision in active.items() if _runs(queue, revision)}
    with suppress(DvcException):  # one has just ended: the next look sees it
        queue.kill(running - asked)
        asked |= running
    works = _has_worker()
    for name in active.keys() - running:
        revision = active[name]
        if noted := queue.proc.get(revision):  # another process may have its number by now
            queue.proc[revision] = replace(noted, returncode=-1)
        with suppress(DvcException):  # a worker is about to start it, or to store its result
            queue.kill([name])
            if not works:
                _remove_copy(queue.get_infofile_path(revision))


def _runs(queue: LocalCeleryQueue, revision: str) -> bool:
    record = Path(queue.pid_dir, revision, f"{revision}.json")
    return record.exists() and _is_alive(record)


def _remove_copy(info: str) -> None:
    """Remove the copy of the project that an experiment had, as its worker would have done."""
    if Path(info).is_file():
        shutil.rmtree(ExecutorInfo.load_json(info).root_dir, ignore_errors=True)


def _open(names: Collection[str]) -> set[str]:
    return _that_are(names, "Queued", "Running")


def _that_are(names: Collection[str], *wanted: str) -> set[str]:
    """Which of these experiments the queue has in one of these states."""
    with Repo() as repo:
        status = _statuses(repo.experiments.celery_queue, names)
    return {name for name in status if status[name] in wanted}


def _statuses(queue: LocalCeleryQueue, names: Collection[str]) -> dict[str, str]:
    """Running, Queued, Failed or Success of those experiments that the queue knows."""
    return {row["name"]: row["status"] for row in queue.status() if row["name"] in names}


def _quoted(value: Any) -> str:
    """A value in the grammar of `-S`, which is Hydra's."""
    if isinstance(value, str):
        return QuotedString(value, Quote.single).with_quotes()
    return json.dumps(value)


def _dvc(*arguments: str) -> str:
    """What a DVC command prints.

    It does not hear Ctrl-C, which would stop it amid its changes of the project.

    Raises:
        QueueError: it failed.
    """
    with TemporaryFile("w+", encoding="utf-8") as out:  # a pipe would wait for workers to end
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *arguments],
            env=environment(Path()),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            process_group=0,
            check=False,
        )
        out.seek(0)
        printed = out.read()
    if done.returncode:
        raise QueueError(printed.strip(), where=f"dvc {' '.join(arguments[:2])}")
    return printed

"""Every combination of a grid's values as DVC experiments, and their results as one table.

    python -m pipeline.sweep --grid '{"lambda": [0, 0.1], "seed": [0, 1]}' --jobs 2

An experiment is named after what it is made of, so that a sweep that was stopped computes only
what it lacks: finished experiments are read, and training goes on where it was.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from signal import SIGINT, SIGTERM, signal
from tempfile import TemporaryFile
from threading import Event
from typing import Annotated, Any

import typer
from dvc.api import DVCFileSystem
from dvc.repo import Repo
from dvc.repo.experiments.queue.celery import LocalCeleryQueue
from hydra.core.override_parser.types import Quote, QuotedString
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from tenacity import Retrying, stop_after_delay, wait_fixed
from tenacity.retry import retry_if_result

from dsfer.errors import ConfigError, DsferError
from dsfer.files import write_json
from pipeline.guard import GRACE
from pipeline.params import current_settings
from pipeline.results import Metrics
from pipeline.stages import run
from pipeline.workspace import COPIES, experiment_name, hold, project_workspace

Grid = dict[str, list[Any]]
"""Values to try, by key of `params.yaml`."""

MEASURES = ["P", "R", "F1", "IoU"]

SECONDS_BETWEEN_LOOKS = 2.0


class SweepError(DsferError):
    """Some experiments of a sweep failed, or it was stopped."""


@dataclass(frozen=True)
class Cell:
    """One combination of a grid's values.

    Attributes:
        values: by key of `params.yaml`.
        metrics: where its scores will be, in the project.
        name: of its experiment.
    """

    values: dict[str, Any]
    metrics: Path
    name: str


def check_grid(grid: Grid) -> list[Cell]:
    """The cells of a grid, the last key varying fastest.

    Raises:
        ConfigError: a key has no values, or a cell's parameters are impossible.
    """
    for key, tries in grid.items():
        if not tries:
            raise ConfigError(
                "has no values to try", where=f"grid, {key}", mend='give some, as {"seed": [0, 1]}'
            )
    cells = []
    for combination in product(*grid.values()):
        values = dict(zip(grid, combination, strict=True))
        metrics = current_settings(values).model_folder / "evaluation" / "metrics.json"
        digest = hashlib.sha256(experiment_name(Path(), values).encode()).hexdigest()[:8]
        cells.append(Cell(values, metrics, f"sweep-{digest}"))
    return cells


def run_cells(cells: list[Cell], jobs: int, stopped: Event) -> None:
    """Queue what has not been done yet, and wait until DVC's queue has worked it off.

    When `stopped` is set, what runs is interrupted (training saves its state) and what waits is
    taken from the queue.

    Raises:
        SweepError: it was stopped, or DVC failed.
        WorkspaceError: somebody works in the project, whose parameters DVC changes to queue them.
    """
    done = _experiments()
    todo = [cell for cell in cells if cell.name not in done]
    if not todo:
        return
    names = {cell.name for cell in todo}
    _stop(names)  # what a sweep that was killed has left
    try:
        with project_workspace(Path(), "a sweep"):
            _enqueue(todo, stopped)
        _dvc("queue", "start", "--jobs", str(jobs))
        _wait(names, stopped)
    finally:
        _stop(names)


def _enqueue(cells: list[Cell], stopped: Event) -> None:
    if former := _queue_status({cell.name for cell in cells}):
        _dvc("queue", "remove", *sorted(former))
    for cell in cells:
        if stopped.is_set():
            raise _stopped(len(cells))
        changes = [f"-S={key}={_quoted(value)}" for key, value in cell.values.items()]
        _dvc("exp", "run", "--queue", "--force", "--name", cell.name, *changes)


def _wait(names: set[str], stopped: Event) -> None:
    left = len(names)
    while open_ := _open(names):
        if len(open_) < left:
            left = len(open_)
            print(f"{len(names) - left} of {len(names)} experiments are through", flush=True)
        if stopped.wait(SECONDS_BETWEEN_LOOKS):
            raise _stopped(left)


def _stopped(left: int) -> SweepError:
    return SweepError(
        f"stopped with {left} experiments to do",
        mend="start the same sweep again; it goes on from there",
    )


def _stop(names: set[str]) -> None:
    """Take away what waits, interrupt what runs, and wait until that has saved its state."""
    with Repo() as repo:
        queue = repo.experiments.celery_queue
        status = _statuses(queue, names)
        waiting = [name for name in status if status[name] == "Queued"]
        running = [name for name in status if status[name] == "Running"]
        if waiting:
            queue.remove(waiting)
        if running:
            queue.kill(running)
    patience = Retrying(
        retry=retry_if_result(bool),
        wait=wait_fixed(0.2),
        stop=stop_after_delay(GRACE),
        retry_error_callback=lambda _: None,
    )
    patience(_open, names)


def results_table(cells: list[Cell]) -> list[dict[str, Any]]:
    """A row for each cell: its values, whether it is done, its change-class scores in percent."""
    done = _experiments()
    return [_row(cell, done=cell.name in done) for cell in cells]


def _row(cell: Cell, *, done: bool) -> dict[str, Any]:
    if not done:
        blank: dict[str, Any] = dict.fromkeys([*MEASURES, "F1 stitched", "split"], "")
        return cell.values | {"status": _reason(cell)} | blank | {"experiment": ""}
    with DVCFileSystem(rev=cell.name).open(cell.metrics.as_posix()) as file:
        metrics = Metrics.model_validate(json.load(file))
    scores = {name: _rounded(getattr(metrics.tiles, name)) for name in MEASURES}
    stitched = _rounded(metrics.stitched.F1) if metrics.stitched else ""
    return (
        cell.values
        | {"status": "done"}
        | scores
        | {"F1 stitched": stitched, "split": metrics.split_hash, "experiment": cell.name}
    )


def _rounded(value: float | None) -> Any:
    return "" if value is None or value != value else round(value, 2)


def _experiments() -> set[str]:
    """Names of the experiments that are done, over all commits."""
    with Repo() as repo:
        found = repo.experiments.ls(all_commits=True)
    return {name for names in found.values() for name, _ in names}


def _queue_status(names: set[str]) -> dict[str, str]:
    """Running, Queued, Failed or Success of those experiments that the queue knows."""
    with Repo() as repo:
        return _statuses(repo.experiments.celery_queue, names)


def _statuses(queue: LocalCeleryQueue, names: set[str]) -> dict[str, str]:
    return {row["name"]: row["status"] for row in queue.status() if row["name"] in names}


def _open(names: set[str]) -> set[str]:
    status = _queue_status(names)
    return {name for name in status if status[name] in ("Queued", "Running")}


def _reason(cell: Cell) -> str:
    """Why an experiment has no result: the last error that its log tells."""
    if _queue_status({cell.name}).get(cell.name) != "Failed":
        return "not run"
    printed = _dvc("queue", "logs", cell.name)
    said = [line.strip() for line in printed.splitlines() if line.startswith(("error:", "ERROR:"))]
    reason = said[0].partition(":")[2].partition(" To mend it")[0].strip() if said else ""
    return f"failed: {reason or 'see its log'}"


def _quoted(value: Any) -> str:
    """A value in the grammar of `-S`, which is Hydra's."""
    if isinstance(value, str):
        return QuotedString(value, Quote.single).with_quotes()
    return json.dumps(value)


def _dvc(*arguments: str) -> str:
    """What a DVC command prints.

    Raises:
        SweepError: it failed.
    """
    with TemporaryFile("w+", encoding="utf-8") as out:  # a pipe would wait for workers to end
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *arguments],
            stdout=out,
            stderr=subprocess.STDOUT,
            check=False,
        )
        out.seek(0)
        printed = out.read()
    if done.returncode:
        raise SweepError(printed.strip(), where=f"dvc {' '.join(arguments[:2])}")
    return printed


@contextmanager
def stop_on_signals() -> Iterator[Event]:
    """An event that is set once the process is told to stop (Ctrl-C, SIGTERM)."""
    stopped = Event()
    former = {number: signal(number, lambda *_: stopped.set()) for number in (SIGINT, SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in former.items():
            signal(number, handler)


def sweep(grid: Grid, jobs: int, out: Path | None) -> None:
    """Run a grid, print its table, and write the rows as JSON.

    Raises:
        ConfigError: the grid is impossible; nothing has been started.
        SweepError: experiments failed, which the table says too; or the sweep was stopped.
    """
    cells = check_grid(grid)
    with hold(COPIES / "sweep", Path(), "another sweep"), stop_on_signals() as stopped:
        run_cells(cells, jobs, stopped)
    rows = results_table(cells)
    if out:
        write_json(out, rows)
    table = Table(*rows[0], box=SIMPLE_HEAD, title="change class, %", title_justify="left")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    failed = [row for row in rows if row["status"] != "done"]
    if failed:
        raise SweepError(
            f"{len(failed)} of {len(rows)} experiments have no result: {failed[0]['status']}",
            mend="see `dvc queue logs NAME`, then start the same sweep again",
        )


def main() -> None:
    """Run the command line."""
    typer.run(_main)


def _main(
    grid: Annotated[str, typer.Option(help='Values by key, as {"lambda": [0, 0.1]}.')],
    jobs: Annotated[int, typer.Option(min=1, help="Experiments to run at a time.")] = 1,
    out: Annotated[Path | None, typer.Option(help="JSON file for the rows.")] = None,
) -> None:
    """Run every combination of a grid's values as queued DVC experiments."""
    try:
        values = json.loads(grid)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"no JSON ({error})", where="--grid", mend='give it as {"lambda": [0, 0.1]}'
        ) from error
    if not isinstance(values, dict) or not all(isinstance(v, list) for v in values.values()):
        raise ConfigError(
            "is no object of lists", where="--grid", mend='give it as {"lambda": [0, 0.1]}'
        )
    sweep(values, jobs, out)


if __name__ == "__main__":
    run(main)

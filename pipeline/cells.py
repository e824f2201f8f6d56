"""Cells of sweeps and tables: one combination of parameters each, run as one DVC experiment.

An experiment is named after the parameters that it resolves to: cells of several tables that mean
the same are one experiment. What is finished is read, not computed again.
"""

import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from dvc.api import DVCFileSystem

from dsfer.errors import DataError
from dsfer.signals import signals_restored, stop_on_signals
from pipeline.experiments import QueueError, failure, run_queued
from pipeline.params import Settings, current_settings
from pipeline.results import Metrics
from pipeline.workspace import COPIES, experiment_name, hold, project_state


@dataclass(frozen=True)
class Cell:
    """One combination of parameters.

    Attributes:
        values: what differs from `params.yaml`, by key.
        settings: all parameters.
        kind: start of the experiment's name.
        name: of the experiment.
    """

    values: dict[str, Any]
    settings: Settings
    kind: str
    name: str

    def is_of(self, state: str) -> bool:
        """Whether the experiment is named after this state of the project."""
        return self.name == experiment_name(self.kind, state, self.settings.resolved())


def make_cell(kind: str, state: str, values: dict[str, Any]) -> Cell:
    """Check the parameters of a cell and name its experiment.

    Args:
        kind: start of the name.
        state: of the project, see `project_state`: git is asked once for all cells.
        values: what differs from `params.yaml`, by key.

    Raises:
        ConfigError: the parameters are impossible.
    """
    settings = current_settings(values)
    return Cell(values, settings, kind, experiment_name(kind, state, settings.resolved()))


def queue_held(who: str) -> AbstractContextManager[None]:
    """Hold DVC's queue and the machine that measures, for one sweep or benchmark at a time.

    Args:
        who: holds it, which others are told.

    Raises:
        WorkspaceError: another one holds it.
    """
    return hold(COPIES / "sweep", Path(), who)


def run_cells(cells: Collection[Cell], jobs: int, target: str | None = None) -> None:
    """Run the cells that have no result yet, and wait until all are through; see `queue_held`.

    Args:
        cells: some may be the same.
        jobs: how many run at a time.
        target: the last stage to run; None for all.

    Raises:
        QueueError: it was stopped, or DVC failed, or the project was edited since it was planned.
        WorkspaceError: somebody else works in the project.
    """

    def check() -> None:
        state = project_state(Path())
        if not all(cell.is_of(state) for cell in cells):
            raise QueueError(
                "code, data or edits have changed since the experiments were planned",
                where="the project",
                mend="start the same again: what is finished of the present state is kept",
            )

    experiments = {cell.name: cell.values for cell in cells}
    with signals_restored():
        stopped = stop_on_signals(patience=None)  # the queue has to be emptied
        run_queued(experiments, jobs, stopped, check, target)


def read_metrics(cell: Cell) -> Metrics:
    """The scores of a finished cell.

    Raises:
        DataError: DVC's cache no longer holds them.
    """
    with _kept(cell, "metrics.json") as file:
        return Metrics.model_validate(json.load(file))


def read_counts(cell: Cell) -> pd.DataFrame:
    """The counts of a finished cell, a row per tile: `pipeline.results.TILE_COLUMNS`.

    Raises:
        DataError: DVC's cache no longer holds them.
    """
    text = dict.fromkeys(("id", "scene"), str)
    with _kept(cell, "tiles.csv") as file:
        return pd.read_csv(file, dtype=text, keep_default_na=False, na_values=["", "nan"])


def fetch(cell: Cell, paths: Iterable[Path], folder: Path) -> None:
    """Copy outputs of a finished cell to a folder, under the paths that they have in the project.

    Args:
        cell: the cell.
        paths: files or folders.
        folder: where they are put.

    Raises:
        DataError: DVC's cache no longer holds one.
    """
    files = DVCFileSystem(rev=cell.name)
    for path in paths:
        with _named(cell, path):
            files.get(path.as_posix(), str(folder / path), recursive=True)


@contextmanager
def _kept(cell: Cell, name: str) -> Iterator[Any]:
    path = cell.settings.model_folder / "evaluation" / name
    with _named(cell, path), DVCFileSystem(rev=cell.name).open(path.as_posix()) as file:
        yield file


@contextmanager
def _named(cell: Cell, path: Path) -> Iterator[None]:
    """Say which file of which experiment the cache lacks."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(
            "is not in DVC's cache",
            where=f"{path} of experiment {cell.name}",
            mend=f"`dvc exp remove {cell.name}`, then run it again",
        ) from error


def missing_reason(cell: Cell) -> str:
    """Why a cell has no result."""
    reason = failure(cell.name)
    return "not run" if reason is None else f"failed: {reason}"

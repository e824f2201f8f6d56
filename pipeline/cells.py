"""Cells of sweeps and tables: one combination of parameters each, run as one DVC experiment.

An experiment is named after the parameters that it resolves to. Cells that mean the same are one
experiment, whatever asks for them, and what is finished is read, not computed again.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from dvc.api import DVCFileSystem

from dsfer.errors import DataError
from dsfer.signals import stop_on_signals
from pipeline.experiments import failure, run_queued
from pipeline.params import Settings, current_settings
from pipeline.results import Metrics
from pipeline.workspace import COPIES, experiment_name, hold


@dataclass(frozen=True)
class Cell:
    """One combination of parameters.

    Attributes:
        values: what differs from `params.yaml`, by key.
        settings: all parameters.
        name: of the experiment.
    """

    values: dict[str, Any]
    settings: Settings
    name: str


def make_cell(kind: str, values: dict[str, Any]) -> Cell:
    """Check the parameters of a cell and name its experiment.

    Args:
        kind: start of the name.
        values: what differs from `params.yaml`, by key.

    Raises:
        ConfigError: the parameters are impossible.
    """
    settings = current_settings(values)
    return Cell(values, settings, experiment_name(kind, Path(), settings.resolved()))


def run_cells(cells: Iterable[Cell], jobs: int, who: str, target: str | None = None) -> None:
    """Run the cells that have no result yet, and wait until all are through.

    Args:
        cells: some may be the same.
        jobs: how many run at a time.
        who: runs them, which others are told: one at a time uses DVC's queue.
        target: the last stage to run; None for all.

    Raises:
        QueueError: it was stopped, or DVC failed.
        WorkspaceError: somebody else works in the project or uses its queue.
    """
    experiments = {cell.name: cell.values for cell in cells}
    with hold(COPIES / "sweep", Path(), who):
        stopped = stop_on_signals(patience=None)  # the queue has to be emptied
        run_queued(experiments, jobs, stopped, target)


def read_metrics(cell: Cell) -> Metrics:
    """The scores of a finished cell.

    Raises:
        DataError: DVC's cache no longer holds them.
    """
    with _kept(cell, "metrics.json") as file:
        return Metrics.model_validate(json.load(file))


def read_scenes(cell: Cell) -> pd.DataFrame:
    """The counts of a finished cell, a row per scene: `pipeline.results.SCENE_COLUMNS`.

    Raises:
        DataError: DVC's cache no longer holds them.
    """
    with _kept(cell, "scenes.csv") as file:
        return pd.read_csv(file, dtype={"scene": str}, keep_default_na=False, na_values=[""])


@contextmanager
def _kept(cell: Cell, name: str) -> Iterator[Any]:
    path = cell.settings.model_folder / "evaluation" / name
    try:
        with DVCFileSystem(rev=cell.name).open(path.as_posix()) as file:
            yield file
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

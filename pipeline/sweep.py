"""Every combination of a grid's values as DVC experiments, and their results as one table.

    python -m pipeline.sweep --grid '{"lambda": [0, 0.1], "seed": [0, 1]}' --jobs 2

An experiment is named after what it is made of, so that a sweep that was stopped computes only
what it lacks: finished experiments are read, and training goes on where it was.
"""

from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dsfer.errors import ConfigError, DsferError
from dsfer.files import write_json
from pipeline.cells import Cell, make_cell, missing_reason, queue_held, read_metrics, run_cells
from pipeline.experiments import finished
from pipeline.params import Value
from pipeline.stages import run
from pipeline.workspace import project_state, restore_params

Grid = dict[str, list[Value]]
"""Values to try, by key of `params.yaml`."""

MEASURES = ["P", "R", "F1", "IoU"]

COLUMNS = ["status", *MEASURES, "F1 stitched", "split", "experiment"]
"""What a table says of a cell, besides its values."""


class SweepError(DsferError):
    """Some experiments of a sweep failed."""


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
    state, combinations = project_state(Path()), product(*grid.values())
    return [
        make_cell("sweep", state, dict(zip(grid, tries, strict=True))) for tries in combinations
    ]


def results_table(cells: list[Cell]) -> list[dict[str, Any]]:
    """A row for each cell: its values, whether it is done, its change-class scores in percent."""
    done = finished()
    return [
        _result(cell)
        if cell.name in done
        else cell.values | dict.fromkeys(COLUMNS, "") | {"status": missing_reason(cell)}
        for cell in cells
    ]


def _result(cell: Cell) -> dict[str, Any]:
    metrics = read_metrics(cell)
    scores = [_rounded(getattr(metrics.tiles, name)) for name in MEASURES]
    stitched = _rounded(metrics.stitched.F1) if metrics.stitched else ""
    shown = ["done", *scores, stitched, metrics.split_hash, cell.name]
    return cell.values | dict(zip(COLUMNS, shown, strict=True))


def _rounded(value: float | None) -> Any:
    return "" if value is None or value != value else round(value, 2)


def sweep(grid: Grid, jobs: int, out: Path | None) -> None:
    """Run a grid, print its table, and write the rows as JSON.

    Raises:
        ConfigError: the grid is impossible; nothing has been started.
        QueueError: it was stopped, or DVC failed.
        SweepError: experiments failed, which the table says too.
        WorkspaceError: another sweep or benchmark is under way.
    """
    restore_params(Path(), "another sweep")
    cells = check_grid(grid)
    with queue_held("another sweep"):
        run_cells(cells, jobs)
    rows = results_table(cells)
    if out:
        write_json(out, rows)
    table = Table(box=SIMPLE_HEAD, title="change class, %", title_justify="left")
    for column in rows[0]:
        table.add_column(column, overflow="fold")
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
        values = TypeAdapter(Grid).validate_json(grid)
    except ValidationError as error:
        raise ConfigError(
            "is no object of lists in JSON", where="--grid", mend='give it as {"lambda": [0, 0.1]}'
        ) from error
    sweep(values, jobs, out)


if __name__ == "__main__":
    run(main)

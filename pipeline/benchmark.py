"""The paper's tables from one command: our figures beside its own.

    python -m pipeline.benchmark I III --dataset demo --seeds 0,1,2 --jobs 2 -S iterations=60

A network that the paper does not have gets a row of Tables I and II by `--model`.

Every cell is a DVC experiment in its queue. Cells that are finished are read, also those that
another table shares; one that fails is reported and stops no other; a run that was killed at any
moment goes on when it is started again. What networks cost, in Tables II and IV, is measured by one
run of `benchmarks/cost.py`; one that fails stops no other there, either.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args

import pandas as pd
import typer
from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from dsfer.errors import ConfigError, DataError, DsferError
from dsfer.files import atomic_path
from dsfer.significance import BLOCK, FEW, by_block, compare_f1
from pipeline.cells import Cell, missing_reason, queue_held, read_counts, read_metrics, run_cells
from pipeline.cost import cost_caption, cost_records, measure_costs
from pipeline.experiments import finished
from pipeline.results import Metrics, read_figures
from pipeline.sensitivity import write_plot
from pipeline.sheets import (
    MARK,
    Outcome,
    Sheet,
    records_of,
    score_caption,
    score_sheet,
    significance_sheet,
    uncompared_sheet,
)
from pipeline.stages import run
from pipeline.tables import (
    Entry,
    Name,
    check_models,
    entries_of,
    load_tables,
    row_keys,
    table_names,
)
from pipeline.typeset import Picture, write_document
from pipeline.workspace import commit, restore_params

LAST_STAGE = "evaluate"
"""Tables need scores and weights; the report of a cell is made by `dvc exp run` with its values."""

TEST_SEED = 0

OUT = Path("data/tables")
"""Where tables are put unless somebody says otherwise."""


class BenchmarkError(DsferError):
    """Some cells of a table have no result, or its rows could not be compared or drawn."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        names: of tables, all by default.
        datasets: to measure on; those of the paper where none are given.
        seeds: of training, each once.
        changes: what else differs from `params.yaml`, by key.
        pairs: of the test loop that is timed; None for the number of `benchmarks/cost.py`.
        models: networks that have a row in Tables I and II, too.
    """

    names: Sequence[str] = get_args(Name)
    datasets: Sequence[str] = ()
    seeds: Sequence[int] = (0,)
    changes: dict[str, Any] = field(default_factory=dict)
    pairs: int | None = None
    models: Sequence[str] = ()

    def entries(self) -> dict[Name, list[Entry]]:
        """The rows of each table, on each data set; none of Table II.

        Raises:
            ConfigError: no table, or an unknown one; no seed, or one twice; an unknown network; or
                a cell's parameters are impossible.
        """
        if not self.names:
            raise ConfigError("none is given", where="tables", mend="choose of I to V")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(
                f"{list(self.seeds)} does not name one or more seeds, each once",
                where="seeds",
                mend="give them as 0,1,2",
            )
        datasets, names = list(dict.fromkeys(self.datasets)), table_names(self.names)
        check_models(self.models, names)
        return {
            name: entries_of(name, datasets, self.seeds, self.changes, self.models)
            if load_tables()[name].datasets
            else []
            for name in names
        }


def benchmark(plan: Plan, jobs: int, out: Path) -> None:
    """Run what the tables lack, and write them to a folder.

    Args:
        plan: what to measure.
        jobs: experiments to run at a time.
        out: for `table-NAME` as .md, .tex, .html and .csv, the plot of Table V, and with Table I
            plates of its networks in `comparison-DATASET`.

    Raises:
        ConfigError: the plan is impossible; nothing has been started.
        QueueError: it was stopped, or DVC failed.
        BenchmarkError: cells failed, or could not be compared, which the tables say too; or plates
            could not be drawn.
        WorkspaceError: another benchmark or sweep is under way.
    """
    restore_params(Path(), "a benchmark")
    at = commit(Path())  # now, with the names of the cells: the user may commit while they run
    entries = plan.entries()
    cells = {cell.name: cell for rows in entries.values() for row in rows for cell in row.cells}
    with queue_held("a benchmark"):
        costly = any(load_tables()[name].costs for name in entries)
        costs = measure_costs(plan.pairs, plan.models) if costly else ""
        if cells:
            run_cells(cells.values(), jobs, LAST_STAGE)
    done = finished()
    outcomes = {name: _outcome(cell, name in done) for name, cell in cells.items()}
    missing: list[str] = []
    for name, rows in entries.items():
        lines = [line for row in rows for line in records_of(row, outcomes)]
        keys = [(row.key, row.dataset) for row in rows] or [
            (key, "") for key in row_keys(name, plan.models)
        ]
        lines += [line for row in keys for line in cost_records(name, *row, costs)]
        records = pd.DataFrame(lines)
        sheets = sheets_of(records, rows, outcomes, plan, at)
        plates, undrawn = draw_figures(rows, outcomes, out) if name == "I" else ([], [])
        write_table(name, records, sheets, out, plates)
        missing += [f"{sheet.title}: {sheet.failure}" for sheet in sheets if sheet.failure]
        lacking = records[records["why"] != ""]
        missing += (lacking["row"] + ": " + lacking["why"]).unique().tolist()
        missing += undrawn
    print(f"tables {', '.join(entries)} are in {out}", flush=True)
    if missing:
        raise BenchmarkError(
            "; ".join(dict.fromkeys(missing)),
            where=f"tables {', '.join(entries)}",
            mend="see `dvc queue logs NAME`, then start the same again",
        )


def _outcome(cell: Cell, done: bool) -> Outcome:
    """The scores of a cell, or why there are none."""
    try:
        return read_metrics(cell) if done else missing_reason(cell)
    except DataError as error:
        return f"failed: {error}"


def sheets_of(
    records: pd.DataFrame,
    entries: list[Entry],
    outcomes: dict[str, Outcome],
    plan: Plan,
    at: str,
) -> list[Sheet]:
    """A sheet for each data set; of Table I with one of the pairs of its rows behind it.

    Args:
        records: of one table.
        entries: its rows that are trained.
        outcomes: of their cells.
        plan: what was asked for.
        at: the commit that cells are named after.
    """
    sheets = []
    table = load_tables()[records["table"].iloc[0]]
    for dataset, part in records.groupby("dataset", sort=False):
        here = [entry for entry in entries if entry.dataset == dataset]
        captions = []
        if here:
            scores = part[part["measure"].isin(table.measures)]
            note = here[0].cells[0].settings.data.policy.note
            given = {key: value for entry in here for key, value in entry.given.items()}
            captions.append(score_caption(scores, plan.seeds, given, at, note))
        if table.costs:
            captions.append(cost_caption(part[part["measure"].isin(table.costs)], at))
        sheets.append(score_sheet(part, " ".join(captions)))
        if here and here[0].table == "I":
            try:
                sheets += _significance(here, outcomes)
            except DataError as error:
                sheets.append(uncompared_sheet(here[0].dataset, str(error)))
    return sheets


def _significance(entries: Sequence[Entry], outcomes: dict[str, Outcome]) -> list[Sheet]:
    """A sheet on the pairs of rows on one data set that have results for all seeds, if any.

    Raises:
        DataError: rows did not score the same split, or DVC's cache no longer holds their counts.
    """
    scores = {entry.label: [outcomes[cell.name] for cell in entry.cells] for entry in entries}
    whole = [e for e in entries if all(isinstance(s, Metrics) for s in scores[e.label])]
    splits = {s.split_hash for found in scores.values() for s in found if isinstance(s, Metrics)}
    if len(splits) > 1:
        raise DataError(
            f"rows were scored on different splits: {', '.join(sorted(splits))}",
            where=f"table {entries[0].table} on {entries[0].dataset}",
            mend="commit the project's changes, then start the same again",
        )
    if len(whole) < 2:
        return []
    tiles = {e.label: pd.concat([read_counts(cell) for cell in e.cells]) for e in whole}
    count = len(tiles[whole[0].label]) // len(whole[0].cells)
    scenes = blocks = tiles[whole[0].label]["scene"].nunique()
    if scenes < FEW:
        side = BLOCK * whole[0].cells[0].settings.data.tile_size
        tiles = {label: by_block(counts, side) for label, counts in tiles.items()}
        blocks = tiles[whole[0].label]["scene"].nunique()
    pairs = compare_f1(tiles, seed=TEST_SEED)
    left_out = [entry.label for entry in entries if entry not in whole]
    note = f"{MARK} Left out, since seeds lack results: {', '.join(left_out)}."
    notes = (note,) if left_out else ()
    return [significance_sheet(whole[0], pairs, count, scenes, blocks, notes)]


def draw_figures(
    entries: Sequence[Entry], outcomes: dict[str, Outcome], out: Path
) -> tuple[list[Picture], list[str]]:
    """Draw the paper's plates with all rows of Table I, into a folder for each data set.

    Where that cannot be, a former folder is removed: its networks are not those of the table.

    Returns:
        The plate of all rows of each data set, and what could not be drawn, and why.
    """
    from pipeline.comparison import draw_plates  # needs torch, which is slow to import

    plates: list[Picture] = []
    undrawn: list[str] = []
    for dataset in dict.fromkeys(entry.dataset for entry in entries):
        here = [entry for entry in entries if entry.dataset == dataset]
        folder = out / f"comparison-{dataset.replace('/', '-')}"
        try:
            draw_plates(here, outcomes, folder)
            drawn, (path, *_) = read_figures(folder)
        except DsferError as error:
            shutil.rmtree(folder, ignore_errors=True)
            undrawn.append(f"figures, {dataset}: {error}")
            continue
        plate = drawn.figures[0]
        plates.append(Picture(path, plate.title, f"{dataset}: {plate.title}. {plate.caption}"))
    return plates, undrawn


def write_table(
    name: Name,
    records: pd.DataFrame,
    sheets: Sequence[Sheet],
    out: Path,
    plates: Sequence[Picture] = (),
) -> None:
    """Write one table in all formats; numbers of sheets that it no longer has are removed."""
    stem, picture = f"table-{name}", None
    if name == "V":
        picture = stem
        write_plot(out, stem, records)
    write_csv(records, out / f"{stem}.csv")
    numbers = {out / f"{each.key}.csv": each.numbers for each in sheets if each.numbers is not None}
    for path, table in numbers.items():
        write_csv(table, path)
    for path in set(out.glob(f"{stem}-*-significance.csv")) - numbers.keys():
        path.unlink()
    title = f"Table {name}. {load_tables()[name].title}"
    write_document(out, stem, title, sheets, picture, plates)


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table for programs, atomically."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")


def parse_changes(given: Sequence[str]) -> dict[str, Any]:
    """Values by key of `-S key=value`, the value in YAML.

    Raises:
        ConfigError: one has no `=`, or its value is no YAML.
    """
    changes = {}
    for text in given:
        try:
            key, value = text.split("=", 1)
            changes[key] = YAML(typ="safe", pure=True).load(value)
        except (ValueError, YAMLError) as error:
            raise ConfigError(
                "is no key=value with a value in YAML",
                where=f"-S {text}",
                mend="give it as -S iterations=60",
            ) from error
    return changes


def parse_seeds(given: str) -> list[int]:
    """Seeds of a list as `0,1,2`.

    Raises:
        ConfigError: it is none.
    """
    try:
        return TypeAdapter(list[int]).validate_python(given.split(","))
    except ValidationError as error:
        raise ConfigError(
            f"'{given}' is no list of integers", where="--seeds", mend="give it as 0,1,2"
        ) from error


def main() -> None:
    """Run the command line."""
    typer.run(_main)


def _main(
    tables: Annotated[list[str] | None, typer.Argument(help="I to V; all by default.")] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="Data sets; those of the paper by default.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of training, as 0,1,2.")] = "0",
    jobs: Annotated[int, typer.Option(min=1, help="Experiments to run at a time.")] = 1,
    set_: Annotated[
        list[str] | None, typer.Option("--set", "-S", help="Parameters, as iterations=60.")
    ] = None,
    pairs: Annotated[int | None, typer.Option(min=1, help="Of the test loop of II and IV.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Networks that have a row in I and II, too.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the tables.")] = OUT,
) -> None:
    """Measure tables of the paper, and set its figures beside ours."""
    changes = parse_changes(set_ or [])
    names, numbers = tables or get_args(Name), parse_seeds(seeds)
    plan = Plan(names, dataset or (), numbers, changes, pairs, model or ())
    benchmark(plan, jobs, out)


if __name__ == "__main__":
    run(main)

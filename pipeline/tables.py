"""The paper's tables as cells to run: read from `tables.yaml`, with the figures it printed."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field

from dsfer.errors import ConfigError
from pipeline.cells import Cell, make_cell
from pipeline.frozen import Frozen, did_you_mean, parse, read_sections
from pipeline.published import load_published

TABLES = Path(__file__).with_name("tables.yaml")

Name = Literal["I", "II", "III", "IV", "V"]


class Row(Frozen):
    """A row of a table.

    Attributes:
        label: as it is printed.
        changes: what makes it, by key of `params.yaml`.
    """

    label: str
    changes: dict[str, Any] = Field(alias="set")


class Table(Frozen):
    """One of the paper's tables.

    Attributes:
        title: what it shows.
        datasets: those of the paper; none where it is measured without a data set.
        measures: its columns, in percent but for those of cost.
        rows: by the key that their figures have in `published.yaml`.
    """

    title: str
    datasets: tuple[str, ...]
    measures: tuple[str, ...]
    rows: dict[str, Row]


class Entry(Frozen):
    """A row of a table on one data set.

    Attributes:
        table: its name.
        key: of the row.
        label: of the row.
        dataset: name of the data set.
        cells: one for each seed.
    """

    table: Name
    key: str
    label: str
    dataset: str
    cells: tuple[Cell, ...]


@cache
def load_tables(path: Path = TABLES) -> dict[str, Table]:
    """Read the tables by their names.

    Raises:
        ConfigError: the file is not as `Table` declares.
    """
    return {
        name: parse(Table, section, f"{path.name} ({name})")
        for name, section in read_sections(path).items()
    }


def table_names(given: Sequence[str]) -> list[Name]:
    """Names of tables as somebody typed them, in either case.

    Raises:
        ConfigError: there is no such table.
    """
    names = {name.lower(): name for name in load_tables()}
    for name in given:
        if name.lower() not in names:
            raise ConfigError(
                f"unknown table '{name}'{did_you_mean(name, names)}",
                where="tables",
                mend=f"choose of {', '.join(names.values())}",
            )
    return [cast(Name, names[name.lower()]) for name in given]


def entries_of(
    name: Name, datasets: Sequence[str], seeds: Sequence[int], changes: dict[str, Any]
) -> list[Entry]:
    """The rows of a table on each data set, with a cell a seed.

    Args:
        name: of the table.
        datasets: names of data sets; those of the paper where none are given.
        seeds: of training.
        changes: what else differs from `params.yaml`, by key.

    Raises:
        ConfigError: parameters of a cell are impossible, or `changes` has what rows differ by.
    """
    table = load_tables()[name]
    taken = {"dataset", "seed"}.union(*(row.changes for row in table.rows.values()))
    for key in changes:
        if key in taken:
            raise ConfigError(
                "is what the cells of the table differ by",
                where=f"table {name}, {key}",
                mend="leave it away, or make a sweep (python -m pipeline.sweep)",
            )
    return [
        Entry(
            table=name,
            key=key,
            label=row.label,
            dataset=dataset,
            cells=tuple(
                make_cell("table", changes | row.changes | {"dataset": dataset, "seed": seed})
                for seed in seeds
            ),
        )
        for dataset in datasets or table.datasets
        for key, row in table.rows.items()
    ]


def paper_figures(name: Name, key: str) -> dict[str, dict[str, float]]:
    """What the paper prints in a row of a table, by data set and measure."""
    paper = load_published()
    figures: dict[str, Any]
    match name:
        case "I":
            figures = {str(d): scores.model_dump() for d, scores in paper.comparison[key].items()}
        case "II":
            figures = {"levir-cd": paper.cost[key].model_dump()}
        case "III":
            figures = {str(d): {"F1": f1} for d, f1 in paper.ablation[key].items()}
        case "IV":
            encoders = {str(encoder): row for encoder, row in paper.encoders.items()}
            figures = {"levir-cd": encoders[key].model_dump()}
        case "V":
            weights = {row.lambda_: row for row in paper.sensitivity}
            figures = weights[float(key)].model_dump(by_alias=True, exclude={"lambda_"})
    return figures

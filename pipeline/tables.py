"""The paper's tables as cells to run: read from `tables.yaml`, with the figures it printed."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field

from dsfer.errors import ConfigError
from dsfer.models import MODELS
from pipeline.cells import Cell, make_cell
from pipeline.frozen import Frozen, did_you_mean, parse, read_sections
from pipeline.published import load_published
from pipeline.workspace import project_state

TABLES = Path(__file__).with_name("tables.yaml")

Name = Literal["I", "II", "III", "IV", "V"]

NETWORK: dict[str, Any] = {
    "variant": None,
    "encoder": None,
    "hopfield_dim": 512,
    "hopfield_beta": None,
    "norm": "volume",
    "recipe": None,
}
"""What makes the networks of rows that say nothing else, whatever `params.yaml` says: the paper's,
each with its own recipe. Also the values of a fresh `params.yaml`, so that DVC knows the runs."""

SET_BY_TABLES = ("dataset", "seed", "variant", "encoder")
"""What callers do not change: a row's label, and the paper's figures, are of its network alone."""

OF_NETWORKS = ("I", "II")
"""Tables whose rows are networks: any other network may have a row there, too."""


class Row(Frozen):
    """A row of a table.

    Attributes:
        label: as it is printed.
        changes: what makes it, by key of `params.yaml`.
        defaults: what it takes unless the caller gives something else, whatever `params.yaml` says.
    """

    label: str
    changes: dict[str, Any] = Field(alias="set")
    defaults: dict[str, Any] = Field(alias="default", default={})


class Table(Frozen):
    """One of the paper's tables.

    Attributes:
        title: what it shows.
        datasets: those of the paper; none where nothing is trained.
        measures: columns that its experiments measure, in percent but for numbers of parameters.
        costs: columns that `benchmarks/cost.py` measures.
        rows: by the key that their figures have in `published.yaml`.
    """

    title: str
    datasets: tuple[str, ...]
    measures: tuple[str, ...] = ()
    costs: tuple[str, ...] = ()
    rows: dict[str, Row]


class Entry(Frozen):
    """A row of a table on one data set.

    Attributes:
        table: its name.
        key: of the row.
        label: of the row.
        dataset: name of the data set.
        given: what the caller changes, and what else `params.yaml` says in place of the recipe and
            the catalog, by key.
        cells: one for each seed.
    """

    table: Name
    key: str
    label: str
    dataset: str
    given: dict[str, Any]
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


def check_models(models: Sequence[str], names: Sequence[Name]) -> None:
    """Check the networks that somebody adds to tables.

    Args:
        models: names of networks.
        names: of the tables.

    Raises:
        ConfigError: there is no such network, or none of the tables has rows of networks.
    """
    for model in models:
        if model not in MODELS:
            raise ConfigError(
                f"unknown model '{model}'{did_you_mean(model, MODELS)}",
                where="models",
                mend="name one of dsfer.list_models(); docs/own-model.md adds one",
            )
    if models and not set(names) & set(OF_NETWORKS):
        raise ConfigError(
            f"no row of table {', '.join(names)} is a network",
            where="models",
            mend=f"name none, or add table {' or '.join(OF_NETWORKS)}",
        )


def row_keys(name: Name, models: Sequence[str] = ()) -> list[str]:
    """Keys of a table's rows: the paper's, and further networks where rows are networks."""
    added = models if name in OF_NETWORKS else ()
    return list(dict.fromkeys([*load_tables()[name].rows, *added]))


def row_of(name: Name, key: str) -> Row:
    """A row by its key; a network that the table does not list is one by its name alone."""
    return load_tables()[name].rows.get(key) or Row(label=key, set={"model": key})


def entries_of(
    name: Name,
    datasets: Sequence[str],
    seeds: Sequence[int],
    changes: dict[str, Any],
    models: Sequence[str] = (),
) -> list[Entry]:
    """The rows of a table on each data set, with a cell a seed.

    Of `params.yaml` they take data, machine, and values of training that it has in place of the
    recipes'; not what is in `NETWORK`.

    Args:
        name: of the table.
        datasets: names of data sets; those of the paper where none are given.
        seeds: of training.
        changes: what else differs from `params.yaml`, by key; wins over the rows' defaults.
        models: networks that have a row, too, where rows are networks.

    Raises:
        ConfigError: parameters of a cell are impossible, or `changes` has what the table sets.
    """
    table = load_tables()[name]
    rows = {key: row_of(name, key) for key in row_keys(name, models)}
    taken = {*SET_BY_TABLES}.union(*(row.changes for row in rows.values()))
    for key in changes:
        if key in taken:
            raise ConfigError(
                "is set by the table itself",
                where=f"table {name}, {key}",
                mend="leave it away, or make a sweep (python -m pipeline.sweep)",
            )
    state = project_state(Path())
    entries = []
    for dataset in datasets or table.datasets:
        for key, row in rows.items():
            values = NETWORK | row.defaults | changes | row.changes | {"dataset": dataset}
            cells = [make_cell("table", state, values | {"seed": seed}) for seed in seeds]
            own = row.defaults | row.changes
            given = {k: v for k, v in cells[0].settings.given.items() if k not in own} | changes
            entries.append(
                Entry(
                    table=name,
                    key=key,
                    label=row.label,
                    dataset=dataset,
                    given=given,
                    cells=tuple(cells),
                )
            )
    return entries


def paper_figures(name: Name, key: str) -> dict[str, dict[str, float]]:
    """What the paper prints in a row of a table, by data set and measure; none of other rows."""
    if key not in load_tables()[name].rows:
        return {}
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

"""What was measured beside what the paper prints, as records for programs and sheets for readers.

A record is one measure of one row on one data set; a sheet is a table of text with its caption.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.results import Metrics
from pipeline.tables import Entry, Name, load_tables, paper_figures
from pipeline.workspace import commit

Outcome = Metrics | str
"""Scores of a cell, or why there are none."""

OTHER_DATA = "other data"
"""Why the paper's figure stands beside ours without a difference."""

HEADINGS = {
    "parameters": "Parameters, million",
    "seconds": "Test loop, s per 2,048 pairs",
    "pairs/s": "Pairs per second",
    "latency": "Latency, ms",
    "memory": "Peak memory, MiB",
}
"""Of measures that are not in percent."""

MADE = ("split", "tiles", "recipe", "iterations", "device")
"""What records tell of how they were made."""

MARK = "†"
"""Behind what lacks seeds; the notes say why."""

LEVEL = 0.05
"""Below it, corrected for the number of pairs, a difference is called real."""


@dataclass(frozen=True)
class Sheet:
    """A table as it is printed.

    Attributes:
        key: names it among the sheets of a document.
        title: its heading.
        frame: text; columns may have two levels.
        caption: how it was measured, sentence by sentence.
        notes: what is missing, and why.
        numbers: the same for programs, where no records hold it.
    """

    key: str
    title: str
    frame: pd.DataFrame
    caption: str
    notes: tuple[str, ...] = ()
    numbers: pd.DataFrame | None = None


def record(
    name: Name,
    key: str,
    dataset: str,
    measure: str,
    values: Sequence[float],
    beside: str,
    why: str = "",
) -> dict[str, object]:
    """One measure of a row, beside the paper's.

    Args:
        name: of the table.
        key: of the row.
        dataset: it was measured on.
        measure: one of the table's.
        values: for each seed that has a result.
        beside: why no difference to the paper is given; empty where both are comparable.
        why: what is missing.

    Returns:
        Means and differences are None where nothing was measured or printed, `sd` (of a sample) for
        fewer than two values.
    """
    by_dataset = paper_figures(name, key)
    source = dataset if dataset in by_dataset else "levir-cd"
    paper = by_dataset[source].get(measure)
    mean = float(np.mean(values)) if len(values) else None
    comparable = mean is not None and paper is not None and not beside
    return {
        "table": name,
        "dataset": dataset,
        "key": key,
        "row": load_tables()[name].rows[key].label,
        "measure": measure,
        "mean": mean,
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "n": len(values),
        "paper": paper,
        "paper_dataset": source if paper is not None else "",
        "difference": mean - paper if comparable and mean is not None and paper else None,
        "beside": beside,
        "why": why,
    }


def records_of(entry: Entry, outcomes: Mapping[str, Outcome]) -> list[dict[str, object]]:
    """The measures of a row on one data set over its seeds, isolated tiles.

    Args:
        entry: the row.
        outcomes: by name of the experiment.
    """
    found = [outcomes[cell.name] for cell in entry.cells]
    scores = [outcome for outcome in found if isinstance(outcome, Metrics)]
    why = "; ".join(
        f"seed {cell.settings.params.seed} {outcome}"
        for cell, outcome in zip(entry.cells, found, strict=True)
        if isinstance(outcome, str)
    )
    data = entry.cells[0].settings.data
    known = entry.dataset in paper_figures(entry.table, entry.key)
    beside = "" if known and data.as_published else OTHER_DATA
    made = {
        "split": listed(m.split_hash for m in scores),
        "recipe": listed(m.recipe for m in scores),
        "iterations": listed(m.iterations for m in scores),
        "device": listed(m.device for m in scores),
        "tiles": listed(m.tiles.n for m in scores),
        "experiments": listed(cell.name for cell in entry.cells),
    }
    return [
        record(entry.table, entry.key, entry.dataset, measure, values, beside, why) | made
        for measure in load_tables()[entry.table].measures
        for values in [[_measured(metrics, measure) for metrics in scores]]
    ]


def _measured(metrics: Metrics, measure: str) -> float:
    if measure == "parameters":
        return metrics.parameters / 1e6
    value = getattr(metrics.tiles, measure)
    return float("nan") if value is None else float(value)


def listed(values: Iterable[object]) -> str:
    """Different values in their order, with commas."""
    return ", ".join(dict.fromkeys(map(str, values)))


def score_caption(
    records: pd.DataFrame, seeds: Sequence[int], changes: Mapping[str, object]
) -> str:
    """How one table was measured on one data set.

    Args:
        records: of that table and data set, see `records_of`.
        seeds: of training.
        changes: what every cell changes of `params.yaml`.
    """
    made = {name: listed(filter(None, records[name])) or "none" for name in MADE}
    changed = ", ".join(f"{key}: {value}" for key, value in changes.items())
    return " ".join(
        [
            f"Change class of the test split {made['split']} in percent, {made['tiles']} isolated "
            f"tiles. Recipe {made['recipe']}; {made['iterations']} iterations; seed "
            f"{listed(seeds)}{'; ± is one standard deviation over seeds' * (len(seeds) > 1)}.",
            f"Other than in params.yaml: {changed}." if changed else "",
            f"{made['device']}; {stamp()}.",
            _beside(records),
        ]
    ).replace("  ", " ")


def _beside(records: pd.DataFrame) -> str:
    printed = records[records["paper"].notna()]
    if not printed["beside"].any():
        return "Δ: ours less the paper's."
    return (
        f"The paper's figures are of {listed(printed['paper_dataset'])} as published, other data "
        "than here: no difference is given."
    )


def stamp() -> str:
    """Today's date and the commit."""
    return f"{datetime.now(UTC):%Y-%m-%d}, commit {commit(Path())}"


def score_sheet(records: pd.DataFrame, caption: str) -> Sheet:
    """Print records of one table on one data set.

    A line is a row; each measure has our figure, the paper's, and the difference where the two are
    comparable.

    Args:
        records: as `record` makes them.
        caption: of the sheet.
    """
    name, dataset = records[["table", "dataset"]].iloc[0]
    columns: dict[tuple[str, str], pd.Series] = {}
    for measure, part in records.groupby("measure", sort=False):
        part = part.set_index("row").rename_axis(None)
        heading, beside = HEADINGS.get(str(measure), str(measure)), part["beside"].iloc[0]
        columns[heading, "ours"] = part.apply(_ours, axis=1)
        if part["paper"].notna().any():
            paper = f"paper, {beside}" if beside else "paper"
            columns[heading, paper] = part["paper"].map(_number)
        if part["difference"].notna().any():
            columns[heading, "Δ"] = part["difference"].map(lambda d: _number(d, "+.2f"))
    whys = records.drop_duplicates("row")[["row", "why"]].to_dict("records")
    notes = tuple(f"{MARK} {line['row']}: {line['why']}" for line in whys if line["why"])
    title = f"{load_tables()[name].title}{', ' + dataset if dataset else ''}"
    return Sheet(_key(name, dataset), title, pd.DataFrame(columns), caption, notes)


def _key(*parts: str) -> str:
    return "-".join(["table", *filter(None, parts)]).replace("/", "-")


def _ours(line: "pd.Series[Any]") -> str:
    mark = MARK if line["why"] else ""
    if not line["n"]:
        return ("failed" if "failed" in str(line["why"]) else "not measured") + mark
    spread = "" if pd.isna(line["sd"]) else f" ± {line['sd']:.2f}"
    return ("no value" if pd.isna(line["mean"]) else f"{line['mean']:.2f}{spread}") + mark


def _number(value: float | None, form: str = ".2f") -> str:
    return "—" if value is None or pd.isna(value) else format(value, form).replace("-", "−")


def significance_sheet(
    dataset: str, pairs: pd.DataFrame, scenes: int, notes: tuple[str, ...]
) -> Sheet:
    """Print which differences of F1 between the rows of Table I are real.

    Args:
        dataset: they were measured on.
        pairs: as `dsfer.significance.compare_f1` returns them, by the rows' labels.
        scenes: how many were resampled.
        notes: which rows are not compared.
    """
    real = pairs["p_holm"] < LEVEL
    intervals = [
        f"{_number(low, '+.2f')} … {_number(high, '+.2f')}"
        for low, high in zip(pairs["low"], pairs["high"], strict=True)
    ]
    frame = pd.DataFrame(
        {
            "Δ F1": pairs["difference"].map(lambda d: _number(d, "+.2f")),
            "95 % interval": intervals,
            "p": pairs["p"].map(lambda p: _number(p, ".4f")),
            "p, Holm": pairs["p_holm"].map(lambda p: _number(p, ".4f")),
            "real": np.where(real, "yes", "not shown"),
        }
    )
    frame.index = pd.Index(pairs["first"] + " less " + pairs["second"])
    caption = (
        f"Paired bootstrap over the {scenes} scenes of the test split, isolated tiles, counts of "
        f"all seeds added up by scene; two-sided p, Holm's correction over the {len(pairs)} pairs. "
        f"{int(real.sum())} of {len(pairs)} differences are real at {LEVEL:.0%}. Networks trained "
        "again would score otherwise: that spread is in the ± of the table above, not here."
    )
    title = f"Which differences of F1 are real, {dataset}"
    return Sheet(_key("I", dataset, "significance"), title, frame, caption, notes, pairs)

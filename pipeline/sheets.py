"""What was measured beside what the paper prints, as records for programs and sheets for readers.

A record is one measure of one row on one data set; a sheet is a table of text with its caption.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dsfer.significance import BLOCK
from pipeline.results import Metrics
from pipeline.tables import Entry, Name, load_tables, paper_figures, row_of

Outcome = Metrics | str
"""Scores of a cell, or why there are none."""

OTHER_DATA = "other data"
"""Why the paper's figure stands beside ours without a difference."""

HEADINGS = {
    "parameters": "Parameters, million",
    "live": "Parameters used, million",
    "seconds": "Test loop, s per 2,048 pairs",
    "pairs/s": "Pairs per second",
    "latency": "Latency, ms",
    "memory": "Peak memory, MiB",
}
"""Of measures that are not in percent."""

AT = {"pairs/s": "batch"}
"""What stands beside a measure, since rows differ in it."""

ANY_DATA = "parameters"
"""A measure that does not depend on data: of whole networks the paper's figure is comparable."""

THIN = "other width"
"""Why the paper's figure stands beside that of another network."""

MADE = ("split", "tiles", "device")
"""What captions tell of how records were made."""

BY_ROW = {"recipe": "recipe", "iterations": "iterations", "date": "measured on"}
"""What has a column, by its heading, where rows differ in it; elsewhere the caption tells it."""

NO_DAY = "day unknown"
"""In place of the day of scores that do not tell theirs."""

NOT_PUBLISHED = "not published"
"""In place of the paper's figure, in rows that the paper does not have."""

PROTOCOL = "isolated tiles"
"""How every table of scores is measured."""

MARK = "†"
"""Behind what lacks seeds; the notes say why."""

LEVEL = 0.05
"""Below it, corrected for the number of pairs, a difference is called real."""

SIGNIFICANCE = "Which differences of F1 are real"
"""Title of the sheets on pairs of rows."""


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
        failure: why it has nothing to show; empty where it has.
    """

    key: str
    title: str
    frame: pd.DataFrame
    caption: str
    notes: tuple[str, ...] = ()
    numbers: pd.DataFrame | None = None
    failure: str = ""


def record(
    name: Name,
    key: str,
    dataset: str,
    measure: str,
    values: Sequence[float],
    beside: str,
    why: str = "",
    no_value: str = "",
) -> dict[str, object]:
    """One measure of a row, beside the paper's.

    Args:
        name: of the table.
        key: of the row.
        dataset: it was measured on.
        measure: one of the table's.
        values: for each seed that has one.
        beside: why no difference to the paper is given; empty where both are comparable.
        why: what is missing.
        no_value: seeds that have a result in which the measure has no value.

    Returns:
        Means and differences are None where nothing was measured or printed, `sd` (of a sample) for
        fewer than two values.
    """
    by_dataset = paper_figures(name, key)
    source = dataset if dataset in by_dataset else "levir-cd"
    paper = by_dataset.get(source, {}).get(measure)
    mean = float(np.mean(values)) if len(values) else None
    return {
        "table": name,
        "dataset": dataset,
        "key": key,
        "row": row_of(name, key).label,
        "measure": measure,
        "mean": mean,
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "n": len(values),
        "paper": paper,
        "paper_dataset": source if paper is not None else "",
        "difference": None if mean is None or paper is None or beside else mean - paper,
        "beside": beside,
        "why": why,
        "no_value": no_value,
    }


def records_of(entry: Entry, outcomes: Mapping[str, Outcome]) -> list[dict[str, object]]:
    """The measures of a row on one data set over its seeds, isolated tiles.

    Args:
        entry: the row.
        outcomes: by name of the experiment.
    """
    found = {cell.settings.params.seed: outcomes[cell.name] for cell in entry.cells}
    scores = {seed: outcome for seed, outcome in found.items() if isinstance(outcome, Metrics)}
    why = "; ".join(f"seed {seed} {o}" for seed, o in found.items() if isinstance(o, str))
    data = entry.cells[0].settings.data
    published = paper_figures(entry.table, entry.key)
    same_data = entry.dataset in published and data.as_published
    thin = "" if entry.cells[0].settings.recipe.width == 1 else THIN
    beside = "" if not published else thin if same_data else OTHER_DATA
    made = {
        "date": _range([m.date or NO_DAY for m in scores.values()]),
        "protocol": PROTOCOL,
        "split": listed(m.split_hash for m in scores.values()),
        "recipe": entry.cells[0].settings.recipe_name,
        "iterations": listed(m.iterations for m in scores.values()),
        "given": told(entry.given),
        "device": listed(m.devices for m in scores.values()),
        "tiles": listed(m.tiles.n for m in scores.values()),
        "experiments": listed(cell.name for cell in entry.cells),
    }
    records = []
    for measure in load_tables()[entry.table].measures:
        values = {seed: _measured(metrics, measure) for seed, metrics in scores.items()}
        without = listed(seed for seed, value in values.items() if np.isnan(value))
        valued = [value for value in values.values() if not np.isnan(value)]
        other = thin if measure == ANY_DATA else beside
        line = record(entry.table, entry.key, entry.dataset, measure, valued, other, why, without)
        records.append(line | made)
    return records


def _measured(metrics: Metrics, measure: str) -> float:
    if measure == "parameters":
        return metrics.parameters / 1e6
    value = getattr(metrics.tiles, measure)
    return float("nan") if value is None else float(value)


def listed(values: Iterable[object]) -> str:
    """Different values in their order, with commas."""
    return ", ".join(dict.fromkeys(map(str, values)))


def told(values: Mapping[str, object]) -> str:
    """Parameters by key, with commas."""
    return ", ".join(f"{key}: {value}" for key, value in values.items())


def _range(days: Sequence[str]) -> str:
    """A day, or the first and the last of several; empty for none."""
    return " to ".join(sorted({min(days), max(days)})) if days else ""


def _alike(records: pd.DataFrame, name: str, otherwise: str) -> str:
    """What all rows that have a value have in common; empty for none, `otherwise` for several."""
    values = _values(records, name)
    return otherwise if len(values) > 1 else listed(values)


def _values(records: pd.DataFrame, name: str) -> list[str]:
    """Different values of what is in `BY_ROW`; none where records do not tell it."""
    return [str(value) for value in records.get(name, pd.Series()).unique() if value]


def score_caption(
    records: pd.DataFrame,
    seeds: Sequence[int],
    given: Mapping[str, object],
    commit: str,
    note: str = "",
) -> str:
    """How one table was measured on one data set.

    Args:
        records: of that table and data set, see `records_of`.
        seeds: of training.
        given: what cells have in place of what recipe and catalog say, see `Entry`.
        commit: that experiments are named after.
        note: what the catalog says of the split.
    """
    made = {name: listed(filter(None, records[name])) or "none" for name in MADE}
    recipe, iterations = (
        _alike(records, name, "as in the table") or "none" for name in ("recipe", "iterations")
    )
    measured = _alike(records, "date", "days as in the table") or "not measured"
    sentences = [
        f"Change class of the test split {made['split']} in percent, {made['tiles']} "
        f"{PROTOCOL}. Recipe {recipe}; iterations {iterations}; seed "
        f"{listed(seeds)}{'; ± is one standard deviation over seeds' * (len(seeds) > 1)}.",
        f"Given by -S or params.yaml: {told(given)}." if given else "",
        f"{made['device']}; {measured}; commit {commit}.",
        _beside(records),
        note,
    ]
    return " ".join(filter(None, sentences))


def _beside(records: pd.DataFrame) -> str:
    printed = records[records["paper"].notna()]
    if not (printed["beside"] == OTHER_DATA).any():
        only = ", of networks of its width alone" if (printed["beside"] == THIN).any() else ""
        return f"Δ: ours less the paper's{only}."
    counted = printed.loc[printed["measure"] == ANY_DATA, "beside"]
    but = ", but for the number of parameters" if (counted == "").any() else ""
    return (
        f"The paper's figures are of {listed(printed['paper_dataset'])} as published, other data "
        f"than here: no difference is given{but}."
    )


def score_sheet(records: pd.DataFrame, caption: str) -> Sheet:
    """Print records of one table on one data set.

    A line is a row; each measure has our figure, the paper's, and the difference where the two are
    comparable. What rows differ in beside that, see `BY_ROW`, is in the last columns.

    Args:
        records: as `record` makes them.
        caption: of the sheet.
    """
    name, dataset = records[["table", "dataset"]].iloc[0]
    columns: dict[tuple[str, str], pd.Series] = {}
    for measure, part in records.groupby("measure", sort=False):
        part = part.set_index("row").rename_axis(None)
        heading, printed = HEADINGS.get(str(measure), str(measure)), part["paper"].notna()
        columns[heading, "ours"] = part.apply(_ours, axis=1)
        if printed.any():
            beside = min(part.loc[printed, "beside"])  # none where one row is comparable
            figures = part["paper"].map(_number).where(printed, NOT_PUBLISHED)
            columns[heading, f"paper, {beside}" if beside else "paper"] = figures
        if part["difference"].notna().any():
            columns[heading, "Δ"] = part["difference"].map(lambda d: _number(d, "+.2f"))
        if at := AT.get(str(measure)):
            columns[heading, at] = part[at].map(lambda value: value or _number(None))
    by_row = records.drop_duplicates("row").set_index("row")
    for what, heading in BY_ROW.items():
        if len(_values(by_row, what)) > 1:
            columns[heading, ""] = by_row[what].map(lambda value: value or _number(None))
    lines = records.to_dict("records")
    whys = [(line["row"], line["why"]) for line in lines if line["why"]]
    whys += [
        (line["row"], f"{line['measure']} has no value with seed {line['no_value']}")
        for line in lines
        if line["no_value"] and line["n"]
    ]
    notes = tuple(f"{MARK} {row}: {why}" for row, why in dict.fromkeys(whys))
    title = f"{load_tables()[name].title}{', ' + dataset if dataset else ''}"
    return Sheet(_key(name, dataset), title, pd.DataFrame(columns), caption, notes)


def _key(*parts: str) -> str:
    return "-".join(["table", *filter(None, parts)]).replace("/", "-")


def _ours(line: "pd.Series[Any]") -> str:
    mark = MARK if line["why"] or (line["n"] and line["no_value"]) else ""
    if not line["n"]:
        without = "no value" if line["no_value"] else "not measured"
        return ("failed" if "failed" in str(line["why"]) else without) + mark
    spread = "" if pd.isna(line["sd"]) else f" ± {line['sd']:.2f}"
    return f"{line['mean']:.2f}{spread}{mark}"


def _number(value: float | None, form: str = ".2f") -> str:
    return "—" if value is None or pd.isna(value) else format(value, form).replace("-", "−")


def significance_sheet(
    entry: Entry, pairs: pd.DataFrame, tiles: int, scenes: int, blocks: int, notes: tuple[str, ...]
) -> Sheet:
    """Print which differences of F1 between the rows of Table I are real.

    Args:
        entry: one of the rows.
        pairs: as `dsfer.significance.compare_f1` returns them, by the rows' labels.
        tiles: how many the test split has.
        scenes: how many it has.
        blocks: how many were exchanged; as many where those are whole scenes. One leaves nothing to
            test.
        notes: which rows are not compared.
    """
    frame = pd.DataFrame({"Δ F1": pairs["difference"].map(lambda d: _number(d, "+.2f"))})
    frame.index = pd.Index(pairs["first"] + " less " + pairs["second"])
    caption = "Differences of F1 in points of percent, not tested: one scene."
    if blocks > 1:
        frame = frame.join(_verdicts(pairs).set_index(frame.index))
        tested, real = int(pairs["p"].notna().sum()), int((pairs["p_holm"] < LEVEL).sum())
        unit, units = "scene", f"{scenes} scenes"
        if blocks > scenes:
            unit, units = "block", f"{blocks} blocks of {BLOCK} x {BLOCK} tiles"
        caption = (
            f"Paired exchange test over the {units} of the test split, isolated tiles, "
            f"counts of all seeds added up by {unit}, of which F1 is taken; two-sided p, Holm's "
            f"correction over the {tested} pairs; interval by bootstrap. {real} of {tested} "
            f"differences are real at {LEVEL:.0%}. Networks trained again would score otherwise: "
            "that spread is in the ± of the table above, not here."
        )
        if blocks > scenes:
            caption += (
                f" The split has {scenes} scene{'s' * (scenes > 1)}, too few to be exchanged, and "
                "neighbouring blocks are not independent: intervals are too narrow, and p too "
                "small."
            )
        if tiles == scenes:
            caption += (
                " Every scene is a single tile, and tiles of the same images, as CDD's are, are "
                "not independent: where there are such, intervals are too narrow, and p too small."
            )
    title = f"{SIGNIFICANCE}, {entry.dataset}"
    key = _key("I", entry.dataset, "significance")
    return Sheet(key, title, frame, caption, notes, pairs)


def _verdicts(pairs: pd.DataFrame) -> pd.DataFrame:
    intervals = [
        f"{_number(low, '+.2f')} … {_number(high, '+.2f')}"
        for low, high in zip(pairs["low"], pairs["high"], strict=True)
    ]
    real = np.where(pairs["p_holm"] < LEVEL, "yes", "not shown")
    return pd.DataFrame(
        {
            "95 % interval": intervals,
            "p": pairs["p"].map(lambda p: _number(p, ".4f")),
            "p, Holm": pairs["p_holm"].map(lambda p: _number(p, ".4f")),
            "real": np.where(pairs["p"].isna(), "no value", real),
        }
    )


def uncompared_sheet(dataset: str, why: str) -> Sheet:
    """Say why the rows of Table I could not be compared with each other on a data set."""
    return Sheet(
        _key("I", dataset, "significance"),
        f"{SIGNIFICANCE}, {dataset}",
        pd.DataFrame({"Δ F1": [f"failed{MARK}"]}, index=["all pairs"]),
        "Differences of F1 between the rows above.",
        (f"{MARK} {why}",),
        failure=why,
    )

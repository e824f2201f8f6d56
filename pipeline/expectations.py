"""What a prepared data set must look like: Great Expectations suites, each rule in plain words.

A `Rule` is one expectation with its sentence, its severity and its mend; `check` runs a list of
them over a table and returns findings that name the row and the value.
"""

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from dsfer.data.labels import label_rule
from dsfer.data.leakage import HASH_BITS, NEAR_DISTANCE, OVERLAP_SHARE
from dsfer.data.manifest import SPLITS
from dsfer.errors import ValidationError
from pipeline.catalog import Expected
from pipeline.params import DataSettings

EXAMPLES = 5
"""Violations shown for each rule; all of them are counted."""

Severity = Literal["fail", "warn"]
_CHATTY = ("great_expectations", "great_expectations.data_context.types.base")
"""Loggers that tell every step of their set-up; the second has a level of its own."""

RUN_AGAIN = "run the crop and split stages again (dvc repro --force crop split)"


@dataclass(frozen=True)
class Rule:
    """One expectation.

    Attributes:
        key: short name, unique within its table.
        statement: what is expected, as a sentence.
        mend: what the user can do where it is violated.
        expectation: name of the Great Expectations class.
        options: its arguments.
        severity: whether a violation stops the pipeline.
        only: name of the one row that it is about, or None for all.
    """

    key: str
    statement: str
    mend: str
    expectation: str
    options: dict[str, Any]
    severity: Severity = "fail"
    only: str | None = None

    @property
    def columns(self) -> list[str]:
        """The columns that it looks at."""
        return [
            self.options[name]
            for name in ("column", "column_A", "column_B")
            if name in self.options
        ]


def tile_rules(data: DataSettings, scenes: pd.DataFrame) -> list[Rule]:
    """Expectations over the columns of `pipeline.facts.tile_facts`.

    Args:
        data: how the data set was prepared, with its catalog entry.
        scenes: the scene table of the crop stage.
    """
    entry, labels = data.entry, label_rule(data.label_rule)
    twins = "keep the copies in one split (split: scenes), or delete them from the source"
    return [
        _unique("id", "Every tile has a name of its own."),
        _null("amiss", "Every tile has both dates, its label and sound hashes and numbers."),
        _among("split", SPLITS, "Every tile belongs to train, val or test.", RUN_AGAIN),
        _among("scene", scenes["id"], "Every tile was cut from a scene that is listed.", RUN_AGAIN),
        _among(
            "size", [data.tile_size],
            f"Every tile is {data.tile_size} pixels wide and high.", RUN_AGAIN,
        ),
        _null("window_fault", "Every window lies in its scene; only what sticks out is padding."),
        _null("count_fault", "Pixel counts and changed fractions agree with each other."),
        _null(
            "label_fault",
            f"Labels hold only what rule {data.label_rule} allows ({labels.meaning}).",
            "set label_rule to the rule that fits these values",
        ),
        Rule(
            "blank",
            f"At most {entry.blank_share:.1%} of the tiles are blank at either date.",
            "declare what is empty as nodata (rio edit-info --nodata 0), leave blank scenes out, "
            "or raise blank_share in pipeline/catalog.yaml if they belong there",
            "ExpectColumnValuesToBeInSet",
            {"column": "blank", "value_set": [False], "mostly": 1 - entry.blank_share},
        ),
        _null(
            "identical_to", "No image occurs in two splits.", twins, entry.leakage.identical
        ),
        _null(
            "near_duplicate_of",
            f"No tile looks almost like one of another split (over {NEAR_DISTANCE} of {HASH_BITS} "
            "hash bits differ).",
            twins,
            entry.leakage.near,
        ),
        _null(
            "overlaps_with",
            f"No tile shares more than {OVERLAP_SHARE:.0%} of its ground with another split.",
            "put scenes of the same ground into one split (by list/*.txt, by the column split of "
            "pairs.csv, or by folders), or cut off what they share",
            entry.leakage.overlap,
        ),
        _null(
            "adjacent_to",
            "No tile touches one of another split on the ground.",
            "split by scene or by region (split: scenes, or spatial), or compare such numbers "
            "only with numbers of the same split",
            entry.leakage.adjacent,
        ),
    ]  # fmt: skip


def scene_rules(data: DataSettings) -> list[Rule]:
    """Expectations over the scene table of the crop stage, with its number of `tiles`."""
    offset, bands = data.entry.grid_tolerance, max(data.bands or (3,))
    align = "resample one date onto the grid of the other (gdalwarp), or leave the scene out"
    redraw = "resample the label onto the grid of date 1 (gdalwarp -r near), or leave the scene out"
    # Where the files of a published set say that its labels lie is not published.
    of_labels: Severity = "warn" if data.release.archives else "fail"
    return [
        _unique("id", "Every scene has a name of its own."),
        _among("t1_dtype", ["uint8"], "Images of date 1 hold 8-bit numbers.", "convert to 8 bit"),
        _among("t2_dtype", ["uint8"], "Images of date 2 hold 8-bit numbers.", "convert to 8 bit"),
        _between("t1_bands", "Images of date 1 have the bands that are read.", low=bands),
        _between("t2_bands", "Images of date 2 have the bands that are read.", low=bands),
        _between("label_bands", "Labels have one band.", low=1, high=1),
        _among(
            "crs_equal", [True],
            "Both dates of a scene have the same coordinate reference system.", align,
        ),
        _between(
            "grid_offset", f"The grids of the two dates differ by at most {offset:g} pixels.",
            low=0, high=offset, mend=align,
        ),
        _among(
            "label_crs_equal", [True],
            "A label with a place on earth has the coordinate reference system of date 1.",
            redraw, of_labels,
        ),
        _between(
            "label_offset",
            f"A label with a place on earth lies on the grid of date 1, up to {offset:g} pixels.",
            low=0, high=offset, mend=redraw, severity=of_labels,
        ),
        _between(
            "tiles", "Every scene gives at least one tile.", low=1, severity="warn",
            mend="choose a smaller tile_size, or padding: pad",
        ),
    ]  # fmt: skip


def split_rules(data: DataSettings) -> list[Rule]:
    """Expectations over `pipeline.facts.split_facts`, with the counts that are declared."""
    draw_again = "choose another split, split_ratio or split_seed"
    rules = [
        _equal("tiles", "recorded_tiles", "Each split holds the tiles that its record counts."),
        _between("tiles", "No split is empty.", low=1, mend=draw_again),
        _between(
            "changed_pixels", "Something changed in every split.", low=1, severity="warn",
            mend="look at the labels and label_rule; " + draw_again,
        ),
    ]  # fmt: skip
    return rules + list(_published_rules(data.expected))


def _published_rules(expected: Expected) -> Iterator[Rule]:
    again = "see that the archives are complete (dvc repro --force download), then " + RUN_AGAIN
    for name, counts in (("tiles", expected.tiles), ("scenes", expected.scenes)):
        for split, count in counts.items():
            yield _between(
                name, f"The {split} split has {count:,} {name}, as published.",
                low=count, high=count, split=split, mend=again,
            )  # fmt: skip
    for split, share in expected.changed_fraction.items():
        yield _between(
            "changed_fraction",
            f"Of the {split} split's pixels {share:.2%} changed, as published "
            f"(within {expected.tolerance:.2%}).",
            low=share - expected.tolerance,
            high=share + expected.tolerance,
            split=split,
            mend="look at label_rule, and see that labels and images belong together",
        )


def _unique(column: str, statement: str) -> Rule:
    mend = "rename the scenes that share a name, or remove one of them"
    return Rule(
        f"unique-{column}", statement, mend, "ExpectColumnValuesToBeUnique", {"column": column}
    )


def _null(column: str, statement: str, mend: str = RUN_AGAIN, severity: Severity = "fail") -> Rule:
    return Rule(column, statement, mend, "ExpectColumnValuesToBeNull", {"column": column}, severity)


def _among(
    column: str, values: Iterable[Any], statement: str, mend: str, severity: Severity = "fail"
) -> Rule:
    options = {"column": column, "value_set": list(values)}
    return Rule(column, statement, mend, "ExpectColumnValuesToBeInSet", options, severity)


def _between(
    column: str,
    statement: str,
    *,
    low: float | None = None,
    high: float | None = None,
    split: str | None = None,
    mend: str = "correct the files of these scenes",
    severity: Severity = "fail",
) -> Rule:
    options: dict[str, Any] = {"column": column, "min_value": low, "max_value": high}
    key = f"{column}-{split}" if split else column
    return Rule(key, statement, mend, "ExpectColumnValuesToBeBetween", options, severity, split)


def _equal(a: str, b: str, statement: str) -> Rule:
    options = {"column_A": a, "column_B": b}
    return Rule(f"{a}-{b}", statement, RUN_AGAIN, "ExpectColumnPairValuesToBeEqual", options)


def check(facts: pd.DataFrame, rules: list[Rule], index: str) -> list[dict[str, Any]]:
    """Run expectations over a table.

    Args:
        facts: the table.
        rules: what to expect of it.
        index: the column that names a row.

    Returns:
        A finding for each rule, in order, JSON-able: `key`, `statement`, `expectation`, `status`
        (`pass`, `warn`, `fail`), `observed` (text), `checked` and `violations` (rows), `examples`
        (at most `EXAMPLES` of {`where`, `value`}) and `mend`.

    Raises:
        ValidationError: an expectation could not be computed, because the table is not as declared.
    """
    outcomes = _run(facts, rules, index)
    return [_finding(facts, rule, outcomes[rule.key], index) for rule in rules]


def _run(facts: pd.DataFrame, rules: list[Rule], index: str) -> dict[str, Any]:
    """Outcomes of Great Expectations by the key of the rule; its own order differs."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")  # some versions report when imported
    import great_expectations as gx  # takes seconds: only where a suite is run
    from great_expectations import expectations as classes
    from great_expectations.data_context.types.base import ProgressBarsConfig
    from great_expectations.expectations.row_conditions import Column

    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    suite = gx.ExpectationSuite(name="dsfer")
    for rule in rules:
        build = getattr(classes, rule.expectation)
        suite.add_expectation(
            build(
                **rule.options,
                row_condition=Column(index) == rule.only if rule.only else None,
                notes=rule.statement,
                meta={"key": rule.key},
                severity="critical" if rule.severity == "fail" else "warning",
            )
        )
    batch = context.data_sources.pandas_default.read_dataframe(facts)
    result = batch.validate(
        suite,
        result_format={"result_format": "COMPLETE", "unexpected_index_column_names": [index]},
    )
    configs = [outcome.expectation_config for outcome in result.results]
    keys = [config.meta["key"] for config in configs if config is not None and config.meta]
    return dict(zip(keys, result.results, strict=True))


def _finding(facts: pd.DataFrame, rule: Rule, outcome: Any, index: str) -> dict[str, Any]:
    result = outcome.to_json_dict()["result"]
    if "unexpected_count" not in result:
        raise ValidationError(
            f"cannot check '{rule.statement}' on column {', '.join(rule.columns)}",
            where="manifest",
            mend=RUN_AGAIN,
        )
    rows = result.get("unexpected_index_list") or []
    return {
        "key": rule.key,
        "statement": rule.statement,
        "expectation": outcome.expectation_config.type,
        "status": "pass" if outcome.success else rule.severity,
        "observed": _observed(facts, rule, index),
        "checked": result["element_count"],
        "violations": result["unexpected_count"],
        "examples": [_example(rule, row, index) for row in rows[:EXAMPLES]],
        "mend": rule.mend,
    }


def _example(rule: Rule, row: dict[str, Any], index: str) -> dict[str, str]:
    values = [_text(name, row[name]) for name in rule.columns]
    if len(values) > 1:
        named = zip(rule.columns, values, strict=True)
        values = [f"{name.replace('_', ' ')} {value}" for name, value in named]
    return {"where": str(row[index]), "value": ", ".join(values)}


def _observed(facts: pd.DataFrame, rule: Rule, index: str) -> str:
    """What a column holds, in a few words."""
    column = rule.columns[0]
    values = facts[column].dropna()
    if rule.expectation == "ExpectColumnValuesToBeNull":
        return (
            f"{len(values):,} exception{'s' * (len(values) > 1)}" if len(values) else "no exception"
        )
    if "mostly" in rule.options:
        return f"{int(values.sum()):,} of {len(facts):,}"
    if rule.only:
        return _text(column, facts.loc[facts[index] == rule.only, column].iloc[0])
    if index == "split":
        named = zip(facts[index], facts[column], strict=True)
        return ", ".join(f"{name} {_text(column, value)}" for name, value in named)
    if pd.api.types.is_numeric_dtype(values) and values.nunique() > 1:
        return f"{_text(column, values.min())} to {_text(column, values.max())}"
    different = sorted(_text(column, value) for value in values.unique())
    return ", ".join(different) if len(different) <= 4 else f"{len(different):,} different"


def _text(column: str, value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return f"{value:.3%}" if column.endswith("fraction") else f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int | np.integer) else str(value)

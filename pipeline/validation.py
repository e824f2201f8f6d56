"""Validate a prepared data set: run the expectations, keep the result as JSON and as a page.

`validation.json` holds (nothing in it depends on time or chance):

    schema       1
    dataset      key, title, licence, citation
    split        hash, policy, seed, ratio as the split stage recorded them
    published    apply | differ (other tile size, padding or ratio) | none (nothing is known)
    as_published whether published scores may stand beside those of this data
    status       pass | warn | fail, the worst of all findings
    findings     {tiles: [...], scenes: [...], splits: [...]}, see `pipeline.expectations.check`
    leakage      a row per audit and pair of splits: audit, earlier, later, tiles, of, severity
    pairs        {audit: first examples of id_a, split_a, id_b, split_b and how close}
    splits       a row per split, see `pipeline.facts.split_facts`, with published numbers
"""

import json
import logging
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from dsfer.data.labels import label_rule
from dsfer.data.manifest import SPLITS
from dsfer.errors import DataError, ValidationError
from dsfer.files import atomic_folder, write_bytes, write_json
from pipeline import expectations
from pipeline.catalog import Expected
from pipeline.facts import Audit, audit_leakage, split_facts, tile_facts
from pipeline.pages import draw_page
from pipeline.params import DataSettings

SCHEMA = 1
SUBJECTS = {"tiles": "tile", "scenes": "scene", "splits": "split"}

log = logging.getLogger(__name__)


def validate(
    tiles: pd.DataFrame,
    scenes: pd.DataFrame,
    record: dict[str, Any],
    data: DataSettings,
    name: str,
) -> dict[str, Any]:
    """Check a prepared data set against what it declares.

    Args:
        tiles: manifest of the split stage.
        scenes: scene table of the crop stage.
        record: `split.json` of the split stage.
        data: how the data set was prepared, with its catalog entry.
        name: what the user calls the data set.

    Returns:
        The result, JSON-able, as the module's docstring describes it.

    Raises:
        DataError: the manifest has not been through the split stage.
    """
    if "split" not in tiles:
        raise DataError(
            "the manifest has no column 'split'", where="split/manifest.parquet",
            mend="run the split stage",
        )  # fmt: skip
    audit = audit_leakage(tiles)
    tiles = tile_facts(tiles, label_rule(data.label_rule).allowed, audit)
    splits = split_facts(tiles)
    counted = splits.assign(recorded_tiles=[record["counts"].get(split, 0) for split in SPLITS])
    placed = scenes.assign(tiles=scenes["id"].map(tiles["scene"].value_counts()).fillna(0))
    findings = {
        "tiles": expectations.check(tiles, expectations.tile_rules(data, scenes), "id"),
        "scenes": expectations.check(placed, expectations.scene_rules(data), "id"),
        "splits": expectations.check(counted, expectations.split_rules(data), "split"),
    }
    statuses = {finding["status"] for group in findings.values() for finding in group}
    entry = data.entry
    return {
        "schema": SCHEMA,
        "dataset": {"name": name, "title": entry.title, "licence": entry.licence,
                    "citation": entry.citation},
        "split": {key: record.get(key) for key in ("hash", "policy", "seed", "ratio")},
        "published": _published(data),
        "as_published": data.as_published,
        "status": next(each for each in ("fail", "warn", "pass") if each in statuses),
        "findings": findings,
        "leakage": _leakage(audit, splits, data),
        "pairs": _pairs(audit),
        "splits": _statistics(splits, data),
    }  # fmt: skip


def _published(data: DataSettings) -> str:
    if data.policy.expected == Expected():
        return "none"
    return "apply" if data.as_expected else "differ"


def _audits(audit: Audit) -> dict[str, pd.DataFrame]:
    return {
        "identical": audit.exact,
        "near-identical": audit.near,
        "overlapping": audit.overlap,
        "adjacent": audit.adjacent,
    }


def _leakage(audit: Audit, splits: pd.DataFrame, data: DataSettings) -> list[dict[str, Any]]:
    """How many tiles of each later split have a partner in each earlier one."""
    totals = splits.set_index("split")["tiles"]
    rules = data.entry.leakage
    severity = {
        "identical": rules.identical,
        "near-identical": rules.near,
        "overlapping": rules.overlap,
        "adjacent": rules.adjacent,
    }
    return [
        {
            "audit": name,
            "earlier": earlier,
            "later": later,
            "tiles": int(((pairs["split_a"] == earlier) & (pairs["split_b"] == later)).sum()),
            "of": int(totals[later]),
            "severity": severity[name],
        }
        for name, pairs in _audits(audit).items()
        for earlier, later in combinations(SPLITS, 2)
    ]


def _pairs(audit: Audit) -> dict[str, list[dict[str, Any]]]:
    """The first pairs of each audit."""
    return {
        name: json.loads(pairs.head(expectations.EXAMPLES).to_json(orient="records"))
        for name, pairs in _audits(audit).items()
    }


def _statistics(splits: pd.DataFrame, data: DataSettings) -> list[dict[str, Any]]:
    """The rows of `split_facts` with the published numbers beside them, null where none apply."""
    rows: list[dict[str, Any]] = json.loads(splits.to_json(orient="records"))
    for row in rows:
        for name in ("tiles", "scenes", "changed_fraction"):
            row[f"published_{name}"] = getattr(data.expected, name).get(row["split"])
    return rows


def write_result(folder: Path, result: dict[str, Any]) -> Path:
    """Write `validation.json` and `validation.html` and return the path of the page."""
    page = render(result).encode()
    with atomic_folder(folder) as new:
        write_json(new / "validation.json", result)
        write_bytes(new / "validation.html", page)
    return folder / "validation.html"


def render(result: dict[str, Any]) -> str:
    """The result as one HTML page that needs no other file."""
    return draw_page("validation.html", result=result)


def require_valid(result: dict[str, Any], manifest: Path, page: Path) -> None:
    """Log the outcome with every warning, and stop at the first violated expectation.

    Args:
        result: what `validate` returned.
        manifest: the file that was validated, for the message.
        page: where the whole result can be read.

    Raises:
        ValidationError: an expectation is violated; names tile, scene or split and the value.
    """
    findings = [
        (SUBJECTS[table], finding)
        for table, group in result["findings"].items()
        for finding in group
    ]
    warned = [(subject, finding) for subject, finding in findings if finding["status"] == "warn"]
    for subject, finding in warned:
        log.warning("%s", _violation(subject, finding))
    failed = [(subject, finding) for subject, finding in findings if finding["status"] == "fail"]
    if failed:
        subject, finding = failed[0]
        others = f" ({len(failed)} expectations are violated)" if failed[1:] else ""
        raise ValidationError(
            _violation(subject, finding) + others,
            where=manifest,
            mend=f"{finding['mend']}; every violation is listed in {page}",
        )
    held = len(findings) - len(warned)
    log.info("%d expectations hold, %d warn; see %s", held, len(warned), page)


def _violation(subject: str, finding: dict[str, Any]) -> str:
    first, count = finding["examples"][0], finding["violations"]
    others = f" (and {count - 1:,} more)" if count > 1 else ""
    expected = finding["statement"].rstrip(".")
    return f"{subject} {first['where']}: {first['value']}{others}, but expected: {expected}"

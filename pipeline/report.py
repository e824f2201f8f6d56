"""The report of one run: a single HTML page that needs nothing but itself."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dsfer.figures import ERROR_COLOURS, data_uri, svg, training_curves
from pipeline.pages import draw_page
from pipeline.published import Published, Reference, load_published
from pipeline.results import Figures, ProtocolScores, Results

DrawnFigures = tuple[Figures, list[Path]]

MEASURES = ["P", "R", "F1", "OA", "IoU"]

VALIDATION_PAGE = "../../validation/validation.html"
"""Where the validation page lies, seen from the report."""


@dataclass(frozen=True)
class Row:
    """A line of the table that sets this run beside others.

    Attributes:
        name: what was measured.
        protocol: `tiles` or `stitched`.
        scores: those of `MEASURES` that are known, in percent.
        interval: 95 % bootstrap interval of F1, or None.
        n: number of tiles or scenes, where known.
        ours: whether it is this run's own.
    """

    name: str
    protocol: str
    scores: Mapping[str, float | None]
    interval: str
    n: int | None
    ours: bool = False


def paper_figures(results: Results, published: Published) -> tuple[Reference | None, str]:
    """The paper's figures for this run; or None, and why nothing of it may stand beside the run."""
    metrics = results.metrics
    reference = published.reference(
        metrics.model, metrics.dataset, metrics.variant, metrics.encoder
    )
    if reference is None:
        return None, "The paper has no figure for this network on this data set."
    if not results.validation.as_published:
        return None, (
            "The paper is left out: its figures belong to the published data, and tile size, "
            "padding, bands, label rule or split are others here."
        )
    return reference, ""


def comparison(results: Results, published: Published) -> list[Row]:
    """This run in both protocols, the paper where it is comparable, and the baseline."""
    metrics = results.metrics
    rows = [_own("tiles", metrics.tiles)]
    if metrics.stitched:
        rows.append(_own("stitched", metrics.stitched))
    reference, _ = paper_figures(results, published)
    if reference:
        rows.append(Row(f"Paper, {reference.table}", "tiles", reference.scores, "", None))
    baseline = metrics.baseline.model_dump(include=set(MEASURES))
    return [*rows, Row("Baseline", "tiles", baseline, "", metrics.tiles.n)]


def _own(protocol: str, scores: ProtocolScores) -> Row:
    bounds = (scores.F1_low, scores.F1_high)
    interval = "" if any(map(_missing, bounds)) else " – ".join(map(percent, bounds))
    values = scores.model_dump(include=set(MEASURES))
    return Row("This run", protocol, values, interval, scores.n, ours=True)


def build_report(results: Results, drawn: DrawnFigures, published: Published | None = None) -> str:
    """Draw the page.

    Args:
        results: what the run left behind.
        drawn: its plates, `pipeline.results.read_figures`.
        published: the paper's tables; by default those of `published.yaml`.

    Returns:
        HTML with its style and pictures inside; its only address outside is that of the validation
        page, relative to the report's own place.
    """
    published = published or load_published()
    metrics = results.metrics
    reference, no_comparison = paper_figures(results, published)
    checks = [check for group in results.validation.findings.values() for check in group]
    return draw_page(
        "report.html",
        {"percent": percent, "value": value},
        m=metrics,
        title=published.titles.get(metrics.model, metrics.model),
        split=results.split,
        rows=comparison(results, published),
        measures=MEASURES,
        reference=reference,
        no_comparison=no_comparison,
        cost=published.cost_of(metrics.model, metrics.variant, metrics.encoder),
        others=_others(published, metrics.dataset) if reference else [],
        curves=data_uri(svg(training_curves(results.history)), "image/svg+xml"),
        worst=[_picture(path, results.tiles) for path in results.worst],
        sample=[_picture(path, results.tiles) for path in results.sample],
        colours=ERROR_COLOURS,
        drawn=drawn[0],
        plates=[data_uri(path.read_bytes(), "image/png") for path in drawn[1]],
        compared=[published.titles.get(name, name) for name in drawn[0].methods],
        scenes=results.scenes.sort_values("F1", na_position="last").to_dict("records"),
        validation=results.validation,
        checks=checks,
        outcomes=Counter(check.status for check in checks),
        validation_page=VALIDATION_PAGE,
        settings=results.settings,
    )


def _others(published: Published, dataset: str) -> list[tuple[str, dict[str, float]]]:
    """Table I of one data set: name and scores of every method, in its order."""
    rows = []
    for model, by_dataset in published.comparison.items():
        scores = {str(name): row for name, row in by_dataset.items()}.get(dataset)
        if scores:
            rows.append((published.titles[model], scores.model_dump()))
    return rows


def _picture(path: Path, tiles: pd.DataFrame) -> dict[str, Any]:
    """What the page shows of one strip `NN_<tile id>.png`: its bytes and the tile's own counts."""
    tile = path.stem.split("_", 1)[-1]
    found = tiles[tiles["id"] == tile].to_dict("records")
    return {
        "tile": tile,
        "uri": data_uri(path.read_bytes(), "image/png"),
        "counts": found[0] if found else None,
    }


def percent(number: float | None) -> str:
    """Two decimals, or a dash where there is no value."""
    return "–" if _missing(number) else f"{number:.2f}"


def value(setting: object) -> str:
    """A parameter as it would be typed in `params.yaml`."""
    if setting is None:
        return "null"
    if isinstance(setting, bool):
        return str(setting).lower()
    if isinstance(setting, list | tuple):
        return "[" + ", ".join(map(value, setting)) + "]"
    return str(setting)


def _missing(number: float | None) -> bool:
    return number is None or math.isnan(number)

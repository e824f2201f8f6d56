"""What a finished stage shows in Prefect's UI: tables, pictures and figures as artifacts."""

from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from rich.filesize import decimal
from ruamel.yaml import YAML

from dsfer.figures import data_uri, svg, training_curves
from pipeline.params import PARAMS, load_params, resolve
from pipeline.published import load_published
from pipeline.report import MEASURES, comparison, paper_figures, percent, value
from pipeline.results import Results, read_results, read_validation

PICTURES = 4
"""Change maps shown of each kind; an artifact is kept in Prefect's data base."""

PICTURE_HEIGHT = 256
"""Larger tiles are shown at this height, in pixels."""


LEGEND = (
    "Left to right: before, after, label, prediction, and the errors: white found, red missed, "
    "cyan false alarm."
)


def publish(stage: str, workspace: Path, experiment: str | None) -> None:
    """Create the artifacts of a stage that has just run.

    Args:
        stage: its name.
        workspace: the folder that it ran in, the project's or a copy.
        experiment: name under which a copy's results are kept.

    Raises:
        DataError: an output of the stage is missing or damaged.
    """
    settings = resolve(load_params(workspace / PARAMS))
    folder = workspace / settings.folder
    _publish_outputs(stage, workspace)
    if stage == "validate":
        _publish_validation(folder)
    elif stage == "evaluate":
        results = read_results(folder, settings.params.model)
        _publish_scores(results)
        _publish_change_maps(results)
    elif stage == "report":
        page = settings.model_folder / "report.html"
        _publish_report(read_results(folder, settings.params.model), page, experiment)


def _publish_outputs(stage: str, workspace: Path) -> None:
    """What the stage wrote, as DVC has recorded it."""
    lock = YAML(typ="safe", pure=True).load(workspace / "dvc.lock")
    rows = [
        {
            "output": out["path"],
            "files": out.get("nfiles", 1),
            "size": decimal(out["size"]),
            out.get("hash", "md5"): out["md5"],
        }
        for out in lock["stages"][stage].get("outs", [])
    ]
    create_table_artifact(rows, key=f"outputs-{stage}", description=f"Outputs of stage {stage}")


def _publish_validation(folder: Path) -> None:
    validation = read_validation(folder)
    rows: list[dict[str, Any]] = [
        {
            "of": subject,
            "expectation": finding.statement,
            "status": finding.status,
            "violations": finding.violations,
        }
        for subject, findings in validation.findings.items()
        for finding in findings
    ]
    rows += [
        {
            "of": f"{leak.earlier} and {leak.later}",
            "expectation": f"no {leak.audit} tiles in both",
            "status": leak.severity if leak.tiles else "pass",
            "violations": leak.tiles,
        }
        for leak in validation.leakage
    ]
    create_table_artifact(rows, key="validation", description=f"Validation: {validation.status}")


def _publish_scores(results: Results) -> None:
    """Change-class scores beside the paper's and the baseline's."""
    published = load_published()
    rows = [
        {
            "change class, %": f"{row.name}, {row.protocol}",
            **{name: percent(row.scores[name]) if name in row.scores else "" for name in MEASURES},
            "95 % of F1": row.interval,
            "n": "" if row.n is None else f"{row.n:,}",
        }
        for row in comparison(results, published)
    ]
    _, without_paper = paper_figures(results, published)
    create_table_artifact(
        rows, key="scores", description=f"{_describe(results)} {without_paper}".strip()
    )


def _publish_change_maps(results: Results) -> None:
    kinds = {"Sample, drawn without regard to score": results.sample, "Most errors": results.worst}
    parts = [LEGEND]
    for title, files in kinds.items():
        parts.append(f"## {title}")
        parts += [
            f"![{file.stem}]({data_uri(thumbnail(file), 'image/webp')})"
            for file in files[:PICTURES]
        ]
    create_markdown_artifact("\n\n".join(parts), key="change-maps", description=_describe(results))


def thumbnail(file: Path, height: int = PICTURE_HEIGHT) -> bytes:
    """A picture at no more than `height` pixels, as WebP."""
    with Image.open(file) as picture:
        picture.thumbnail((picture.width, height))
        content = BytesIO()
        picture.save(content, "webp", lossless=True)
    return content.getvalue()


def _publish_report(results: Results, page: Path, experiment: str | None) -> None:
    """Where the report lies, its curves, and every parameter of the run."""
    settings = results.settings
    fetch = f", once `dvc exp apply {experiment}` has brought it there" if experiment else ""
    rows = [
        f"| {key} | `{value(setting)}` | {settings.sources.get(key, 'params.yaml')} |"
        for key, setting in settings.values.items()
    ]
    curves = data_uri(svg(training_curves(results.history)), "image/svg+xml")
    text = "\n".join(
        [
            f"The page with all pictures and tables: `{page}` in the project{fetch}.",
            "",
            f"![training curves]({curves})",
            "",
            "| parameter | value | from |",
            "|---|---|---|",
            *rows,
        ]
    )
    create_markdown_artifact(text, key="report", description=_describe(results))


def _describe(results: Results) -> str:
    metrics = results.metrics
    return (
        f"{metrics.model} on {metrics.dataset}, split {metrics.split_hash}, recipe "
        f"{metrics.recipe}, seed {metrics.seed}, {metrics.iterations:,} iterations, "
        f"{metrics.devices}."
    )

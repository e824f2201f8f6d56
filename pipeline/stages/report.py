"""Stage `report`: draw the page of a run and print its final table."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dsfer.files import write_bytes
from pipeline.params import current_settings
from pipeline.published import load_published
from pipeline.report import MEASURES, build_report, comparison, paper_figures, percent
from pipeline.results import Results, read_figures, read_results
from pipeline.stages import run


def final_table(results: Results) -> Table:
    """Change-class scores of this run beside the paper's and the baseline's, for a terminal."""
    metrics = results.metrics
    title = (
        f"{metrics.model} on {metrics.dataset}, split {metrics.split_hash}\n"
        f"recipe {metrics.recipe}, seed {metrics.seed}, {metrics.iterations:,} iterations, "
        f"{metrics.devices}"
    )
    # Narrow enough for the 80 columns that a log or a pipe has.
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("change class, %", no_wrap=True)
    for name in (*MEASURES, "95 % of F1", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in comparison(results, load_published()):
        numbers = [percent(row.scores[name]) if name in row.scores else "" for name in MEASURES]
        n = "" if row.n is None else f"{row.n:,}"
        name = f"{row.name}, {row.protocol}" if row.ours else row.name
        table.add_row(name, *numbers, row.interval, n, style="bold" if row.ours else None)
    return table


def write_report(folder: Path, model: str, console: Console) -> Path:
    """Write the report of one model on one data set, and print the table and the page's path.

    Args:
        folder: the data set's folder.
        model: name of the model.
        console: where to print.

    Raises:
        DataError: an input of the report is missing or damaged; no page is written.
    """
    results = read_results(folder, model)
    drawn = read_figures(folder / "models" / model / "figures")
    page = folder / "models" / model / "report.html"
    write_bytes(page, build_report(results, drawn).encode())
    console.print(final_table(results))
    _, no_comparison = paper_figures(results, load_published())
    if no_comparison:
        console.print(no_comparison)
    console.print(f"report: {page}", soft_wrap=True)
    return page


def main() -> None:
    """Draw the report of the current settings."""
    settings = current_settings()
    write_report(settings.folder, settings.params.model, Console())


if __name__ == "__main__":
    run(main)

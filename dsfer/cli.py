"""The `dsfer` command: what the library does without a pipeline around it."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

import dsfer
from dsfer.console import run
from dsfer.devices import Device
from dsfer.errors import ConfigError
from dsfer.models import count_parameters

app = typer.Typer(help="Dsfer-Net change detection.", no_args_is_help=True, add_completion=False)


@app.callback()
def _options() -> None:
    """Dsfer-Net change detection."""


@app.command()
def models() -> None:
    """List the networks, with their parameters at default options."""
    table = Table("model", "parameters", "as published")
    for name in dsfer.list_models():
        count = count_parameters(dsfer.create_model(name))
        table.add_row(name, f"{count.live:,}", f"{count.counted:,}")
    Console().print(table)


@app.command("import-weights")
def import_weights(
    sources: Annotated[
        list[Path], typer.Argument(help="Checkpoint of the released code, in one file or in parts.")
    ],
    model: Annotated[str, typer.Option(help="Network it belongs to.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Data set it was trained on. Dsfer-Net needs its colour statistics, and takes "
            "levir-cd if none is given."
        ),
    ] = None,
) -> None:
    """Turn a released checkpoint into a weights file of ours, exactly."""
    from dsfer.released import import_released
    from dsfer.weights import save_weights

    if out.suffix != ".safetensors":
        raise ConfigError(f"{out} is no .safetensors file", where="--out", mend="change its suffix")
    if model == "dsfer-net" and dataset is None:
        dataset = "levir-cd"
    network, metadata = import_released(model, sources, dataset)
    save_weights(network, out, metadata)
    count = count_parameters(network).live
    normalised = "each image by itself" if metadata.per_image else f"mean {metadata.mean}"
    Console().print(f"wrote {out}: {count:,} parameters, input normalised: {normalised}")


@app.command()
def export(
    weights: Annotated[
        Path, typer.Argument(help="Trained network: weights.safetensors, weights.json beside it.")
    ],
    out: Annotated[Path, typer.Option(help="The .onnx file to write; its record goes beside it.")],
) -> None:
    """Write a trained network as ONNX, compared with torch, and how it is used as JSON."""
    from dsfer.export import export_onnx
    from dsfer.weights import record_path

    export_onnx(weights, out)
    Console().print(f"wrote {out}, and how it is used as {record_path(out)}")


def _bands(text: str) -> tuple[int, int, int]:
    """`3,2,1` as numbers of bands."""
    try:
        red, green, blue = (int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"{text!r} names no three bands", where="--bands", mend="give three numbers, as 3,2,1"
        ) from error
    return red, green, blue


def _scale(text: str) -> tuple[float, float] | Literal["percentiles"]:
    """`0,3000` as an interval, or `percentiles`."""
    if text == "percentiles":
        return "percentiles"
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"{text!r} is no scale", where="--scale", mend="give LOW,HIGH or percentiles"
        ) from error
    return low, high


def _threshold(text: str) -> float | Literal["auto"]:
    """`0.5` as a number, or `auto`."""
    if text == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(
            f"{text!r} is no probability", where="--threshold", mend="give a number, or auto"
        ) from error


@app.command()
def predict(
    t1: Annotated[
        str,
        typer.Argument(
            help="Raster of the first date; or, without a second, many pairs: a folder with A/ and "
            "B/, a .csv of id,t1,t2, or a STAC-like .json."
        ),
    ],
    weights: Annotated[
        Path, typer.Option(help="Trained network: weights.safetensors, weights.json beside it.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    t2: Annotated[str | None, typer.Argument(help="Raster of the second date.")] = None,
    align: Annotated[bool, typer.Option(help="Resample the second raster onto the first.")] = False,
    bands: Annotated[
        str | None, typer.Option(help="Bands that are R, G, B, as 3,2,1; if not as in training.")
    ] = None,
    scale: Annotated[
        str | None, typer.Option(help="Values that become 0 and 255, as 0,3000; or percentiles.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Pixels by which the grids may differ, up to 1.")
    ] = 1.0,
    overlap: Annotated[float, typer.Option(help="Share of a window that neighbours share.")] = 0.5,
    threshold: Annotated[
        str, typer.Option(help="Probability above which it changed; auto: best in validation.")
    ] = "0.5",
    min_area: Annotated[float, typer.Option(help="Leave out changes below, in m².")] = 0.0,
    fill_holes: Annotated[float, typer.Option(help="Close holes below, in m².")] = 0.0,
    simplify: Annotated[float, typer.Option(help="Pixels by which outlines may move.")] = 0.0,
    geojson: Annotated[bool, typer.Option(help="Write GeoJSON, too.")] = False,
    label: Annotated[str | None, typer.Option(help="Raster of what really changed.")] = None,
    label_rule: Annotated[str, typer.Option(help="How label values are read.")] = "binary255",
    device: Annotated[Device, typer.Option(help="auto takes a GPU if there is one.")] = "auto",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Windows per forward pass; 8 on a GPU, 1 on a CPU.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on with a run that was cut off.")] = False,
) -> None:
    """Map the changes between two rasters: GeoTIFFs, polygons, a picture, a summary.

    Or between the rasters of many pairs, each into a folder of its own.
    """
    from dsfer.detector import load
    from dsfer.mapping.pair import Reading
    from dsfer.mapping.pairs import check_all_done, list_pairs, map_pairs
    from dsfer.mapping.predict import MapOptions, predict_raster
    from dsfer.mapping.scoring import Label

    reading = Reading(
        _bands(bands) if bands else None, _scale(scale) if scale else None, align, tolerance
    )
    options = MapOptions(overlap, _threshold(threshold), min_area, fill_holes, simplify, geojson)
    if t2 is not None:
        summary = predict_raster(
            t1,
            t2,
            load(weights, device=device, batch_size=batch_size),
            out,
            reading=reading,
            options=options,
            label=Label(label, label_rule) if label else None,
            resume=resume,
        )
        _print_summary(summary, out)
        return
    if label is not None:
        raise ConfigError(
            "goes with two rasters", where="--label", mend="name the labels in the list of pairs"
        )
    rows = map_pairs(
        list_pairs(t1),
        load(weights, device=device, batch_size=batch_size),
        out,
        reading=reading,
        options=options,
        label_rule=label_rule,
        resume=resume,
    )
    _print_rows(rows)
    check_all_done(rows, out)


def _print_rows(rows: list[dict[str, Any]]) -> None:
    table = Table("pair", "status", "changes", "m²", "second raster")
    for row in rows:
        found = (
            (f"{row['changes']:,}", f"{row['changed_area_m2']:,.0f}", row["second_raster"])
            if row["status"] == "done"
            else ()
        )
        table.add_row(row["id"], row["status"], *found)
    Console(highlight=False).print(table)


def _print_summary(summary: dict[str, Any], out: Path) -> None:
    from dsfer.mapping.predict import second_raster

    console = Console(highlight=False)
    pixels = summary["pixels"]
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("grid", summary["grid"])
    table.add_row("second raster", second_raster(summary))
    if summary["bands"]:
        table.add_row("bands", ", ".join(map(str, summary["bands"])))
    table.add_row(
        "threshold", f"{summary['options']['threshold']:.4g}, {summary['threshold_from']}"
    )
    table.add_row("changes", f"{summary['changes']:,}, {summary['changed_area_m2']:,.0f} m²")
    table.add_row("pixels", ", ".join(f"{count:,} {name}" for name, count in pixels.items()))
    for protocol, scores in (summary["scores"] or {}).items():
        table.add_row(
            f"scores, {protocol}",
            ", ".join(f"{name} {_percent(scores[name])}" for name in ("P", "R", "F1", "IoU")),
        )
    table.add_row("maps", str(out))
    console.print(table)


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


@app.command()
def view(
    maps: Annotated[Path, typer.Argument(help="Folder that `dsfer predict` wrote.")],
    t1: Annotated[str | None, typer.Option(help="Where the first raster lies now.")] = None,
    t2: Annotated[str | None, typer.Option(help="Where the second raster lies now.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
) -> None:
    """Show a folder of maps in the browser, from a server on this machine, until Ctrl-C."""
    try:
        from dsfer.viewer.folder import ChangeFolder
        from dsfer.viewer.server import serve
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"needs {error.name}, which is not installed",
            where="dsfer view",
            mend="install the extra: pip install 'dsfer[viewer]'",
        ) from error
    serve(ChangeFolder(maps, t1, t2), port=port, browser=browser)


def main() -> None:
    """Run the command line."""
    run(app)

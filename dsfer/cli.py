"""The `dsfer` command: what the library does without a pipeline around it."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import dsfer
from dsfer.console import run
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


def main() -> None:
    """Run the command line."""
    run(app)

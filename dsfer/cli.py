"""The `dsfer` command: what the library does without a pipeline around it."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import dsfer
from dsfer.console import run
from dsfer.errors import ConfigError

app = typer.Typer(help="Dsfer-Net change detection.", no_args_is_help=True, add_completion=False)


@app.callback()
def _options() -> None:
    """Dsfer-Net change detection."""


@app.command()
def models() -> None:
    """List the networks, with their parameters at default options."""
    table = Table("model", "parameters")
    for name in dsfer.list_models():
        count = sum(p.numel() for p in dsfer.create_model(name).parameters())
        table.add_row(name, f"{count:,}")
    Console().print(table)


@app.command("import-weights")
def import_weights(
    source: Annotated[Path, typer.Argument(help="Checkpoint of the released code.")],
    model: Annotated[str, typer.Option(help="Network it belongs to.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    dataset: Annotated[
        str, typer.Option(help="Data set it was trained on, whose colour statistics it needs.")
    ] = "levir-cd",
) -> None:
    """Turn a released checkpoint into a weights file of ours, exactly."""
    from dsfer.weights import RELEASED_STATISTICS, import_dsfer_net, released_metadata, save_weights

    if out.suffix != ".safetensors":
        raise ConfigError(f"{out} is no .safetensors file", where="--out", mend="change its suffix")
    if dataset not in RELEASED_STATISTICS:
        raise ConfigError(
            f"no released checkpoint is known for {dataset!r}",
            where="--dataset",
            mend=f"choose one of {', '.join(RELEASED_STATISTICS)}",
        )
    network = dsfer.create_model(model)
    import_dsfer_net(source, network)
    save_weights(network, out, released_metadata(source, dataset))
    count = sum(p.numel() for p in network.parameters())
    Console().print(f"wrote {out}: {count:,} parameters, normalised as {dataset}")


def main() -> None:
    """Run the command line."""
    run(app)

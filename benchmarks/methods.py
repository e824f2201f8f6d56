"""How many pairs a second every network of Tables II and IV trains, by the recipe `common`.

    python -m benchmarks.methods [--batch 16] [--only dsfer-net]

The step is that of `dsfer.training.Trainer`, uncompiled, in bf16 where the device has it, with the
recipe's own loss. Weights are drawn, not trained.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from benchmarks.cost import build
from benchmarks.demo import DemoTiles, demo_tiles
from benchmarks.side_by_side import Report, compare
from benchmarks.training import SIZE, build_trainer, repeat
from dsfer.losses import ChangeLoss
from pipeline.cost import measured_networks, parts_of
from pipeline.recipes import resolve_recipe


def main(
    batch: int = 16 if torch.cuda.is_available() else 2,
    size: int = SIZE,
    steps: Annotated[int, typer.Option(help="steps that are timed at once")] = (
        10 if torch.cuda.is_available() else 1
    ),
    rounds: int = 3,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    only: Annotated[list[str] | None, typer.Option(help="networks")] = None,
    json: Annotated[Path | None, typer.Option(help="also write the numbers to this file")] = None,
) -> None:
    """Render tiles, then time training steps of every network in turn."""
    where = torch.device(device)
    report = Report(where, json)
    with demo_tiles(max(64, batch), size) as data, tempfile.TemporaryDirectory() as folder:
        timed = {
            name: repeat(
                stepper(name, data, where, batch, size, batch * steps * (rounds + 1), Path(folder)),
                steps,
            )
            for name in only or measured_networks()
        }
        timings = compare(timed, items=batch * steps, rounds=rounds)
        report.add(f"training, {batch} pairs of {size} px a step", timings, "pairs")


def stepper(
    name: str,
    data: DemoTiles,
    device: torch.device,
    batch: int,
    size: int,
    samples: int,
    folder: Path,
) -> Callable[[], Tensor]:
    """A function that trains a network one step and returns the losses."""
    recipe, _ = resolve_recipe("common", parts_of(name)[0], "levir-cd", {})
    loss = ChangeLoss(recipe.lambda_, (1.0, 1.0), recipe.change_loss, recipe.deep_loss)
    network = build(name, size, device)
    trainer = build_trainer(network, loss, data, device, batch, samples, folder, compiled=False)
    batches = trainer._batches()
    return lambda: trainer._train_step(*next(batches))


if __name__ == "__main__":
    typer.run(main)

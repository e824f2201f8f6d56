"""Scoring a test set, from files to counts: ours against a straightforward loop.

    python -m benchmarks.inference [--tiles 16] [--size 256]

Each call opens the data, decodes them, runs the network and counts, as Table II of the paper times
its test loop.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

import dsfer
from benchmarks import plain
from benchmarks.arithmetic import best_rate, flops_of_pair
from benchmarks.demo import demo_tiles
from benchmarks.side_by_side import Report, compare
from dsfer.data.batches import BatchSource
from dsfer.data.shards import TileShards
from dsfer.evaluation import Inference, Precision, count_tiles, has_bf16


def main(
    tiles: int = 2048 if torch.cuda.is_available() else 16,
    size: int = 256,
    batch: int = 64 if torch.cuda.is_available() else 16,
    workers: int = 2,
    rounds: int = 5,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    json: Annotated[Path | None, typer.Option(help="also write the numbers to this file")] = None,
) -> None:
    """Render tiles, then time the ways to score them."""
    where = torch.device(device)
    report = Report(where, json)
    torch.manual_seed(0)
    plainly = plain.PlainDsferNet(image_size=size).to(where)
    model = dsfer.create_model("dsfer-net", image_size=size).to(where)
    model.load_state_dict(plainly.state_dict())
    model = model.to(memory_format=torch.channels_last)

    with demo_tiles(tiles, size) as data:

        def straightforward() -> np.ndarray:
            torch.backends.cudnn.allow_tf32 = False
            split = data.split("val")
            png = plain.PngTiles(data.png, split.mean, split.std)
            return plain.count_tiles(plainly, png, where, workers=workers)

        def ours(precision: Precision, size_of_batch: int) -> np.ndarray:
            split = TileShards(data.shards / "val")
            mean, std = (torch.tensor(v, device=where) for v in (split.mean, split.std))
            inference = Inference(mean, std, precision, size_of_batch)
            counts, _ = count_tiles(
                model, BatchSource(split, where, in_memory=False, workers=workers), inference
            )
            return counts.sum(0).cpu().numpy()

        ways: dict[str, Callable[[], np.ndarray]] = {
            "straightforward: PNG, float32, one pair at a time": straightforward,
            "ours, one pair at a time, float32": lambda: ours("float32", 1),
            f"ours, {batch} pairs at a time, float32": lambda: ours("float32", batch),
        }
        kinds = [torch.float32] * 3
        if has_bf16(where):
            ways[f"ours, {batch} pairs at a time, bf16"] = lambda: ours("bf16", batch)
            kinds.append(torch.bfloat16)
        check_alike({name: way() for name, way in ways.items()})
        count = len(data.split("val"))
        timings = compare(ways, items=count, rounds=rounds, warm_up=0)
    flops = flops_of_pair(model, size, training=False)
    rates = [best_rate(where, kind) for kind in kinds]
    limit = ("the best FLOP/s seen", [rate / flops for rate in rates])
    report.add(f"scoring {count} pairs of {size} px", timings, "pairs", limit)
    report.note(f"A forward pass is {flops / 2e9:.2f} GMACs a pair.")


def check_alike(counts: dict[str, np.ndarray]) -> None:
    """All ways count the same, but for pixels on the edge between the classes."""
    first = next(iter(counts.values()))
    for name, found in counts.items():
        if np.abs(found - first).sum() > 0.02 * first.sum():
            raise SystemExit(f"{name}: counts {found}, the straightforward ones are {first}")


if __name__ == "__main__":
    typer.run(main)

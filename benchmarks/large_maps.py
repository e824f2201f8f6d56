"""Maps of large rasters: peak memory, and where the time goes that is not the network's.

    python -m benchmarks.large_maps [--size 3000] [--size 3000x12000] [--size 10000] …

The network compares mean colours of squares and costs nearly nothing, so that all else
shows. Peak memory is above what the process holds with the network ready, mapped files included.
The disk needs some 12 bytes a pixel of the largest size.
"""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn
from torch.nn.functional import avg_pool2d, interpolate

import dsfer
from benchmarks.mapping import TILE, rasters
from benchmarks.memory import held_now, resident, separately
from benchmarks.side_by_side import Report
from dsfer.detector import Detector
from dsfer.evaluation import Inference
from dsfer.mapping.predict import MapOptions
from dsfer.models.output import ChangeOutput
from dsfer.weights import Metadata

OVERLAP = 1 / 8


def main(
    size: Annotated[
        list[str], typer.Option(help="side in pixels, or columns x rows; may be repeated")
    ] = ["3000", "3000x12000", "3000x48000", "10000", "30000"],  # noqa: B006
    json: Annotated[Path | None, typer.Option(help="also write the numbers to this file")] = None,
    keep: Annotated[Path | None, typer.Option(help="leave rasters and maps in this folder")] = None,
) -> None:
    """Render rasters of each size, map them and say what it took."""
    report = Report(torch.device("cpu"), json)
    for text in size:
        cols, rows = (int(text.split("x")[axis]) for axis in (0, -1))
        with tempfile.TemporaryDirectory(prefix="dsfer-benchmark-") as name:
            folder = keep or Path(name)
            summary, peak = separately(mapped, rasters(folder, cols, rows), folder / "changes")
        seconds = summary["seconds"]
        parts = ", ".join(f"{part} {value:,.0f} s" for part, value in seconds.items())
        report.note(
            f"{cols:,} x {rows:,} px: peak memory {peak:,.0f} MB above the network; "
            f"{summary['changes']:,} changes; {parts}."
        )


def mapped(pair: tuple[Path, Path], out: Path) -> tuple[dict[str, Any], float]:
    """Map a pair: its summary, and the peak memory in MB; to be called once in a process."""
    inference = Inference(torch.zeros(3), torch.full((3,), 50.0), batch_size=8)
    record = Metadata("mean colours", {}, (0,) * 3, (50,) * 3, tile_size=TILE)
    detector = Detector(MeanColours().eval(), inference, record)
    before = held_now()
    options = MapOptions(overlap=OVERLAP)
    summary = dsfer.predict_raster(*pair, detector, out, options=options)
    return summary, (resident("VmHWM") - before) / 1000


class MeanColours(nn.Module):
    """Change where the means of squares of 16 pixels differ by more than 50 in red."""

    def forward(self, t1: torch.Tensor, t2: torch.Tensor) -> ChangeOutput:
        """See `dsfer.models.output`."""
        means = avg_pool2d(t1[:, :1] - t2[:, :1], 16)
        change = interpolate(means, scale_factor=16)[:, 0].abs() - 1
        return ChangeOutput(torch.stack((torch.zeros_like(change), 4 * change), dim=1), ())


if __name__ == "__main__":
    typer.run(main)

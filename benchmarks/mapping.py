"""Change maps of whole rasters, from files to files: ours against a straightforward loop.

    python -m benchmarks.mapping [--small 1024] [--large 2048] [--width 1.0]

The straightforward one reads both rasters whole, cuts them into tiles of 256 pixels that do not
overlap, runs them one by one and writes the probability. Ours does the same with `overlap 0`, and
four times the windows with its default overlap of half; both times with the polygons, the overviews
and the picture. Peak memory is that of a process of its own, above what it holds with the network
loaded.
"""

import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import rasterio
import torch
import typer
from rasterio.transform import from_origin

import dsfer
from benchmarks.memory import held_now, resident, separately
from benchmarks.side_by_side import Report, compare
from dsfer.data.demo import render_scenes
from dsfer.data.workers import usable_cpus
from dsfer.detector import Detector
from dsfer.mapping.predict import MapOptions
from dsfer.weights import Metadata, save_weights

TILE = 256


def main(
    small: int = 1024,
    large: int = 2048,
    width: float = 1.0,
    rounds: int = 3,
    json: Annotated[Path | None, typer.Option(help="also write the numbers to this file")] = None,
) -> None:
    """Render rasters, then time the ways to map them and measure their memory."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report = Report(device, json)
    with tempfile.TemporaryDirectory(prefix="dsfer-benchmark-") as name:
        folder = Path(name)
        weights = network(folder, width)
        pairs = {size: rasters(folder, size, size) for size in (small, large)}
        peaks: dict[str, list[float]] = {}
        for size, pair in pairs.items():
            detector = dsfer.load(weights)
            ways: dict[str, Callable[[], object]] = {
                name: functools.partial(way, detector, *pair) for name, way in WAYS.items()
            }
            check_alike(pair, detector)
            timings = compare(ways, items=size**2 / 1e6, rounds=rounds, warm_up=0)
            report.add(f"mapping {size} x {size} px, width {width:g}", timings, "Mpx")
            seconds = ours(0.5, detector, *pair)["seconds"]
            total = sum(seconds.values())
            shares = ", ".join(f"{part} {100 * s / total:.0f} %" for part, s in seconds.items())
            report.note(
                f"{size} px, overlap of half, share of the seconds of each part, the first "
                f"three of which run at the same time: {shares}. Windows at a time: "
                f"{detector.inference.batch_size}."
            )
            for way in WAYS:
                peaks.setdefault(way, []).append(separately(peak_memory, way, weights, pair))
    for way, (at_small, at_large) in peaks.items():
        report.note(
            f"Peak memory above the network, {way}: {at_small:,.0f} MB at {small} px, "
            f"{at_large:,.0f} MB at {large} px."
        )


def network(folder: Path, width: float) -> Path:
    """Weights of a Dsfer-Net as initialised."""
    options: dict[str, Any] = {"width": width, "image_size": TILE}
    torch.manual_seed(0)
    path = folder / "weights.safetensors"
    record = Metadata("dsfer-net", options, (100,) * 3, (50,) * 3, tile_size=TILE)
    save_weights(dsfer.create_model("dsfer-net", **options), path, record)
    return path


def rasters(folder: Path, cols: int, rows: int) -> tuple[Path, Path]:
    """Two georeferenced rasters of rendered ground, repeated to fill them."""
    side = min(cols, rows, 1024)
    name = f"{cols}x{rows}"
    (scene,) = render_scenes(
        folder / f"scene-{name}", seed=0, count=1, size=side, workers=usable_cpus()
    )
    files = []
    for date in ("t1", "t2"):
        with rasterio.open(getattr(scene, date)) as source:
            pixels = source.read()
        path = folder / f"{date}-{name}.tif"
        with rasterio.open(
            path, "w", driver="GTiff", width=cols, height=rows, count=3, dtype="uint8",
            crs="EPSG:32633", transform=from_origin(500_000, 5_000_000, 0.5, 0.5), tiled=True,
            compress="deflate", bigtiff="if_safer",
        ) as raster:  # fmt: skip
            for top in range(0, rows, side):
                high = min(side, rows - top)
                strip = np.tile(pixels[:, :high], (1, 1, -(-cols // side)))[:, :, :cols]
                window = rasterio.windows.Window(0, top, cols, high)
                raster.write(strip, window=window)
        files.append(path)
    return files[0], files[1]


def plainly(detector: Detector, t1: Path, t2: Path) -> np.ndarray:
    """Both rasters whole, tile by tile, and the probability as GeoTIFF."""
    images = []
    for path in (t1, t2):
        with rasterio.open(path) as raster:
            images.append(raster.read().transpose(1, 2, 0))
            profile = raster.profile
    rows, cols = images[0].shape[:2]
    probability = np.zeros((rows, cols), np.float32)
    mean, std = detector.inference.mean, detector.inference.std
    for top in range(0, rows, TILE):
        for left in range(0, cols, TILE):
            inputs = []
            for image in images:
                tile = np.zeros((TILE, TILE, 3), np.uint8)
                part = image[top : top + TILE, left : left + TILE]
                tile[: part.shape[0], : part.shape[1]] = part
                scaled = (torch.from_numpy(tile).to(mean.device).float() - mean) / std
                inputs.append(scaled.permute(2, 0, 1)[None])
            with torch.inference_mode():
                logits = detector.network(*inputs).logits
            change = logits.softmax(dim=1)[0, 1].float().cpu().numpy()
            inside = probability[top : top + TILE, left : left + TILE]
            inside[:] = change[: inside.shape[0], : inside.shape[1]]
    out = t1.with_name("plain.tif")
    profile.update(count=1, dtype="float32")
    with rasterio.open(out, "w", **profile) as raster:
        raster.write(probability, 1)
    return probability


def ours(overlap: float, detector: Detector, t1: Path, t2: Path) -> dict[str, Any]:
    """What `dsfer predict` does."""
    out = t1.with_name("changes")
    shutil.rmtree(out, ignore_errors=True)
    options = MapOptions(overlap=overlap)
    return dsfer.predict_raster(t1, t2, detector, out, options=options)


WAYS: dict[str, Callable[[Detector, Path, Path], object]] = {
    "straightforward: all in memory, one tile at a time": plainly,
    "ours, no overlap": lambda *of: ours(0.0, *of),
    "ours, overlap of half": lambda *of: ours(0.5, *of),
}


def check_alike(pair: tuple[Path, Path], detector: Detector) -> None:
    """Without overlap, ours computes what the straightforward loop does."""
    expected = plainly(detector, *pair)
    ours(0.0, detector, *pair)
    with rasterio.open(pair[0].with_name("changes") / "probability.tif") as raster:
        found = raster.read(1)
    whole = expected.shape[0] // TILE * TILE
    apart = float(np.abs(found - expected)[:whole, :whole].max())
    if apart > (0.05 if detector.inference.precision == "bf16" else 1e-3):
        raise SystemExit(f"probabilities differ by {apart:.2g} from the straightforward ones")


def peak_memory(way: str, weights: Path, pair: tuple[Path, Path]) -> float:
    """Peak memory in MB of one way, above what a process holds with the network loaded."""
    detector = dsfer.load(weights)
    before = held_now()
    WAYS[way](detector, *pair)
    return (resident("VmHWM") - before) / 1000


if __name__ == "__main__":
    typer.run(main)

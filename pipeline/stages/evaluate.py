"""Evaluate the trained network on the test split, in both protocols."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

import dsfer
from dsfer import baseline
from dsfer.data.batches import BatchSource
from dsfer.data.shards import TileShards
from dsfer.data.transforms import Input
from dsfer.devices import choose_device
from dsfer.errors import LeakageError
from dsfer.evaluation import Inference, count_tiles, stitched_scenes
from dsfer.figures import error_map, panel_strip
from dsfer.files import atomic_folder, atomic_path, write_json
from dsfer.memory import in_batches_that_fit
from dsfer.metrics import (
    change_metrics,
    confusion_counts,
    counts_table,
    f1_interval,
    finite,
    metric_columns,
    predicted_change,
    scene_table,
    total_counts,
)
from dsfer.models import count_parameters
from dsfer.weights import Metadata, read_metadata
from pipeline.model import build_inference, describe_device, open_shards
from pipeline.params import Settings, current_settings
from pipeline.stages import run

GALLERY = 12
"""Tiles in each of the two galleries: the worst, and an even sample."""

MAPS = 32
"""Scenes of which an error map is written: those with the most wrong pixels."""


def main() -> None:
    """Run the stage."""
    settings = current_settings()
    test, train = (open_shards(settings, split) for split in ("test", "train"))
    weights = settings.model_folder / "training" / "weights.safetensors"
    metadata = read_metadata(weights, model=settings.params.model)
    require_same_split(metadata, test, weights)
    device = choose_device(settings.params.device)
    model = dsfer.create_model(settings.params.model, weights=weights)
    model = model.to(device).to(memory_format=torch.channels_last)
    scale = Input(metadata.mean, metadata.std, metadata.per_image)
    inference = build_inference(settings, scale, device)
    in_batches_that_fit(
        lambda batch_size: score(
            settings, model, metadata, test, train, replace(inference, batch_size=batch_size)
        ),
        inference.batch_size,
    )


def score(
    settings: Settings,
    model: nn.Module,
    metadata: Metadata,
    test: TileShards,
    train: TileShards,
    inference: Inference,
) -> None:
    """Write all that the stage writes.

    Args:
        settings: all parameters.
        model: the network, on the device of `inference`.
        metadata: the record of its weights.
        test: the split that it is scored on.
        train: the split that the baseline takes its threshold from.
        inference: how the network is run.
    """
    with atomic_folder(settings.model_folder / "evaluation") as out:
        train_source, test_source = (
            BatchSource(split, inference.device, in_memory=False, workers=settings.params.workers)
            for split in (train, test)  # each tile is read once or twice
        )
        tiles, rate = tile_counts(model, test, test_source, inference)
        stitched = stitched_counts(model, test, inference, settings, out)
        threshold = baseline.fit_threshold(train_source.all(inference.batch_size))
        differences = baseline.count_tiles(test_source.all(inference.batch_size), threshold)
        write_galleries(model, test, inference, tiles, out)
        write_table(tiles.assign(F1=metric_columns(tiles)["F1"]), out / "tiles.csv")
        write_table(scene_table(tiles), out / "scenes.csv")
        write_table(scene_table(stitched), out / "scenes_stitched.csv")
        seed, parameters = metadata.about["seed"], count_parameters(model)
        whole = 0 < len(stitched) == tiles["scene"].nunique()
        in_parts = "the test split does not hold its scenes as a whole"
        write_json(
            out / "metrics.json",
            {
                "dataset": settings.params.dataset,
                "model": settings.params.model,
                "variant": metadata.about["variant"],
                "encoder": metadata.about["encoder"],
                "recipe": metadata.about["recipe"],
                "seed": seed,
                "split_hash": test.split_hash,
                "date": datetime.now(UTC).date().isoformat(),
                "device": describe_device(inference.device),
                "trained_on": metadata.about["trained_on"],
                "iterations": metadata.about["iterations"],
                "best_step": int(metadata.about["best"]["step"]),
                "parameters": parameters.live,
                "parameters_counted": parameters.counted,
                "pairs_per_second": round(rate, 2),
                "tiles": summary(tiles, seed),
                "stitched": summary(stitched, seed) if whole else None,
                "stitched_note": "" if whole else in_parts,
                "baseline": finite(change_metrics(total_counts(differences)))
                | {"threshold": threshold},
            },
        )


def require_same_split(metadata: Metadata, test: TileShards, weights: Path) -> None:
    """Refuse weights that were trained on another split: it may hold these test tiles.

    Raises:
        LeakageError: the split hashes differ.
    """
    trained_on = metadata.about.get("split_hash")
    if trained_on != test.split_hash:
        raise LeakageError(
            f"trained on split {trained_on}, and the test tiles are of split {test.split_hash}",
            where=weights,
            mend="run the train stage on this split, as dvc repro does",
        )


def tile_counts(
    model: nn.Module, test: TileShards, source: BatchSource, inference: Inference
) -> tuple[pd.DataFrame, float]:
    """Counts of every test tile, and pairs per second."""
    counts, rate = count_tiles(model, source, inference)
    return counts_table(test.ids, test.manifest["scene"].tolist(), counts), rate


def stitched_counts(
    model: nn.Module, test: TileShards, inference: Inference, settings: Settings, out: Path
) -> pd.DataFrame:
    """Counts of every whole test scene; error maps of the worst are written to `maps/`."""
    overlap = int(settings.params.overlap * test.tile_size)
    scenes, rows, worst = [], [], []
    for scene, _, label, probability in stitched_scenes(model, test, inference, overlap=overlap):
        change = probability > 0.5
        counts = confusion_counts(torch.from_numpy(change)[None], torch.from_numpy(label)[None])
        scenes.append(scene)
        rows.append(counts)
        wrong = int(counts[0, 1] + counts[0, 2])
        worst.append((wrong, scene, error_map(change.astype(np.uint8), label)))
        worst = sorted(worst, key=lambda entry: -entry[0])[:MAPS]
    (out / "maps").mkdir(parents=True, exist_ok=True)  # DVC expects it, also empty
    for _, scene, colours in worst:
        write_picture(Image.fromarray(colours), out / "maps" / f"{scene}.png")
    stacked = torch.cat(rows) if rows else torch.empty((0, 4), dtype=torch.int64)
    return counts_table(scenes, scenes, stacked)


def write_galleries(
    model: nn.Module, test: TileShards, inference: Inference, tiles: pd.DataFrame, out: Path
) -> None:
    """Write panels of the worst tiles (most wrong pixels first) and of an even sample."""
    wrong = (tiles["fp"] + tiles["fn"]).to_numpy()
    count = min(GALLERY, len(tiles))
    galleries = {
        "worst": np.argsort(-wrong, kind="stable")[:count],
        "sample": np.linspace(0, len(tiles) - 1, count).round().astype(int),
    }
    model.eval()
    for name, chosen in galleries.items():
        for rank, index in enumerate(chosen.tolist()):
            pair, label = test[index]
            with torch.inference_mode(), inference.autocast():
                batch = torch.from_numpy(pair)[None].to(inference.device)
                output = model(*inference.inputs(batch))
            change = predicted_change(output.logits)[0].cpu().numpy().astype(np.uint8)
            strip = panel_strip(pair[0], pair[1], label, change)
            write_picture(strip, out / "gallery" / name / f"{rank:02d}_{test.ids[index]}.png")


def summary(table: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Metrics of a split with the bootstrap interval of F1 over its scenes, and n images."""
    low, high = f1_interval(scene_table(table), seed=seed)
    return finite(change_metrics(table) | {"F1_low": low, "F1_high": high}) | {"n": len(table)}


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, atomically."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.4f")


def write_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG, atomically."""
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")


if __name__ == "__main__":
    run(main)

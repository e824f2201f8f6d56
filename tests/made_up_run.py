"""The outputs of a run that never happened: every file that the report reads."""

import json
import math

import numpy as np
import pandas as pd
import torch

from dsfer.figures import panel_strip
from dsfer.metrics import (
    COUNTS,
    change_metrics,
    confusion_counts,
    counts_table,
    f1_interval,
    metric_columns,
    scene_table,
)

SPLIT_HASH = "0123456789ab"


def random_tile(rng, index, size=32):
    """Noise with a label and a prediction that agree on most pixels."""
    t1, t2 = rng.integers(0, 256, (2, size, size, 3)).astype(np.uint8)
    label = np.zeros((size, size), np.uint8)
    label[4 : 10 + index, 6:20] = 1
    label[:, -3:] = 255
    prediction = (np.roll(label, index % 4, axis=1) == 1).astype(np.uint8)
    return t1, t2, label, prediction


def write_run(
    folder,
    *,
    dataset="levir-cd",
    draw=random_tile,
    scenes=3,
    stitched=True,
    as_published=True,
    **changes,
):
    """Write everything below `folder`; returns the metrics as stored.

    Args:
        draw: draw(rng, index) -> t1, t2, label, prediction of a tile.
        changes: keys of metrics.json to set otherwise.
    """
    rng = np.random.default_rng(7)
    evaluation = folder / "models/dsfer-net/evaluation"
    names = [f"scene{i // 4}_{i // 2 % 2:05d}_{i % 2:05d}" for i in range(4 * scenes)]
    drawn = [draw(rng, i) for i in range(len(names))]
    counts = confusion_counts(
        torch.from_numpy(np.stack([tile[3] for tile in drawn])),
        torch.from_numpy(np.stack([tile[2] for tile in drawn])),
    )
    tiles = counts_table(names, [name.split("_")[0] for name in names], counts)
    by_scene = scene_table(tiles)
    evaluation.mkdir(parents=True)
    by_scene.to_csv(evaluation / "scenes.csv", index=False)
    scored = pd.concat([tiles, metric_columns(tiles)["F1"]], axis=1)
    scored.to_csv(evaluation / "tiles.csv", index=False)
    worst = np.argsort(-(tiles["fp"] + tiles["fn"]).to_numpy(), kind="stable")[:3]
    for kind, chosen in (("worst", worst), ("sample", range(0, len(names), 3))):
        (evaluation / "gallery" / kind).mkdir(parents=True)
        for place, index in enumerate(chosen):
            picture = evaluation / "gallery" / kind / f"{place:02d}_{names[index]}.png"
            panel_strip(*drawn[index]).save(picture)
    write_figures(folder / "models/dsfer-net/figures", drawn)
    low, high = f1_interval(by_scene[COUNTS], seed=1)
    own = change_metrics(tiles) | {"F1_low": low, "F1_high": high}
    metrics = {
        "dataset": dataset,
        "model": "dsfer-net",
        "variant": "base+cf+dsfr",
        "recipe": "modern",
        "seed": 3,
        "split_hash": SPLIT_HASH,
        "device": "NVIDIA H200",
        "iterations": 12345,
        "best_step": 11500,
        "parameters": 34085990,
        "parameters_counted": 34085990,
        "pairs_per_second": 321.4,
        "tiles": own | {"n": len(names)},
        "stitched": own | {"F1": own["F1"] + 0.37, "n": scenes} if stitched else None,
        "stitched_note": "" if stitched else "no scene lies wholly in the test split",
        "baseline": {"P": 20.5, "R": 60.25, "F1": 30.59, "OA": 71.5, "IoU": 18.06, "threshold": 41},
    } | changes
    write(evaluation / "metrics.json", metrics)
    write_training(folder / "models/dsfer-net/training", rng)
    write(
        folder / "split/split.json",
        {
            "hash": SPLIT_HASH,
            "policy": "published",
            "seed": None,
            "ratio": None,
            "counts": {"train": 7120, "val": 1024, "test": len(names)},
            "scenes": {"train": 445, "val": 64, "test": scenes},
        },
    )
    write_validation(folder / "validation/validation.json", as_published)
    return metrics


def write_figures(folder, drawn):
    names = ["comparison", "evidence-1"]
    for name in names:
        folder.mkdir(parents=True, exist_ok=True)
        panel_strip(*drawn[0]).save(folder / f"{name}.png")
    record = {
        "tiles": [{"tile": "scene0_00000_00000", "why": "most errors"}],
        "methods": {"bit": "ab" * 32, "dsfer-net": "cd" * 32},
        "figures": [
            {"name": name, "title": f"Title of {name}", "caption": f"Caption of {name}"}
            for name in names
        ],
    }
    write(folder / "figures.json", record)


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_training(folder, rng):
    steps = np.arange(20, 4001, 20)
    fall = np.exp(-steps / 900)
    validated = steps % 400 == 0
    f1 = 78 * (1 - np.exp(-steps / 700)) + rng.normal(0, 1.0, len(steps))
    history = pd.DataFrame({"step": steps})
    history["train/change"] = 0.12 + 0.6 * fall + rng.normal(0, 0.02, len(steps)).clip(-0.1)
    history["train/deep"] = 0.62 + 0.3 * fall + rng.normal(0, 0.01, len(steps))
    history["train/loss"] = history["train/change"] + 0.1 * history["train/deep"]
    history["lr"] = 1e-4
    for name, shift in (("val/F1", 0), ("val/P", 3), ("val/R", -3), ("val/IoU", -11)):
        history[name] = np.where(validated, f1 + shift, math.nan)
    history["val/loss"] = np.where(validated, history["train/loss"] + 0.05, math.nan)
    folder.mkdir(parents=True)
    history.to_csv(folder / "history.csv", index=False)
    write(
        folder / "settings.json",
        {
            "values": {
                "dataset": "levir-cd",
                "lambda": 0.1,
                "lr": 1e-5,
                "hopfield_dim": 512,
                "hopfield_beta": None,
                "class_weights": [1.04809706, 21.79129276],
                "ema": False,
                "split": "published",
            },
            "sources": {"lambda": "recipe modern", "lr": "params.yaml", "split": "catalog"},
        },
    )


def write_validation(path, as_published):
    def finding(statement, status, violations=0):
        return {"key": "k", "statement": statement, "status": status, "violations": violations}

    def leak(audit, earlier, later, tiles, severity):
        row = {"audit": audit, "earlier": earlier, "later": later}
        return row | {"tiles": tiles, "of": 2048, "severity": severity}

    result = {
        "schema": 1,
        "as_published": as_published,
        "status": "warn",
        "findings": {
            "tiles": [
                finding("Every tile has a name of its own.", "pass"),
                finding("No tile touches one of another split.", "warn", 17),
            ],
            "scenes": [finding("Every scene has a name of its own.", "pass")],
            "splits": [finding("No split is empty.", "pass")],
        },
        "leakage": [
            leak("identical", "train", "test", 0, "fail"),
            leak("adjacent", "train", "test", 17, "warn"),
        ],
    }
    write(path, result)

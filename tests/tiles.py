"""Tiny data for tests: splits in memory and on disk, with changes a small network can learn."""

from pathlib import Path

import numpy as np
import pandas as pd


def tiny_pairs(count: int, side: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Grey noise pairs (n, 2, s, s, 3) with a bright square that appears at date 2, and labels."""
    generator = np.random.default_rng(seed)
    pairs = generator.integers(60, 120, (count, 2, side, side, 3), dtype=np.uint8)
    labels = np.zeros((count, side, side), dtype=np.uint8)
    for i in range(count):
        half = side // 2
        row, col = generator.integers(0, half, 2)
        pairs[i, 1, row : row + half, col : col + half] = generator.integers(190, 255, 3)
        labels[i, row : row + half, col : col + half] = 1
    return pairs, labels


class MemoryTiles:
    """A split in memory with what training and evaluation ask of `TileShards`."""

    def __init__(self, count: int, side: int, split: str, seed: int = 0):
        self.pairs, self.labels = tiny_pairs(count, side, seed)
        self.tile_size, self.split, self.split_hash = side, split, "0123456789ab"
        self.ids = tuple(f"s{i // 4}_{0:05d}_{side * (i % 4):05d}" for i in range(count))
        self.mean, self.std = (100.0, 100.0, 100.0), (50.0, 50.0, 50.0)
        self.class_frequency = (0.75, 0.25)
        self.folder = Path("memory")
        self.manifest = pd.DataFrame(
            {
                "id": self.ids,
                "scene": [f"s{i // 4}" for i in range(count)],
                "row": 0,
                "col": [side * (i % 4) for i in range(count)],
                "size": side,
                "pad_rows": 0,
                "pad_cols": 0,
                "scene_rows": side,
                "scene_cols": 4 * side,
            }
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.pairs[index], self.labels[index]

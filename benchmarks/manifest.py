"""What a manifest takes: memory of the process that writes or reads it, bytes on the disk.

python -m benchmarks.manifest      made-up georeferenced tiles; sizes, so that load does not matter
"""

import gc
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import rasterio
from rich.console import Console
from rich.table import Table

from dsfer.data.manifest import COLUMNS, read_manifest, write_manifest

TILES = 100_000


def main() -> None:
    """Measure rows as the crop collects them, the table of them, the file, and the file read."""
    measured: dict[str, float] = {}
    start = resident()
    rows = [made_up_row(i) for i in range(TILES)]
    measured["rows collected by the crop, memory"] = resident() - start
    table = pd.DataFrame(rows)[list(COLUMNS)]
    measured["with the table made of them, memory"] = resident() - start
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "manifest.parquet"
        write_manifest(file, table)
        measured["manifest.parquet, on the disk"] = file.stat().st_size
        measured["ids in index.json, on the disk"] = len(json.dumps(list(table["id"]), indent=2))
        del rows, table
        gc.collect()
        start = resident()
        table = read_manifest(file)
        measured["manifest.parquet when read, memory"] = resident() - start
    shown = Table(f"{len(table):,} tiles", "bytes per tile")
    for name, size in measured.items():
        shown.add_row(name, f"{size / TILES:,.0f}")
    Console().print(shown)


def resident() -> int:
    """Bytes of memory that this process holds."""
    return psutil.Process().memory_info().rss


def made_up_row(i: int) -> dict[str, Any]:
    """A row of a tile of 256 pixels, as it comes back from another process: nothing is shared."""
    scene, place = f"region-{i // 3600:03d}", f"{i:05d}"
    hashes = [hashlib.sha256(f"{part}{i}".encode()).hexdigest() for part in range(5)]
    return {
        "id": f"{scene}_{place}_{place}",
        "scene": scene,
        "published_split": None,
        **dict.fromkeys(("row", "col"), i),
        "size": 256,
        **dict.fromkeys(("pad_rows", "pad_cols"), 0),
        **dict.fromkeys(("scene_rows", "scene_cols"), 15_360),
        "crs": rasterio.CRS.from_epsg(32633).to_wkt(),
        "transform": [0.5, 0.0, float(i), 0.0, -0.5, float(i)],
        "shard": f"tiles-{i // 512:06d}.tar",
        **dict(zip(("t1_sha256", "t2_sha256", "label_sha256"), hashes, strict=False)),
        "valid_pixels": 65_536,
        "changed_pixels": i % 500,
        "changed_fraction": (i % 500) / 65_536,
        "label_values": [0, 255],
        **{f"t{date}_sum": [i + 10**6, i + 10**6, i + 10**6] for date in (1, 2)},
        **{f"t{date}_sum_of_squares": [i + 10**9, i + 10**9, i + 10**9] for date in (1, 2)},
        **{f"t{date}_std": i / (date + 6) for date in (1, 2)},
        **{f"t{date}_phash": hashes[date + 2][:16] for date in (1, 2)},
    }


if __name__ == "__main__":
    main()

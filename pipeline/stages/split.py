"""Stage split: each tile is assigned to train, val or test, and the split gets its hash."""

import logging

from dsfer.data.manifest import read_manifest
from dsfer.data.splits import write_split
from pipeline.params import current_settings
from pipeline.stages import run

_log = logging.getLogger(__name__)


def main() -> None:
    """Split the tiles of the chosen data set by the chosen policy."""
    settings = current_settings()
    data = settings.data
    summary = write_split(
        settings.folder / "split",
        read_manifest(settings.folder / "tiles" / "manifest.parquet"),
        data.policy.method,
        policy=data.split,
        ratio=data.split_ratio,
        seed=data.split_seed,
    )
    _log.info("split %s: tiles %s, scenes %s", *(summary[k] for k in ("hash", "counts", "scenes")))


if __name__ == "__main__":
    run(main)

"""Stage shard: the tiles of each split become WebDataset tars with a verified index."""

from functools import partial

from dsfer.data.manifest import SPLITS, read_manifest
from dsfer.data.shards import Statistics, data_statistics, write_shards
from dsfer.data.workers import Spread
from pipeline.cluster import spread_out
from pipeline.params import DataSettings, Settings, current_settings
from pipeline.results import read_split
from pipeline.stages import run


def main() -> None:
    """Write the shards of every split of the chosen data set.

    Their index says what training needs to know of the pixels: what is published of them where
    something is, else what the training split shows.
    """
    settings = current_settings()
    spread_out(settings.params.cluster, "shard", partial(write, settings))


def write(settings: Settings, spread: Spread) -> None:
    """Run the stage on the machines that `spread` stands for."""
    manifest = read_manifest(settings.folder / "split" / "manifest.parquet")
    split_hash = read_split(settings.folder).hash
    measured = data_statistics(manifest[manifest["split"] == "train"])
    statistics = published_statistics(settings.data, measured)
    for split in SPLITS:
        rows = manifest[manifest["split"] == split]
        if split == "train":  # nodata alone teaches nothing
            rows = rows[rows["valid_pixels"] > 0]
        write_shards(
            settings.folder / "tiles",
            rows,
            settings.folder / "shards" / split,
            split=split,
            split_hash=split_hash,
            statistics=statistics,
            spread=spread,
            store=settings.shard_store,
        )


def published_statistics(data: DataSettings, measured: Statistics) -> Statistics:
    """Replace what was measured by what is published, where that is of the same pixels."""
    if not data.as_published:
        return measured
    entry = data.entry
    mean, std, class_frequency = measured
    if entry.mean is not None and entry.std is not None:
        mean, std = entry.mean, entry.std
    if entry.class_weights is not None:
        unchanged, changed = entry.class_weights
        class_frequency = (1 / unchanged, 1 / changed)
    return Statistics(mean, std, class_frequency)


if __name__ == "__main__":
    run(main)

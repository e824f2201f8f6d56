"""Stage shard: the tiles of each split become WebDataset tars with a verified index."""

from dsfer.data.manifest import SPLITS, read_manifest
from dsfer.data.shards import data_statistics, write_shards
from dsfer.files import read_json
from pipeline.params import current_settings
from pipeline.stages import run


def main() -> None:
    """Write the shards of every split of the chosen data set.

    Published means and standard deviations are used where the catalog has them.
    """
    settings = current_settings()
    entry = settings.data.entry
    manifest = read_manifest(settings.folder / "split" / "manifest.parquet")
    split_hash = read_json(settings.folder / "split" / "split.json")["hash"]
    statistics = data_statistics(manifest[manifest["split"] == "train"])
    if entry.mean is not None and entry.std is not None:
        statistics = statistics._replace(mean=entry.mean, std=entry.std)
    for split in SPLITS:
        write_shards(
            settings.folder / "tiles",
            manifest[manifest["split"] == split],
            settings.folder / "shards" / split,
            split=split,
            split_hash=split_hash,
            statistics=statistics,
        )


if __name__ == "__main__":
    run(main)

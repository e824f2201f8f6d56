"""Stage `validate`: stop here if the data set is not what it declares to be."""

from dsfer.data.manifest import read_manifest, read_table
from pipeline.params import current_settings
from pipeline.results import read_split
from pipeline.stages import run
from pipeline.validation import require_valid, validate, write_result


def main() -> None:
    """Write `validation.json` and `validation.html`, then fail on a violated expectation."""
    settings = current_settings()
    manifest = settings.folder / "split" / "manifest.parquet"
    result = validate(
        read_manifest(manifest),
        read_table(settings.folder / "tiles" / "scenes.parquet"),
        read_split(settings.folder).model_dump(),
        settings.data,
        settings.params.dataset,
    )
    page = write_result(settings.folder / "validation", result)
    require_valid(result, manifest, page)


if __name__ == "__main__":
    run(main)

"""Stage `validate`: stop here if the data set is not what it declares to be."""

from pathlib import Path

import pandas as pd

from dsfer.data.manifest import read_manifest
from dsfer.errors import DataError
from dsfer.files import read_json
from pipeline.params import current_settings
from pipeline.stages import run
from pipeline.validation import require_valid, validate, write_result


def main() -> None:
    """Write `validation.json` and `validation.html`, then fail on a violated expectation."""
    settings = current_settings()
    manifest = settings.folder / "split" / "manifest.parquet"
    result = validate(
        read_manifest(manifest),
        _read_scenes(settings.folder / "tiles" / "scenes.parquet"),
        read_json(settings.folder / "split" / "split.json"),
        settings.data,
        settings.params.dataset,
    )
    page = write_result(settings.folder / "validation", result)
    require_valid(result, manifest, page)


def _read_scenes(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"not a readable table of scenes ({error})", where=path, mend="run the crop stage again"
        ) from error


if __name__ == "__main__":
    run(main)

"""Stage `download`: bring the imagery in and list its scenes in `raw/scenes.json`."""

import logging
from collections.abc import Sequence
from pathlib import Path

from dsfer.data.demo import render_scenes
from dsfer.data.labels import label_rule
from dsfer.data.layouts import LAYOUTS
from dsfer.data.polygons import rasterise_labels
from dsfer.data.scenes import Scene, read_scenes, write_scenes
from dsfer.errors import DataError
from dsfer.files import atomic_folder
from dsfer.paths import AnyPath, location, reaching
from pipeline.archives import unpack
from pipeline.catalog import Demo, Release
from pipeline.download import downloads_folder, fetch
from pipeline.params import DataSettings, current_settings
from pipeline.stages import run

log = logging.getLogger(__name__)


def acquire(data: DataSettings, raw: Path, downloads: Path) -> list[Scene]:
    """Fill `raw` with a data set's imagery and the list of its scenes.

    Published archives are fetched and unpacked, the demo is rendered, and a user's own imagery is
    only listed where it lies (label polygons are drawn to `raw/labels`).

    Args:
        data: what to acquire.
        raw: folder to build anew; it is replaced as a whole, or left as it was on an error.
        downloads: where the archives are kept.

    Raises:
        DownloadError: an archive cannot be had or unpacked.
        DataError: the files do not form scenes, or the split policy wants a published split that
            they do not have; or some of a user's own lie outside `source`.
    """
    # What can be refused without writing is refused before a folder is made.
    own = data.entry.demo is None and not data.release.archives
    listed = list_own(data) if own else []
    archives = [fetch(archive, downloads) for archive in data.release.archives]
    with atomic_folder(raw) as folder:
        if data.entry.demo is not None:
            scenes = render(data.entry.demo, folder)
        elif archives:
            scenes = unpack_release(data.release, archives, folder)
        else:
            changed = label_rule(data.label_rule).changed
            scenes = rasterise_labels(listed, folder / "labels", changed)
        _check_published_split(data, scenes)
        write_scenes(folder / "scenes.json", scenes)
    scenes = read_scenes(raw / "scenes.json")  # where they lie now
    log.info("%d scenes listed in %s", len(scenes), raw / "scenes.json")
    return scenes


def render(demo: Demo, raw: Path) -> list[Scene]:
    """Render the demo's scenes into `raw`."""
    return render_scenes(raw, seed=demo.seed, count=demo.count, size=demo.size)


def unpack_release(release: Release, archives: Sequence[Path], raw: Path) -> list[Scene]:
    """Unpack the fetched archives of a release into `raw`, and find its scenes."""
    for archive, path in zip(release.archives, archives, strict=True):
        log.info("unpacking %s", path)
        unpack(path, archive.kind, raw / archive.into)
    return list_scenes(release, raw)


def list_own(data: DataSettings) -> list[Scene]:
    """Find the scenes of a user's own imagery, where it lies."""
    source = location(data.source)
    with reaching(source):
        scenes = list_scenes(data.release, source)
    _check_watched(scenes, source)
    _check_published_split(data, scenes)
    return scenes


def list_scenes(release: Release, source: AnyPath) -> list[Scene]:
    """Find the scenes of a release below `source`."""
    if release.layout is None:
        raise DataError("has no layout to find scenes by", where="pipeline/catalog.yaml")
    return LAYOUTS[release.layout](source)


def _check_watched(scenes: list[Scene], source: AnyPath) -> None:
    """Refuse files whose changes DVC would not notice.

    It watches `source`, and follows links to files there but not links to folders.
    """
    watched = source.resolve()
    for scene in scenes:
        for file in (scene.t1, scene.t2, scene.label):
            folder = file.parent.resolve()
            if watched not in (folder, *folder.parents):
                raise DataError(
                    f"lies outside {source}, so that nobody would notice when it changes",
                    where=file,
                    mend="move it there, or link it there (the file itself, not its folder)",
                )


def _check_published_split(data: DataSettings, scenes: list[Scene]) -> None:
    """Stop before the long stages if the policy needs a split that nobody published."""
    needs_split = data.policy.method == "published" and data.release.fragments is None
    if needs_split and any(scene.split is None for scene in scenes):
        raise DataError(
            f"the split policy '{data.split}' needs imagery that comes with a split, and "
            f"'{next(scene.id for scene in scenes if scene.split is None)}' has none",
            where=data.source,
            mend="set split to scenes, random or spatial; or give the split by folders train, "
            "val, test, by list/*.txt, or in the list's column split",
        )


def main() -> None:
    """Run the stage for the data set of `params.yaml`."""
    settings = current_settings()
    acquire(settings.data, settings.folder / "raw", downloads_folder(settings.params.dataset))


if __name__ == "__main__":
    run(main)

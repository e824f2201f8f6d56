"""Find the two images and the label of a scene by their common file stem, never by position."""

import re
from collections.abc import Iterable

from dsfer.data.scenes import Scene
from dsfer.errors import DataError
from dsfer.paths import AnyPath, listed

SIDE_FILES = frozenset(
    {".aux", ".hdr", ".j2w", ".jgw", ".msk", ".ovr", ".pgw", ".prj", ".rrd", ".tfw", ".tifw"}
    | {".wld", ".xml"}
    | {".csv", ".db", ".html", ".ini", ".json", ".md", ".txt", ".yaml", ".yml"}
)
"""Suffixes of files that lie beside imagery without being imagery: world files, masks, notes."""

LONGEST_ID = 100
"""Characters in a scene id; with row and column appended it still is a member name in a tar."""


def images_by_stem(folder: AnyPath) -> dict[str, AnyPath]:
    """Map the stem of each image in `folder` to its path, in the order of the stems.

    Hidden files, folders and the suffixes of `SIDE_FILES` are no images.

    Raises:
        DataError: the folder is missing or has no image, two files share a stem, or a name is not
            valid UTF-8.
    """
    if not folder.is_dir():
        raise DataError("no such folder", where=folder, mend="check the layout of the data set")
    found: dict[str, AnyPath] = {}
    for path in listed(folder):
        if path.name.startswith(".") or path.suffix.lower() in SIDE_FILES or path.is_dir():
            continue
        _require_utf8(path)
        if path.stem in found:
            raise DataError(
                f"'{found[path.stem].name}' and '{path.name}' have the same stem, so their "
                "partners are ambiguous",
                where=folder,
                mend="keep one of the two files",
            )
        found[path.stem] = path
    if not found:
        raise DataError("holds no image", where=folder, mend="put the imagery in this folder")
    return found


def _require_utf8(path: AnyPath) -> None:
    """Refuse names that no later table, tar or page could hold."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"the file name {path.name!r} is not valid UTF-8",
            where=ascii(str(path.parent)),
            mend="rename the file",
        ) from error


def pair_by_stem(
    t1: AnyPath, t2: AnyPath, label: AnyPath
) -> dict[str, tuple[AnyPath, AnyPath, AnyPath]]:
    """Pair the images of three folders.

    Args:
        t1: folder of the first date.
        t2: folder of the second date.
        label: folder of the labels.

    Returns:
        stem to (image of date 1, image of date 2, label), in the order of the stems.

    Raises:
        DataError: a folder is unusable, or an image lacks its partner or its label.
    """
    folders = {folder: images_by_stem(folder) for folder in (t1, t2, label)}
    stems = sorted(set().union(*folders.values()))
    for folder, images in folders.items():
        missing = [stem for stem in stems if stem not in images]
        if missing:
            other = next(each for each in folders.values() if missing[0] in each)[missing[0]]
            raise DataError(
                f"lacks {_few(missing)}, present as {other}",
                where=folder,
                mend="each scene needs one file of the same stem in all three folders",
            )
    return {stem: (folders[t1][stem], folders[t2][stem], folders[label][stem]) for stem in stems}


def _few(names: list[str]) -> str:
    """The first names of a long list, with their number."""
    shown = ", ".join(f"'{name}'" for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def scene_id(name: str, where: str | AnyPath) -> str:
    """Turn a name into a scene id of letters, digits, `_` and `-`.

    Args:
        name: any text.
        where: what it names, for the message.

    Raises:
        DataError: nothing usable is left, or the id is longer than `LONGEST_ID`.
    """
    clean = re.sub("[^A-Za-z0-9_-]+", "_", name)
    if not clean.strip("_"):
        raise DataError(
            f"the name '{name}' has no letter or digit to make an id of",
            where=where,
            mend="use names with letters a to z or digits",
        )
    if len(clean) > LONGEST_ID:
        raise DataError(
            f"the name '{name[:40]}...' has {len(name)} characters, more than {LONGEST_ID}",
            where=where,
            mend="use a shorter name",
        )
    return clean


def without_collisions(scenes: Iterable[Scene], where: str | AnyPath) -> list[Scene]:
    """Return the scenes as a list after checking that their ids differ, letter case aside.

    Raises:
        DataError: two scenes share an id.
    """
    seen: dict[str, Scene] = {}
    for scene in scenes:
        first = seen.setdefault(scene.id.lower(), scene)
        if first is not scene:
            raise DataError(
                f"{first.t1.name} and {scene.t1.name} both become the scene '{scene.id}'",
                where=where,
                mend="rename one of them; ids keep only letters, digits, _ and -",
            )
    return list(seen.values())

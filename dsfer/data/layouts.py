"""Layouts: adapters that find the scenes of a data set on disk, one function for each layout.

An adapter takes the folder that holds the imagery and returns its scenes. Adding a
data set whose files lie as in one of these needs no code; a new layout is one more function here.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from dsfer.data.manifest import SPLITS
from dsfer.data.pairs import images_by_stem, pair_by_stem, scene_id, without_collisions
from dsfer.data.scenes import Scene
from dsfer.errors import DataError
from dsfer.paths import AnyPath, listed

LABEL_FOLDERS = ("label", "OUT")

PAIRS = "pairs.csv"
"""Name of the list in a folder of `rasters`."""


def flat(source: AnyPath) -> list[Scene]:
    """`{A,B,label}`, with `list/{train,val,test}.txt` where a split is published.

    A list names one image a line, with or without suffix. Where there are lists, images on none
    of them are left out.

    Raises:
        DataError: an image lacks its partner or label, or a list is wrong.
    """
    triples = pair_by_stem(source / "A", source / "B", _label_folder(source))
    lists = [source / "list" / f"{split}.txt" for split in SPLITS]
    chosen: dict[str, str | None] = dict.fromkeys(triples)
    if any(file.exists() for file in lists):
        chosen = _read_lists([file for file in lists if file.exists()], set(triples))
    return without_collisions(
        (
            Scene(scene_id(stem, triples[stem][0]), *triples[stem], split)
            for stem, split in chosen.items()
        ),
        source,
    )


def _read_lists(files: list[AnyPath], stems: set[str]) -> dict[str, str | None]:
    """Map each listed stem to the split whose list names it."""
    chosen: dict[str, str | None] = {}
    for file in files:
        for number, line in enumerate(_text(file).splitlines(), start=1):
            name = line.strip()
            if not name:
                continue
            stem = name if name in stems else Path(name).stem
            if stem not in stems:
                raise DataError(
                    f"line {number} names '{name}', which is no scene of this folder",
                    where=file,
                    mend="remove the line or add the files",
                )
            if stem in chosen:
                raise DataError(
                    f"line {number} names '{name}', already listed for {chosen[stem]}",
                    where=file,
                    mend="list each image once",
                )
            chosen[stem] = file.stem
    if not chosen:
        raise DataError("the lists name no image", where=files[0].parent, mend="fill them")
    return chosen


def _text(file: AnyPath) -> str:
    """Read a text file that a person wrote, with or without byte order mark."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"not a readable UTF-8 text file ({error})", where=file, mend="save it as UTF-8"
        ) from error


def split_folders(source: AnyPath) -> list[Scene]:
    """`{train,val,test}/{A,B,label}` or `{train,val,test}/{A,B,OUT}`.

    Stems that recur in several splits, as in CDD, get the split's name in front.

    Raises:
        DataError: no split folder is there, or an image lacks its partner or label.
    """
    found = {split: _unwrap(source / split) for split in SPLITS if (source / split).is_dir()}
    if not found:
        raise DataError(
            f"has none of the folders {', '.join(SPLITS)}",
            where=source,
            mend="name the folders of the splits like that",
        )
    triples = {
        split: pair_by_stem(folder / "A", folder / "B", _label_folder(folder))
        for split, folder in found.items()
    }
    stems = [stem for split in triples.values() for stem in split]
    recur = len(set(stems)) < len(stems)
    return without_collisions(
        (
            Scene(scene_id(f"{split}-{stem}" if recur else stem, triple[0]), *triple, split)
            for split, pairs in triples.items()
            for stem, triple in pairs.items()
        ),
        source,
    )


def folder(source: AnyPath) -> list[Scene]:
    """A user's own folder: `split_folders` or `flat`, whichever it is.

    Raises:
        DataError: it is neither, or its files do not pair.
    """
    if not source.is_dir():
        raise DataError(
            "no such folder", where=source, mend="set source to the folder with your imagery"
        )
    if any((source / split).is_dir() for split in SPLITS):
        return split_folders(source)
    if (source / "A").is_dir():
        return flat(source)
    raise DataError(
        "has neither folders train, val, test nor folders A, B, label",
        where=source,
        mend="arrange the imagery as {split}/{A,B,label}, {split}/{A,B,OUT} or {A,B,label}",
    )


def whu_single(source: AnyPath) -> list[Scene]:
    """WHU-CD's older release: one pair in `before/`, `after/` and `change label/`.

    Raises:
        DataError: the three files are not there.
    """
    base = _find(source, "before/before.tif")
    t1, t2, label = base / "before/before.tif", base / "after/after.tif", base / "change label"
    return [Scene("whu", t1, _file(t2), _file(label / "change_label.tif"))]


def whu_regions(source: AnyPath) -> list[Scene]:
    """WHU-CD's newer release: a train and a test region, whole images.

    The `splited_images/*/label` of that release are building masks of one date, not changes, and
    are not read.

    Raises:
        DataError: an image or a label is not there.
    """
    base = _find(source, "2012/whole_image")
    return [
        Scene(
            f"whu-{split}",
            _only_image(base / "2012/whole_image" / split / "image"),
            _only_image(base / "2016/whole_image" / split / "image"),
            _file(base / "change_label" / split / "change_label.tif"),
            split,
        )
        for split in ("train", "test")
    ]


def cdd_subset(source: AnyPath) -> list[Scene]:
    """CDD's published 256 x 256 tiles, `Real/subset/{train,val,test}/{A,B,OUT}`.

    Raises:
        DataError: the folder is not there, or an image lacks its partner or label.
    """
    return split_folders(_find(source, "Real/subset") / "Real/subset")


def cdd_original(source: AnyPath) -> list[Scene]:
    """CDD's whole scenes under `Real/original`, in folders `A`, `B` and `OUT` or `label`.

    Raises:
        DataError: the folders are not there, or an image lacks its partner or label.
    """
    original = _find(source, "Real/original") / "Real/original"
    return flat(_find(original, "A"))


def rasters(source: AnyPath) -> list[Scene]:
    """A folder with `pairs.csv`, a list with the columns id, t1, t2, label and optionally split.

    Paths are relative to the folder. A label may be a raster or a vector file; see
    `dsfer.data.polygons` for turning the latter into rasters.

    Raises:
        DataError: the list is unreadable, lacks a column, names a missing file, or gives a split
            to some rows only.
    """
    pairs = source / PAIRS
    table = read_table(pairs, {"id", "t1", "t2", "label"})
    scenes = []
    for number, row in enumerate(table.to_dict("records"), start=2):
        where = f"{pairs}, line {number}"
        files = {name: source / str(row[name]) for name in ("t1", "t2", "label")}
        for name, file in files.items():
            if not str(row[name]) or not file.exists():
                raise DataError(
                    f"{name} '{row[name]}' does not exist",
                    where=where,
                    mend=f"correct the path; it counts from {source.resolve()}",
                )
        split = str(row.get("split", "")) or None
        if split is not None and split not in SPLITS:
            raise DataError(
                f"unknown split '{split}'", where=where, mend=f"use one of {', '.join(SPLITS)}"
            )
        scenes.append(Scene(scene_id(str(row["id"]), where), split=split, **files))
    if len({scene.split is None for scene in scenes}) > 1:
        raise DataError(
            "some rows have a split and some have none",
            where=pairs,
            mend="fill the column split in every row, or in none",
        )
    return without_collisions(scenes, pairs)


def read_table(pairs: AnyPath, needed: set[str]) -> pd.DataFrame:
    """Read a list of pairs as text, checking its columns.

    Args:
        pairs: a CSV.
        needed: columns that it has to have; it may have others of id, t1, t2, label and split.

    Raises:
        DataError: it is unreadable, has other columns, or no row.
    """
    known = ["id", "t1", "t2", "label", "split"]
    must, may = ([name for name in known if (name in needed) == wanted] for wanted in (True, False))
    try:
        with pairs.open(encoding="utf-8-sig") as file:
            table = pd.read_csv(file, dtype=str, keep_default_na=False, skipinitialspace=True)
    except (OSError, ValueError) as error:
        raise DataError(
            f"not a readable CSV list ({error})",
            where=pairs,
            mend="give a UTF-8 file that has the columns "
            f"{','.join(must)}[,{','.join(may)}]; as a data set, set source to the folder of your "
            f"imagery, with this file in it as {PAIRS}",
        ) from error
    if not needed <= set(table) <= set(known):
        raise DataError(
            f"has the columns {', '.join(map(str, table))}",
            where=pairs,
            mend=f"name them {', '.join(must)} and optionally {', '.join(may)}, separated by "
            "commas",
        )
    if table.empty:
        raise DataError("lists no pair", where=pairs, mend="add a line for each pair")
    return table


def _label_folder(folder: AnyPath) -> AnyPath:
    """The folder of the labels beside `A` and `B`."""
    found = [folder / name for name in LABEL_FOLDERS if (folder / name).is_dir()]
    if len(found) != 1:
        state = "both" if found else "neither of"
        raise DataError(
            f"has {state} the label folders {' and '.join(LABEL_FOLDERS)}",
            where=folder,
            mend="keep the labels in exactly one of them",
        )
    return found[0]


def _unwrap(folder: AnyPath) -> AnyPath:
    """Step into a lone folder that an archive wrapped around `A` and `B`."""
    while not (folder / "A").is_dir():
        inner = list(_folders(folder))
        if len(inner) != 1:
            break
        folder = inner[0]
    return folder


def _find(root: AnyPath, inside: str) -> AnyPath:
    """Find the shallowest folder at or below `root` that holds the relative path `inside`."""
    level = [root]
    while level:
        found = [each for each in level if (each / inside).exists()]
        if len(found) > 1:
            raise DataError(
                f"'{inside}' is there more than once, in {found[0]} and {found[1]}",
                where=root,
                mend="keep one copy",
            )
        if found:
            return found[0]
        level = [inner for each in level for inner in _folders(each)]
    raise DataError(
        f"'{inside}' is nowhere below this folder",
        where=root,
        mend="check that the archive is the one docs/data-sets.md describes",
    )


def _folders(folder: AnyPath) -> Iterator[AnyPath]:
    """Sub-folders, without hidden ones and what macOS adds to archives."""
    if folder.is_dir():
        for path in listed(folder):
            if path.is_dir() and not path.name.startswith((".", "__MACOSX")):
                yield path


def _only_image(folder: AnyPath) -> AnyPath:
    """The one image of a folder."""
    images = images_by_stem(folder)
    if len(images) > 1:
        raise DataError(
            f"holds {len(images)} images where one is expected", where=folder, mend="keep one"
        )
    return next(iter(images.values()))


def _file(path: AnyPath) -> AnyPath:
    """The path itself, if it is a file."""
    if not path.is_file():
        raise DataError("no such file", where=path, mend="check that the archive is complete")
    return path


LAYOUTS: dict[str, Callable[[AnyPath], list[Scene]]] = {
    "flat": flat,
    "split_folders": split_folders,
    "folder": folder,
    "whu_single": whu_single,
    "whu_regions": whu_regions,
    "cdd_subset": cdd_subset,
    "cdd_original": cdd_original,
    "rasters": rasters,
}
"""Adapters by the name that the catalog gives."""

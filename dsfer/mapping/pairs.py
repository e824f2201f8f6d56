"""Many pairs of rasters: a folder, a table or a STAC-like list, mapped one by one."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dsfer.data.layouts import PAIRS, read_table
from dsfer.data.pairs import images_by_stem, scene_id
from dsfer.detector import Detector
from dsfer.errors import ConfigError, DataError, DsferError, first_line, without_secrets
from dsfer.files import read_json, write_json
from dsfer.mapping.pair import Reading
from dsfer.mapping.predict import (
    AS_IT_IS,
    DEFAULTS,
    MapOptions,
    identity_of,
    label_identity,
    predict_raster,
    second_raster,
)
from dsfer.mapping.scoring import Label
from dsfer.mapping.work import local_folder, remove_rest

log = logging.getLogger(__name__)

FOLDERS = ("A", "B", "label")
"""Of the first date, the second, and where there are any, the labels."""

RECORD = "maps.json"
"""Name of the list of what was mapped, of all lists of pairs that were mapped into a folder."""

FORESEEN = (DsferError, OSError)
"""Errors that say by themselves what is wrong."""


@dataclass(frozen=True)
class ListedPair:
    """A pair of a list.

    Attributes:
        id: letters, digits, `_` and `-`; the name of the folder of its maps.
        t1: raster of the first date, a full path or an address that GDAL reads.
        t2: raster of the second.
        label: raster of what really changed, or None.
    """

    id: str
    t1: str
    t2: str
    label: str | None = None


def list_pairs(source: str | Path) -> list[ListedPair]:
    """Read which pairs to map.

    Args:
        source: one of

            * a folder with `A/` and `B/`, and perhaps `label/`, whose files have the same stems, or
              with a `pairs.csv`;
            * a .csv with the columns id, t1, t2 and perhaps label;
            * a .json or .geojson with `features`, as a STAC ItemCollection, whose `assets` are
              `t1`, `t2` and perhaps `label`, with an `href` each.

            Paths count from where the list is; addresses such as `https://` are taken as they are.

    Raises:
        DataError: there is no such list, it is damaged, or two pairs share an id.
    """
    source = Path(source)
    if source.is_dir() and not (source / PAIRS).is_file():
        found = _folders(source)
    elif source.is_dir() or source.suffix == ".csv":
        found = _table(source / PAIRS if source.is_dir() else source)
    elif source.suffix in (".json", ".geojson"):
        found = _items(source)
    else:
        raise DataError(
            "is no folder, .csv or .json" if source.exists() else "no such file or folder",
            where=source,
            mend=f"give a folder with A/ and B/ or {PAIRS}, a .csv, or a STAC-like .json; or two "
            "rasters",
        )
    pairs = list(found)
    names = [pair.id.lower() for pair in pairs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(
            f"several pairs have the id '{min(twice)}', letter case aside",
            where=source,
            mend="give each its own; ids keep only letters, digits, _ and -",
        )
    if not pairs:
        raise DataError("lists no pair", where=source, mend="add one")
    return pairs


def _folders(source: Path) -> Iterator[ListedPair]:
    images = {
        name: images_by_stem(source / name)
        for name in FOLDERS
        if name != "label" or (source / name).is_dir()
    }
    for stem in sorted(set().union(*images.values())):
        if missing := [name for name in images if stem not in images[name]]:
            raise DataError(
                f"lacks '{stem}'",
                where=source / missing[0],
                mend="each pair needs files of the same stem in all folders",
            )
        files = {name: str(found[stem].absolute()) for name, found in images.items()}
        yield ListedPair(scene_id(stem, source), files["A"], files["B"], files.get("label"))


def _table(path: Path) -> Iterator[ListedPair]:
    for number, row in enumerate(read_table(path, {"id", "t1", "t2"}).to_dict("records"), start=2):
        cells = {str(name): str(value) for name, value in row.items()}
        yield _listed(cells["id"], cells, path, f"{path}, line {number}")


def _items(path: Path) -> Iterator[ListedPair]:
    stored = read_json(path)
    try:
        for item in stored["features"]:
            hrefs = {name: str(asset["href"]) for name, asset in item["assets"].items()}
            yield _listed(str(item["id"]), hrefs, path, f"{path}, {item['id']}")
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(
            f"not a list of pairs ({type(error).__name__}: {first_line(error)})",
            where=path,
            mend="give `features`, each with `id` and `assets` with `t1`, `t2` and their `href`",
        ) from error


def _listed(name: str, files: dict[str, str], path: Path, where: str) -> ListedPair:
    t1, t2, label = (
        _place(files[key], path.parent) if files.get(key) else None for key in ("t1", "t2", "label")
    )
    if t1 is None or t2 is None:
        raise DataError(
            f"has no {'t2' if t1 else 't1'}", where=where, mend="name the rasters of both dates"
        )
    return ListedPair(scene_id(name, where), t1, t2, label)


def _place(text: str, folder: Path) -> str:
    """A path from `folder`, or an address as it is."""
    return text if "://" in text or text.startswith("/vsi") else str((folder / text).absolute())


def map_pair(
    pair: ListedPair,
    detector: Detector,
    out: Path,
    *,
    reading: Reading = AS_IT_IS,
    options: MapOptions = DEFAULTS,
    label_rule: str = "binary255",
    resume: bool = False,
) -> dict[str, Any]:
    """Map one pair of a list into `out/<id>`; where that is done already, read its summary.

    Args:
        pair: the rasters.
        detector: the network.
        out: folder of the maps of all pairs.
        reading: how the rasters are read.
        options: what is made of the probabilities.
        label_rule: how label values are read.
        resume: take maps that are there, and go on with those that were cut off.

    Returns:
        The summary.

    Raises:
        DsferError: as `predict_raster`; or maps are there, and without `resume`, or made otherwise
            or of other rasters: what `identity_of` names, or the label.
    """
    folder = out / pair.id
    label = Label(pair.label, label_rule) if pair.label else None
    if (folder / "summary.json").is_file():
        if not resume:
            raise DataError(
                "is mapped already",
                where=folder,
                mend="add --resume to take it as it is, give another --out, or remove that folder",
            )
        present = {
            "options": asdict(replace(options, threshold=detector.threshold(options.threshold))),
            **identity_of(pair.t1, pair.t2, detector, reading, options),
            "label": label_identity(label),
        }
        return _finished(folder, present)
    return predict_raster(
        pair.t1,
        pair.t2,
        detector,
        folder,
        reading=reading,
        options=options,
        label=label,
        resume=resume,
    )


def _finished(folder: Path, present: dict[str, Any]) -> dict[str, Any]:
    """The summary of maps that are there, if they were made of the same in the same way."""
    remove_rest(folder)
    summary: dict[str, Any] = read_json(folder / "summary.json")
    former = {"options": summary["options"], "label": summary.get("label")}
    former |= summary.get("identity", {})
    for what, value in present.items():
        then = former.get(what, "something that was not noted")
        if then != value:
            raise ConfigError(
                f"these maps were made with {then}, now it is {value}",
                where=f"{folder}, {what}",
                mend=f"give the same as then or another --out, or remove {folder} to map it again",
            )
    return summary


def map_pairs(
    pairs: Sequence[ListedPair], detector: Detector, out: Path, **how: Any
) -> list[dict[str, Any]]:
    """Map pairs one after the other; one that fails does not stop the others.

    Args:
        pairs: from `list_pairs`.
        detector: the network.
        out: folder to make or to add to, of a folder for each pair and of `maps.json`.
        **how: see `map_pair`.

    Returns:
        A row for each, see `row_of`; `maps.json` keeps those of other pairs, too.

    Raises:
        ConfigError: `out` is no folder of this machine.
        DataError: it holds a `maps.json` that is no list of maps.
    """
    out, rows = local_folder(out), []
    for pair in pairs:
        try:
            rows.append(row_of(pair, map_pair(pair, detector, out, **how)))
        except Exception as error:
            # What nobody foresaw is the program's fault: the log has where it came from.
            row = row_of(pair, error)
            log.error("%s: %s", pair.id, row["error"], exc_info=not isinstance(error, FORESEEN))
            rows.append(row)
        record_rows(out, rows)
    return rows


def record_rows(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows into the record of a folder of maps, each in place of a former one of its pair.

    Raises:
        DataError: what is there is no such record.
    """
    record = out / RECORD
    try:
        former = read_json(record) if record.is_file() else []
        known = {row["id"]: row for row in (*former, *rows)}
    except (DataError, KeyError, TypeError) as error:
        raise DataError(
            "is no list of maps", where=record, mend="move it away, then run again with --resume"
        ) from error
    write_json(record, list(known.values()))


def row_of(pair: ListedPair, outcome: dict[str, Any] | BaseException) -> dict[str, Any]:
    """What a list says of a pair: id, status, changes, changed_area_m2, second_raster, error."""
    if isinstance(outcome, BaseException):
        said = str(outcome) if isinstance(outcome, FORESEEN) else repr(outcome)
        return {
            "id": pair.id, "status": "failed", "changes": None, "changed_area_m2": None,
            "second_raster": None, "error": without_secrets(said),
        }  # fmt: skip
    found = {key: outcome[key] for key in ("changes", "changed_area_m2")}
    found["second_raster"] = second_raster(outcome)
    return {"id": pair.id, "status": "done", **found, "error": None}


def check_all_done(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Raise an error that names the pairs which failed, if any did.

    Raises:
        DataError: some did.
    """
    failed = [row for row in rows if row["status"] == "failed"]
    if failed:
        names = ", ".join(row["id"] for row in failed[:5])
        raise DataError(
            f"{len(failed)} of {len(rows)} pairs failed: {names}{', …' * (len(failed) > 5)}. "
            f"The first: {failed[0]['error'].rstrip('.')}",
            where=out,
            mend="mend their input, then run it again with resume: it does only what is missing",
        )

"""The folder in which maps are made, and how a run that was cut off goes on."""

import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dsfer.errors import ConfigError, DataError, DsferError
from dsfer.files import read_json, write_json

log = logging.getLogger(__name__)

MAPS = "maps"
"""The part of a work folder that becomes the folder of maps."""

PROGRESS = "progress.json"


@dataclass(frozen=True)
class Progress:
    """What is on the disk, from this run and those before it that were cut off.

    Attributes:
        rows: rows from the top whose probabilities are there.
        started: when the first run began, in ISO 8601.
        seconds: what each part of the work took, as far as the rows were noted.
        seconds_in_all: what all of it took, without the time between the runs.
        runs: for each run that computed rows, the first of them (`from_row`), and `device`,
            `precision` and `versions`.
    """

    rows: int = 0
    started: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    seconds_in_all: float = 0.0
    runs: list[dict[str, Any]] = field(default_factory=list)


def local_folder(out: str | Path) -> Path:
    """The full path of a folder to make on this machine.

    Raises:
        ConfigError: it is an address.
    """
    text = re.sub(r"^([A-Za-z][\w+.-]+):/+", r"\1://", str(out))  # a path has lost a slash of it
    if "://" in text or text.startswith("/vsi"):
        raise ConfigError(
            "is an address, and maps are written to a folder of this machine",
            where=f"out {text}",
            mend="give a folder, and copy it when the maps are done",
        )
    return Path(out).absolute()


@contextmanager
def work_folder(out: Path) -> Iterator[Path]:
    """Yield `.<name>.partial` beside `out`, for this process alone, with an empty folder `maps`.

    When the block succeeds, `maps` becomes `out` in one step, and only then the rest is removed: a
    kill finds either all that it takes to go on, or maps that are finished. Where bad input or the
    disk ends the work before any of it was noted, the folder is removed: no run could go on from
    it, and what it reserved would keep a full disk full.

    Raises:
        DataError: `out` is there already, or another process is making it.
    """
    work = _work_of(out)
    if out.exists():
        remove_rest(out)
        raise _is_there(out)
    work.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(work / "lock").acquire(timeout=0)
    except Timeout as error:
        raise DataError(
            "another process is making these maps",
            where=out,
            mend="wait for it, or give another --out",
        ) from error
    with lock:
        try:
            if out.exists():  # finished by the process that had the lock until now
                raise _is_there(out)
            (work / MAPS).mkdir(exist_ok=True)
            for left in (work / MAPS).iterdir():  # perhaps of other options
                left.unlink()
            yield work
            _publish(work / MAPS, out)
        except (DsferError, OSError):
            if not (work / PROGRESS).is_file():
                shutil.rmtree(work, ignore_errors=True)  # the disk may fail
            raise
        remove_rest(out)


def _work_of(out: Path) -> Path:
    return out.parent / f".{out.name}.partial"


def remove_rest(out: Path) -> None:
    """Remove the work folder of maps that are finished, if it is there.

    One that still holds `maps` belongs to a run that was cut off, and stays.
    """
    work = _work_of(out)
    if work.is_dir() and not (work / MAPS).exists():
        (work / PROGRESS).unlink(missing_ok=True)  # first: without it, no run goes on from the rest
        shutil.rmtree(work, ignore_errors=True)


def _publish(maps: Path, out: Path) -> None:
    try:
        maps.replace(out)
    except OSError as error:
        if not out.exists():
            raise
        raise DataError(
            "came to be there while the maps were made",
            where=out,
            mend="move it away, then run again with --resume",
        ) from error


def _is_there(out: Path) -> DataError:
    return DataError("is there already", where=out, mend="give another --out, or remove it")


def progress_of(work: Path, identity: dict[str, Any], *, resume: bool) -> Progress:
    """What a run of the same inputs left finished; nothing where a new one starts.

    A new one also starts where a raster was replaced under its name: none of its rows are of use.

    Args:
        work: the work folder.
        identity: what the rows depend on.
        resume: whether to go on with a run that was cut off.

    Raises:
        DataError: a run was cut off here, and `resume` is not set.
        ConfigError: it was a run of other inputs.
    """
    record, progress = work / "run.json", work / PROGRESS
    if record.is_file() and progress.is_file():
        if not resume:
            raise DataError(
                "a run was cut off here",
                where=work,
                mend="add --resume to go on with it, or remove that folder",
            )
        former = read_json(record)
        replaced = [date for date in ("t1", "t2") if _replaced(former.get(date), identity[date])]
        if not replaced:
            _check_same(former, identity, work)
            return Progress(**read_json(progress))
        log.warning("%s was replaced: the maps are begun anew", identity[replaced[0]][0])
    progress.unlink(missing_ok=True)  # first: it speaks of the former run
    write_json(record, identity)
    return Progress()


def _replaced(former: Any, now: list[Any]) -> bool:
    """Whether a raster has the place of the former one, and other facts."""
    return isinstance(former, list) and former != now and former[:1] == now[:1]


def _check_same(former: dict[str, Any], identity: dict[str, Any], work: Path) -> None:
    for key, value in identity.items():
        if former.get(key) != value:
            raise ConfigError(
                f"the run that was cut off had {former.get(key)!r}, now it is {value!r}",
                where=key,
                mend=f"give the same as then, or remove {work}",
            )


def save_progress(work: Path, progress: Progress) -> None:
    """Note what is on the disk."""
    write_json(work / PROGRESS, asdict(progress))

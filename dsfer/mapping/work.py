"""The folder in which maps are made, and how a run that was cut off goes on."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dsfer.errors import ConfigError, DataError, DsferError
from dsfer.files import read_json, write_json

PROGRESS = "progress.json"


@contextmanager
def work_folder(out: Path) -> Iterator[Path]:
    """Yield `.<name>.partial` beside `out`, for this process alone.

    Whoever fills it renames it to `out` in the end; until then nothing looks finished. Where bad
    input ends the work before any of it was saved, the folder is removed.

    Raises:
        DataError: `out` is there already, or another process is making it.
    """
    if out.exists():
        raise DataError("is there already", where=out, mend="give another --out, or remove it")
    work = out.with_name(f".{out.name}.partial")
    work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DataError(
            "another process is making these maps",
            where=out,
            mend="wait for it, or give another --out",
        ) from error
    with lock:
        try:
            yield work
        except DsferError:
            if not (work / PROGRESS).is_file():
                shutil.rmtree(work)
            raise


def rows_done(work: Path, identity: dict[str, Any], *, resume: bool) -> int:
    """Rows that a run of the same inputs left finished; 0 where a new one starts.

    Args:
        work: the work folder.
        identity: what the rows depend on.
        resume: whether to go on with a run that was cut off.

    Raises:
        DataError: a run was cut off here, and `resume` is not set.
        ConfigError: it was a run of other inputs.
    """
    record, progress = work / "run.json", work / PROGRESS
    if not record.is_file():
        write_json(record, identity)
        return 0
    if not resume:
        raise DataError(
            "a run was cut off here",
            where=work,
            mend="add --resume to go on with it, or remove that folder",
        )
    former = read_json(record)
    for key, value in identity.items():
        if former.get(key) != value:
            raise ConfigError(
                f"the run that was cut off had {former.get(key)!r}, now it is {value!r}",
                where=key,
                mend=f"give the same as then, or remove {work}",
            )
    return int(read_json(progress)["rows"]) if progress.is_file() else 0


def save_progress(work: Path, rows: int) -> None:
    """Note that this many rows, from the top, are on the disk."""
    write_json(work / PROGRESS, {"rows": rows})

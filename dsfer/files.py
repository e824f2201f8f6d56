"""Files that are either whole or not there: atomic writes and content hashes.

Where the system refuses a file (the disk is full, or may not be written to), the OSError that
leaves these functions names the file that was to be written, not its temporary name.
"""

import glob
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dsfer.errors import DataError, DsferError
from dsfer.paths import AnyPath, reaching, upload
from dsfer.processes import process_mark


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let errors of the system that the block raises say which file they are about.

    An error of a write says nothing of the file. One about a temporary name beside `path` gets the
    name that the file would have had.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = str(_final_place(Path(str(error.filename or path)), path))
        raise


def _final_place(place: Path, path: Path) -> Path:
    """Where `place` would have come to lie, if it is or is in what is written for `path`."""
    for temporary in (place, *place.parents):
        beside = temporary.absolute().parent == path.absolute().parent
        if beside and temporary.name.startswith(_prefix()):
            return path / place.relative_to(temporary)
    return place


@contextmanager
def atomic_path(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` when the block succeeds.

    The suffix is kept, so that libraries which look at it write the right format. When the block
    raises, the temporary file is removed and whatever was at `path` stays. What killed processes
    left in the folder is removed.

    Args:
        path: file to write.
        flush: wait until the content is on the disk; large files with a hash beside them need
            not, for the hash tells a damaged one from a whole one.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, deep=False)
        handle, name = tempfile.mkstemp(prefix=_prefix(), suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            if flush:
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_object(path: AnyPath) -> Iterator[Path]:
    """Yield a temporary path; what is written there is put to `path` when the block succeeds.

    On a disk that is what `atomic_path` does, without waiting for the disk; to an object store the
    file is uploaded.

    Raises:
        StoreError: the object store does not answer, or refuses.
    """
    if isinstance(path, Path):
        with atomic_path(path, flush=False) as temporary:
            yield temporary
        return
    with temporary_folder(Path(tempfile.gettempdir())) as folder:
        file = folder / path.name
        yield file
        upload(file, path)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; put it in place of `path` when the block succeeds.

    When the block raises or the process is killed, whatever was at `path` stays; killed between
    the two renames, it lies beside `path` and is brought back by the next try. The content is not
    flushed to the disk: it is large, and hashes beside it tell a damaged file from a whole one.
    What killed processes left beside `path` is removed. Errors speak of `path`, not of the
    temporary folder.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        former = path.with_name(f".former-{path.name}")
        _settle(path, former)
        remove_leftovers(path.parent, deep=False)
        temporary = Path(tempfile.mkdtemp(prefix=_prefix(), dir=path.parent))
        try:
            yield temporary
            temporary.chmod(0o755)
            if path.is_dir():
                path.replace(former)
            temporary.replace(path)
        except DsferError as error:
            raise error.about(temporary, path) from error.__cause__
        finally:
            _settle(path, former)
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Yield a new folder in `parent` that is removed in the end.

    If the process is killed, the next one there removes it, or `remove_leftovers`.
    """
    remove_leftovers(parent, deep=False)
    with tempfile.TemporaryDirectory(prefix=_prefix(), dir=parent) as folder:
        yield Path(folder)


def _settle(path: Path, former: Path) -> None:
    """Bring back the folder that was moved aside if nothing took its place, else remove it."""
    if former.exists() and not path.exists():
        former.replace(path)
    shutil.rmtree(former, ignore_errors=True)


def _prefix() -> str:
    """Start of the names of this process's temporary files and folders."""
    return f".tmp-{platform.node()}-{os.getpid()}-{process_mark(os.getpid())}-"


def remove_leftovers(folder: Path, *, deep: bool = True) -> None:
    """Remove temporary files and folders of processes of this machine that are gone.

    Args:
        folder: where to look.
        deep: look below its subfolders, too.
    """
    names = f".tmp-{glob.escape(platform.node())}-*"
    pattern = re.compile(rf"\.tmp-{re.escape(platform.node())}-(\d+)-([0-9a-f]{{8}})-.*")
    for path in list(folder.glob(f"**/{names}" if deep else names)):
        match = pattern.fullmatch(path.name)
        if match and process_mark(int(match[1])) != match[2]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(PermissionError):  # another user's, where all may write
                    path.unlink(missing_ok=True)


def remove_temporary(folder: Path) -> None:
    """Remove temporary files of any process from a folder that nobody writes to any more."""
    for path in folder.glob(".tmp-*"):
        path.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with a final newline, atomically."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: AnyPath) -> Any:
    """Read a JSON file.

    Raises:
        DataError: the file is missing or is no JSON.
        StoreError: it lies in an object store that does not answer, or refuses.
    """
    try:
        with reaching(path):
            return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError("no such file", where=path, mend="run the stage that writes it") from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"not valid JSON ({error})", where=path, mend="run the stage that writes it"
        ) from error


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

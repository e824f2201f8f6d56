"""Mend what a killed DVC leaves: two files that it writes in place can be cut off in the middle.

Everything else that a kill leaves is mended by DVC itself (locks of dead processes, half-written
objects of the cache) or by the stages (`dsfer.files`).
"""

import json
import logging
import subprocess
from pathlib import Path

from dvc.dvcfile import LOCK_FILE, Lockfile
from dvc.exceptions import DvcException
from dvc.lock import LockError, make_lock
from dvc.repo import Repo
from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK

from dsfer.console import run
from dsfer.errors import DsferError
from dsfer.files import write_bytes

log = logging.getLogger(__name__)


def recover(root: Path) -> None:
    """Make the project at `root` usable by DVC again; does nothing to one that is.

    `.dvc/tmp/rwlock`, which says who reads and writes what, is removed where it is no JSON: its
    writer is dead. A `dvc.lock` that DVC cannot read is replaced by the last one committed, or
    removed; the stages that it then lacks come back from the run cache.

    Args:
        root: folder of `dvc.yaml`.

    Raises:
        DsferError: a living DVC process may be writing these files.
    """
    with Repo(str(root)) as repo:
        try:
            with repo.lock, make_lock(str(Path(repo.tmp_dir, RWLOCK_LOCK))):
                _mend_rwlock(Path(repo.tmp_dir, RWLOCK_FILE))
                _mend_lockfile(Lockfile(repo, str(root / LOCK_FILE)))
        except LockError as error:
            raise DsferError(
                "another DVC command is at work here", where=root, mend="wait for its end"
            ) from error


def _mend_rwlock(path: Path) -> None:
    if path.exists() and not _is_json(path):
        path.unlink()
        log.warning("%s was cut off by a kill: removed", path)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def _mend_lockfile(lockfile: Lockfile) -> None:
    path = Path(lockfile.path)
    if not lockfile.exists() or _readable(lockfile):
        return
    shown = subprocess.run(
        ["git", "show", f"HEAD:./{path.name}"],
        cwd=path.parent,
        capture_output=True,
        check=False,
    )
    if shown.returncode == 0:
        write_bytes(path, shown.stdout)
        log.warning("%s was cut off by a kill: the committed one is back", path)
    else:
        path.unlink()
        log.warning("%s was cut off by a kill: removed", path)


def _readable(lockfile: Lockfile) -> bool:
    try:
        lockfile.load()
    except DvcException:
        return False
    return True


def main() -> None:
    """Mend the project in the current folder."""
    recover(Path.cwd())


if __name__ == "__main__":
    run(main)

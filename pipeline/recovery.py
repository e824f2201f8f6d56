"""Mend what a killed DVC leaves, so that the next run is not stopped or misled by it.

Half-written outputs are no part of it: stages put theirs in place when they are whole
(`dsfer.files`), and DVC checks the objects of its cache. But some of DVC's own files can be cut off
or stay behind in a state that DVC does not expect, and temporary files stay where nobody looks.
"""

import json
import logging
import re
import subprocess
import time
from contextlib import nullcontext, suppress
from itertools import chain
from pathlib import Path
from typing import Literal

import psutil
from dvc.dvcfile import LOCK_FILE, Lockfile
from dvc.exceptions import DvcException
from dvc.lock import LockError, make_lock
from dvc.repo import Repo
from dvc.repo.experiments.refs import EXEC_HEAD, EXEC_NAMESPACE
from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK
from dvc.scm import Git
from filelock import FileLock, Timeout

from dsfer.console import run
from dsfer.errors import DsferError
from dsfer.files import remove_leftovers, write_bytes
from dsfer.processes import process_mark
from pipeline.params import PARAMS, check_no_secrets

log = logging.getLogger(__name__)

DATA = "data"

KEPT = Path(".dvc/tmp/flows/params.yaml")
"""`params.yaml` as it was before a sweep or benchmark had DVC queue experiments, while it does."""

HELD = KEPT.with_name("workspace")
"""Who works in the project holds the lock of this name, with `.lock` behind it."""

REPLACED = KEPT.with_suffix(".replaced.yaml")
"""What `KEPT` took the place of."""

ARGUMENTS = ".dvc/tmp/repro.dat"
"""What DVC adds to git's index, besides `params.yaml`, while it queues an experiment."""

TEMPORARY = re.compile(r".*\.[\w-]{22}\.tmp")
"""Names of DVC's temporary files; they do not say whose they are."""

SURELY_DEAD = 600
"""Seconds after its last change at which nobody writes a temporary file of the cache any more.

Experiments that run at the same time share the cache; what they write is seconds old.
"""

LEFT_BEHIND = 0.5
"""Seconds that an entry of the run cache stays unfinished, as it is, only if its process is dead: a
living one needs milliseconds for it."""


def recover(root: Path, *, held: bool = False) -> None:
    """Make the project at `root` usable by DVC again; does nothing to one that is.

    - `.dvc/tmp/rwlock`, which says who reads and writes what, and that of experiments are removed
      where they are cut off or speak of dead processes only; DVC takes those for living when others
      have their numbers by now, as is usual in containers.
    - A `dvc.lock` that DVC cannot read is replaced by the last one committed, or removed; the
      stages that it then lacks come back from the run cache.
    - Entries of the run cache that were not finished are removed: DVC trips over an empty one, and
      believes one that is cut off.
    - Temporary files of dead processes are removed from `data/` and from the cache.
    - What `dvc exp run` and `dvc exp save` keep in git while they are at work is removed, since it
      stops the next one; and the branch that they have left for that time is the current one again.
    - `params.yaml`, into which DVC writes the values of an experiment to queue it, is as before
      where a sweep or benchmark was killed amid that; what it kept to that end goes where not.

    Processes of other machines, which may share the folder, are not seen: DVC notes a number alone.

    Args:
        root: folder of `dvc.yaml`.
        held: whether the caller holds the project for itself (`HELD`).

    Raises:
        DsferError: a living DVC process may be writing these files.
        ConfigError: `params.yaml` holds credentials, which DVC would print and record.
    """
    with Repo(str(root)) as repo:
        try:
            with repo.lock:
                tmp = Path(repo.tmp_dir)
                states = [_mend_rwlock(folder) for folder in (tmp, tmp / "exps")]
                _mend_lockfile(Lockfile(repo, str(root / LOCK_FILE)))
                _mend_cache(repo)
                _remove_temporary(root / DATA)
                if isinstance(repo.scm, Git) and "at work" not in states:
                    _forget_experiment(repo.scm, killed=states[1] == "killed")
                if (root / KEPT).exists() and states[1] == "killed":
                    _restore_params(root)
                elif (root / KEPT).exists() and states[1] == "free":
                    _forget_params(root, held=held)
        except LockError as error:
            raise DsferError(
                "another DVC command is at work here", where=root, mend="wait for its end"
            ) from error
    if (root / PARAMS).is_file():
        check_no_secrets(root / PARAMS)


def is_leftover(path: Path, pid: int) -> bool:
    """Whether the process that DVC has noted in `path` is gone, even if a newer one has its number.

    DVC notes the number alone, so a newer process is told by its start after the last change of the
    file. A wall clock that is set forward in between makes a living process look like one.
    """
    if process_mark(pid) is None:
        return True
    try:
        # The start of a process is known to about a second.
        return path.stat().st_mtime < psutil.Process(pid).create_time() - 2
    except psutil.NoSuchProcess:
        return True
    except FileNotFoundError:  # renamed or removed since it was listed
        return False


def recover_cache(root: Path) -> None:
    """Do what `recover` does to the cache of the project at `root`, and nothing else.

    Copies of the project share it; others may be at work in them and in the project.
    """
    with Repo(str(root)) as repo:
        _mend_cache(repo)


def _mend_rwlock(folder: Path) -> Literal["free", "at work", "killed"]:
    """Returns what has become of those who were at work."""
    path = folder / RWLOCK_FILE
    if not path.exists():
        return "free"
    with make_lock(str(folder / RWLOCK_LOCK)):
        try:
            held = json.loads(path.read_bytes())
        except ValueError:
            path.unlink()
            log.warning("%s was cut off by a kill: removed", path)
            return "killed"
        entries = [*held.get("write", {}).values(), *chain(*held.get("read", {}).values())]
        if not all(is_leftover(path, entry["pid"]) for entry in entries):
            return "at work"
        path.unlink()
        return "killed" if entries else "free"


def _mend_lockfile(lockfile: Lockfile) -> None:
    path = Path(lockfile.path)
    if not lockfile.exists() or _readable(lockfile):
        return
    if committed := _git(path.parent, "show", f"HEAD:./{path.name}"):
        write_bytes(path, f"{committed}\n".encode())
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


def _mend_cache(repo: Repo) -> None:
    runs, cache = Path(repo.stage_cache.cache_dir), Path(repo.cache.local.path)
    unfinished = {path: _written(path) for path in runs.glob("*/*/*.tmp")}
    empty = [path for path in runs.glob("*/*") if path.is_dir() and not any(path.iterdir())]
    if unfinished or empty:
        time.sleep(LEFT_BEHIND)
    _remove([path for path, before in unfinished.items() if _written(path) == before])
    for entry in (*empty, *{path.parent for path in unfinished}):
        with suppress(OSError):  # another has removed it, or filled it after all
            entry.rmdir()
            log.warning("%s, an entry of the run cache, is empty: removed", entry)
    temporary = filter(_is_temporary, (*cache.glob("*.tmp"), *cache.glob("??/*.tmp")))
    _remove([path for path in temporary if _is_older(path, SURELY_DEAD)])


def _remove_temporary(data: Path) -> None:
    remove_leftovers(data)
    _remove(list(filter(_is_temporary, data.rglob("*.tmp"))))


def _is_temporary(path: Path) -> bool:
    return TEMPORARY.fullmatch(path.name) is not None


def _written(path: Path) -> tuple[int, int] | None:
    """Size and time of a file by which another try sees whether somebody writes it."""
    try:
        found = path.stat()
    except FileNotFoundError:  # another has removed it, or finished it
        return None
    return found.st_size, found.st_mtime_ns


def _is_older(path: Path, seconds: float) -> bool:
    try:
        return time.time() - path.stat().st_ctime > seconds
    except FileNotFoundError:  # another has removed it
        return False


def _remove(dead: list[Path]) -> None:
    for path in dead:
        with suppress(FileNotFoundError):  # another has removed it, or finished it after all
            path.unlink()
            log.info("removed %s, which a killed DVC left", path)


def _forget_experiment(git: Git, *, killed: bool) -> None:
    root = Path(git.root_dir)
    refs = root / _git(root, "rev-parse", "--git-path", EXEC_NAMESPACE)
    left = list(refs.iterdir()) if refs.is_dir() else []
    head, in_experiment = git.get_ref("HEAD", follow=False), git.get_ref(EXEC_HEAD)
    for ref in left:  # git lists none that lead nowhere, and no lock
        ref.unlink()
        log.info("removed %s, which a killed experiment left", ref)
    if (killed or in_experiment) and not head.startswith("refs/"):
        branch = _git(root, "rev-parse", "--symbolic-full-name", "@{-1}")
        if branch and git.get_ref(branch) == head:  # nothing was committed meanwhile
            git.set_ref("HEAD", branch, symbolic=True, message="recovery: the branch is back")
            log.warning("a killed experiment had left %s: it is the current branch again", branch)
    if killed and (stash := _git(root, "stash", "list", "--max-count=1")):
        log.warning("if the edits in git's %s are yours, `git stash pop` brings them back", stash)


def _restore_params(root: Path) -> None:
    if (found := (root / PARAMS).read_bytes()) != (root / KEPT).read_bytes():
        write_bytes(root / REPLACED, found)  # perhaps edited since the kill
        write_bytes(root / PARAMS, (root / KEPT).read_bytes())
        log.warning(
            "a kill had left an experiment's values in %s: the former are back, and what was there "
            "is in %s", PARAMS, REPLACED,
        )  # fmt: skip
    _git(root, "reset", "--quiet", "--", str(PARAMS), ARGUMENTS)
    (root / KEPT).unlink()


def _forget_params(root: Path, *, held: bool) -> None:
    """Remove what a sweep kept that was killed between two experiments: the former values are back.

    It would undo later edits. A living sweep holds the project.
    """
    alone = nullcontext() if held else FileLock(root / f"{HELD}.lock", timeout=0)
    with suppress(Timeout), alone:
        (root / KEPT).unlink(missing_ok=True)  # a sweep may just have ended


def _git(folder: Path, *arguments: str) -> str:
    """What a git command prints; nothing if it fails."""
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, check=False, encoding="utf-8"
    )
    return done.stdout.strip()


def main() -> None:
    """Mend the project in the current folder."""
    recover(Path.cwd())


if __name__ == "__main__":
    run(main)

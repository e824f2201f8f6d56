"""Where a flow works: the project itself, or a copy of it in which parameters were changed."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dvc.config import Config
from dvc.repo import Repo
from filelock import FileLock, Timeout

from dsfer.errors import DataError, DsferError
from dsfer.files import read_json, write_json
from pipeline.params import PARAMS, change_params
from pipeline.recovery import recover

COPIES = Path(".dvc/tmp/flows")
"""Where copies and locks of flow runs lie in a project."""


class WorkspaceError(DsferError):
    """Somebody else works in this workspace, or it is none."""


@contextmanager
def project_workspace(project: Path, who: str) -> Iterator[Path]:
    """Yield the project's own folder, held for this flow run alone.

    Args:
        project: top folder of the project.
        who: name of the flow run, which others are told.

    Raises:
        WorkspaceError: another flow run holds it.
    """
    mend = "wait for that run or cancel it; a run with parameters has a copy of its own"
    with hold(project / COPIES / "workspace", project, who, mend):
        recover(project)
        yield project


@contextmanager
def changed_workspace(project: Path, changes: dict[str, Any], who: str) -> Iterator[Path]:
    """Yield a copy of the project with other parameters; it is removed in the end.

    The copy is a git worktree at the current commit, with the tracked files as they are now. It
    shares the project's cache, so that what has been computed before is linked, not computed; and
    it is saved as an experiment by `dvc exp save` when the flow has succeeded.

    Args:
        project: top folder of the project, a git repository.
        changes: values by their key in `params.yaml`.
        who: name of the flow run, which others are told.

    Raises:
        WorkspaceError: another flow run with the same parameters is under way, or git cannot make
            the copy.
    """
    folder = project / COPIES / experiment_name(project, changes)
    with hold(folder, folder, who):
        _remove(project, folder)  # of a flow run that was killed
        _remove_leftovers(project, folder)
        try:
            _copy(project, folder)
            change_params(folder / PARAMS, changes)
            yield folder
        finally:
            _remove(project, folder)


def experiment_name(project: Path, changes: dict[str, Any]) -> str:
    """Name of the experiment: the same for the same commit, edits and parameters."""
    parts = [
        _git(project, "rev-parse", "HEAD"),
        _git(project, "diff", "HEAD"),
        json.dumps(changes, sort_keys=True),
    ]
    return "flow-" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]


@contextmanager
def hold(
    name: Path, where: Path, who: str, mend: str = "wait for that run or cancel it"
) -> Iterator[None]:
    """Hold something for one process, by a lock that dies with the process.

    Args:
        name: the lock is this path with `.lock` behind it.
        where: what is held, which others are told.
        who: holds it, which others are told too.
        mend: what others can do.

    Raises:
        WorkspaceError: another process holds it; the message says which, where and since when.
    """
    lock, holder = Path(f"{name}.lock"), Path(f"{name}.json")
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(lock).acquire(timeout=0)
    except Timeout as error:
        raise WorkspaceError(
            f"{_describe(holder)} works in it",
            where=where.resolve(),
            mend=mend,
        ) from error
    with held:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(
            holder, {"who": who, "process": os.getpid(), "host": platform.node(), "since": now}
        )
        try:
            yield
        finally:
            holder.unlink(missing_ok=True)


def _describe(holder: Path) -> str:
    try:
        told = read_json(holder)
    except DataError:  # it is just being written, or removed
        return "another process"
    return f"{told['who']} (process {told['process']} on {told['host']}, since {told['since']})"


def _copy(project: Path, folder: Path) -> None:
    _git(project, "worktree", "add", "--detach", str(folder), "HEAD")
    edits = _git(project, "stash", "create")  # touches nothing; empty without edits
    if edits:
        _git(folder, "checkout", edits, "--", ".")
        _git(folder, "reset", "--quiet")
    local = project / ".dvc/config.local"
    if local.is_file():
        shutil.copy(local, folder / ".dvc")
    edit_config = Config(str(folder / ".dvc")).edit
    with Repo(str(project)) as repo, edit_config("local") as config:
        config.setdefault("cache", {})["dir"] = repo.cache.local_cache_dir


def _remove_leftovers(project: Path, ours: Path) -> None:
    """Remove other copies that nobody holds: those of flow runs that were killed."""
    for folder in (project / COPIES).iterdir():
        if folder == ours or not folder.is_dir():
            continue
        try:
            with FileLock(f"{folder}.lock").acquire(timeout=0):
                _remove(project, folder)
        except Timeout:
            continue


def _remove(project: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    _git(project, "worktree", "prune")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise WorkspaceError(
            f"git {arguments[0]} failed: {done.stderr.strip()}",
            where=folder,
            mend="run it in a git repository with at least one commit",
        )
    return done.stdout.strip()

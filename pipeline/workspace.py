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

from dsfer.errors import DsferError
from dsfer.files import read_json, write_json
from pipeline.params import PARAMS, change_params
from pipeline.recovery import recover


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
    with hold(project / ".dvc/tmp/flows/workspace", who):
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
    name = experiment_name(project, changes)
    folder = project / ".dvc/tmp/flows" / name
    with hold(folder, who):
        _remove(project, folder)  # of a flow run that was killed
        try:
            _copy(project, folder)
            change_params(folder / PARAMS, changes)
            yield folder
        finally:
            _remove(project, folder)


def experiment_name(project: Path, changes: dict[str, Any]) -> str:
    """Name of the experiment: the same for the same commit, edits and parameters."""
    parts = [_git(project, "rev-parse", "HEAD"), _git(project, "diff", "HEAD"), json.dumps(changes)]
    return "flow-" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]


@contextmanager
def hold(folder: Path, who: str) -> Iterator[None]:
    """Hold a folder for one process, by a lock that dies with the process.

    Raises:
        WorkspaceError: another process holds it; the message says which, where and since when.
    """
    lock, holder = folder.with_suffix(".lock"), folder.with_suffix(".json")
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(lock).acquire(timeout=0)
    except Timeout as error:
        raise WorkspaceError(
            f"{_describe(holder)} works in it",
            where=folder.parents[3] if folder.name == "workspace" else folder,
            mend="wait for that run or cancel it; a run with parameters has a copy of its own",
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
    if not holder.is_file():  # it is just being written
        return "another process"
    told = read_json(holder)
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

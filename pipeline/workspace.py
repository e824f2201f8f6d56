"""Where a flow works: the project itself, or a copy of it in which parameters were changed."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from dvc.config import Config
from dvc.repo import Repo
from dvc.repo.experiments.refs import ExpRefInfo
from filelock import FileLock, Timeout

from dsfer.errors import DataError, DsferError
from dsfer.files import read_json, write_bytes, write_json
from pipeline.frozen import read_yaml
from pipeline.params import PARAMS, change_params
from pipeline.recovery import HELD, KEPT, recover, recover_cache

COPIES = Path(".dvc/tmp/flows")
"""Where copies and locks of flow runs lie in a project."""

REMOVED = ".removed"
"""End of the names of copies that nobody needs any more."""

PATIENCE = 1.0
"""Seconds that one who removes leftovers may hold what somebody else wants to hold."""


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
        ConfigError: `params.yaml` holds credentials.
    """
    mend = "wait for that run or cancel it; a run with parameters has a copy of its own"
    with hold(project / HELD, project, who, mend):
        _remove_leftovers(project)
        recover(project, held=True)
        yield project


@contextmanager
def params_kept(project: Path) -> Iterator[None]:
    """Keep `params.yaml` for `recover`, should the process be killed in this block.

    To queue an experiment, DVC writes its values into the file, and afterwards the former ones.
    """
    kept = project / KEPT
    write_bytes(kept, (project / PARAMS).read_bytes())
    try:
        yield
    finally:
        kept.unlink(missing_ok=True)  # a recovery beside it took it for a killed one's


def restore_params(project: Path, who: str) -> None:
    """Bring back the `params.yaml` of a process that was killed while it queued experiments.

    They are named after it: with the values of one of them in it, none would be known again.

    Args:
        project: top folder of the project.
        who: does it, which others are told.

    Raises:
        WorkspaceError: that process lives.
    """
    if (project / KEPT).exists():
        with project_workspace(project, who):
            pass  # it has been recovered


@contextmanager
def changed_workspace(project: Path, changes: dict[str, Any], who: str) -> Iterator[Path]:
    """Yield a copy of the project with other parameters; it is removed in the end.

    The copy is a clone of the current commit, with the tracked files as they are now. It shares
    git's objects and DVC's cache with the project, so that what has been computed before is linked,
    not computed; its refs are its own, so that copies save experiments at the same time. What the
    flow has saved in it by `dvc exp save`, under the name that the copy has, `fetch_experiment`
    brings to the project. What runs that were killed have left, copies and unfinished files of the
    cache, is removed at the start.

    Args:
        project: top folder of the project, a git repository.
        changes: values by their key in `params.yaml`.
        who: name of the flow run, which others are told.

    Raises:
        WorkspaceError: another flow run with the same parameters is under way, or git cannot make
            the copy.
    """
    folder = project / COPIES / experiment_name("flow", project_state(project), changes)
    with hold(folder, folder, who):
        _remove_leftovers(project)
        _remove(folder)
        recover_cache(project)
        try:
            _copy(project, folder)
            change_params(folder / PARAMS, changes)
            yield folder
        finally:
            _remove(folder)


def project_state(project: Path) -> str:
    """What experiments are named after beside their parameters: commit, edits and data."""
    return "\0".join((_git(project, "rev-parse", "HEAD"), _edits(project), _prepared(project)))


def experiment_name(kind: str, state: str, changes: dict[str, Any]) -> str:
    """Name of an experiment: the same for the same `project_state` and parameters."""
    named = f"{state}\0{json.dumps(changes, sort_keys=True)}"
    digest = hashlib.sha256(named.encode(errors="surrogateescape")).hexdigest()
    return f"{kind}-{digest[:8]}"


def commit(project: Path) -> str:
    """The present commit, shortened, and whether something was edited since."""
    return _git(project, "rev-parse", "--short", "HEAD") + (" with edits" * bool(_edits(project)))


def _prepared(project: Path) -> str:
    """Hashes of the data that was prepared last, as DVC recorded them.

    What it records of training does not count: it changes with every `dvc repro`.
    """
    records = project / "dvc.lock"
    if not records.is_file():
        return ""
    shard = read_yaml(records).get("stages", {}).get("shard", {})
    return json.dumps(shard.get("outs", []), sort_keys=True)


def _edits(project: Path) -> str:
    """Edits of tracked files that results can depend on: not of documents or DVC's records."""
    return _git(project, "diff", "HEAD", "--", ".", ":(exclude)docs", ":(exclude)dvc.lock")


def fetch_experiment(project: Path, folder: Path, name: str) -> None:
    """Bring an experiment that was saved in a copy to the project, in place of one of that name.

    Raises:
        WorkspaceError: the copy has no such experiment, or git cannot fetch it.
    """
    ref = ExpRefInfo(_git(folder, "rev-parse", "HEAD"), name)
    quietly = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance")
    _git(project, "fetch", *quietly, "--force", str(folder.resolve()), f"{ref}:{ref}")


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
        held = FileLock(lock).acquire(timeout=PATIENCE)
    except Timeout as error:
        raise WorkspaceError(
            f"{_describe(holder)} works in it",
            where=where.resolve(),
            mend=mend,
        ) from error
    with held:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        told = {"who": who, "process": os.getpid(), "host": platform.node(), "since": now}
        try:
            write_json(holder, told)
            yield
        finally:
            _forget(lock)


def _forget(lock: Path) -> None:
    """Remove a lock that this process holds; who waits for it sees that and makes another."""
    lock.with_suffix(".json").unlink(missing_ok=True)
    lock.unlink(missing_ok=True)


def _describe(holder: Path) -> str:
    try:
        told = read_json(holder)
    except DataError:  # it is just being written, or removed
        return "another process"
    return f"{told['who']} (process {told['process']} on {told['host']}, since {told['since']})"


def _copy(project: Path, folder: Path) -> None:
    here, git = str(project.resolve()), folder.resolve() / ".git"
    _git(project, "clone", "--quiet", "--shared", "--no-checkout", here, str(folder.resolve()))
    shutil.copy(project / _git(project, "rev-parse", "--git-path", "config"), git)
    _git(folder, "config", "core.bare", "false")  # of a bare repository with worktrees it is true
    tracked = _git(project, "ls-files", "-z")
    edits = ("--git-dir", str(git), "--work-tree", here, "update-index", "-z")
    _git(project, *edits, "--add", "--remove", "--stdin", given=tracked)
    _git(folder, "checkout-index", "--all", "--index")
    local = project / ".dvc/config.local"
    if local.is_file():
        shutil.copy(local, folder / ".dvc")
    edit_config = Config(str(folder / ".dvc")).edit
    with Repo(str(project)) as repo, edit_config("local") as config:
        config.setdefault("cache", {})["dir"] = repo.cache.local_cache_dir


def _remove_leftovers(project: Path) -> None:
    """Remove what nobody holds: copies and locks of flow runs that were killed.

    To remove a copy takes seconds, in which the run may be started again: the copy is set aside
    first, and its lock given back at once.
    """
    for lock in (project / COPIES).glob("*.lock"):
        with suppress(Timeout), FileLock(lock).acquire(timeout=0):
            copy = lock.with_suffix("")
            if copy.exists():
                copy.rename(copy.with_name(f"{uuid4().hex}{REMOVED}"))
            _forget(lock)
    for aside in (project / COPIES).glob(f"*{REMOVED}"):
        _remove(aside)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _git(folder: Path, *arguments: str, given: str = "") -> str:
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        input=given,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        check=False,
    )
    if done.returncode:
        raise WorkspaceError(
            f"git {arguments[0]} failed: {done.stderr.strip()}",
            where=folder,
            mend="run it in a git repository with at least one commit",
        )
    return done.stdout.strip()

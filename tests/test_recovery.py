"""What DVC writes in place, cut off at every length, is mended; what is whole is left alone."""

import json
import os
import platform
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from dvc.dvcfile import Lockfile
from dvc.repo import Repo
from dvc.repo.experiments.refs import EXEC_BASELINE, EXEC_BRANCH, EXEC_HEAD, EXEC_NAMESPACE
from filelock import FileLock

from dsfer.errors import ConfigError, DsferError
from pipeline.recovery import HELD, KEPT, recover, recover_cache

pytestmark = pytest.mark.xdist_group("dvc")

LOCK = """schema: '2.0'
stages:
  copy:
    cmd: cp a b
    deps:
    - path: a
      hash: md5
      md5: 60b725f10c9c85c70d97880dfe8191b3
      size: 2
"""


def git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=tests", "-c", "user.email=tests@localhost")
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    Repo.init(str(tmp_path)).close()
    (tmp_path / "dvc.lock").write_text(LOCK)
    return tmp_path


def test_a_whole_project_is_left_alone(project):
    rwlock = project / ".dvc/tmp/rwlock"
    held = json.dumps({"write": {"a": {"pid": os.getpid(), "cmd": "dvc repro"}}, "read": {}})
    rwlock.write_text(held)
    recover(project)
    assert (rwlock.read_text(), (project / "dvc.lock").read_text()) == (held, LOCK)


def test_locks_of_dead_processes_go_even_if_others_have_their_numbers(project):
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    rwlock = project / ".dvc/tmp/rwlock"
    for pid, written in ((dead.pid, time.time()), (os.getpid(), 1e9)):
        entry = {"pid": pid, "cmd": "dvc repro"}
        rwlock.write_text(json.dumps({"write": {"a": entry}, "read": {"b": [entry]}}))
        os.utime(rwlock, (written, written))
        recover(project)
        assert not rwlock.exists()


@pytest.mark.parametrize("mend", [recover, recover_cache])
def test_unfinished_entries_of_the_run_cache_go(project, monkeypatch, mend):
    runs = project / ".dvc/cache/runs"
    kept, cut = runs / "ab/abc/012", runs / "ab/abd/.AbcdefghijklmnopqrstUv.tmp"
    empty = runs / "ac/acc"
    for file in (kept, cut):
        file.parent.mkdir(parents=True)
        file.write_text(LOCK)
    empty.mkdir(parents=True)
    finished = runs / "ad/add/345"
    being_written = finished.with_name(".BbcdefghijklmnopqrstUv.tmp")
    being_written.parent.mkdir(parents=True)
    being_written.write_text(LOCK)
    growing = runs / "ae/aee/.CbcdefghijklmnopqrstUv.tmp"
    growing.parent.mkdir(parents=True)
    growing.touch()

    def work(_seconds: float) -> None:
        """Who lives finishes its entry, or is slow, while the others are waited for."""
        being_written.rename(finished)
        growing.write_text(LOCK)

    monkeypatch.setattr("pipeline.recovery.time.sleep", work)
    mend(project)
    assert sorted(path for path in runs.glob("*/*") if path.is_dir()) == [
        kept.parent,
        finished.parent,
        growing.parent,
    ]
    assert sorted(runs.glob("*/*/*")) == [kept, finished, growing]


def test_temporary_files_of_the_dead_go(project, monkeypatch):
    cache, deep = project / ".dvc/cache/files/md5", project / "data/a/b"
    (cache / "ab").mkdir(parents=True)
    (deep / f".tmp-{platform.node()}-{2**22 + 1}-0123abcd-x").mkdir(parents=True)
    name = "AbcdefghijklmnopqrstUv.tmp"
    cached = [cache / f".{name}", cache / "ab" / f".{name}", cache / "ab" / f"c.dir.{name}"]
    for file in (*cached, deep / f".{name}", deep / "mine.tmp", deep / ".tmp-other-1-x"):
        file.touch()
    recover(project)
    assert sorted(path.name for path in deep.iterdir()) == [".tmp-other-1-x", "mine.tmp"]
    assert all(file.exists() for file in cached)  # somebody may still write them
    monkeypatch.setattr("pipeline.recovery.SURELY_DEAD", -1)
    recover(project)
    assert not any(file.exists() for file in cached)


def test_the_branch_comes_back_that_an_experiment_had_left(project):
    def current() -> str:
        return (project / ".git/HEAD").read_text().strip()

    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "all")
    branch = current()
    git(project, "checkout", "--quiet", "--detach")
    recover(project)
    assert current() != branch  # somebody wanted it so
    git(project, "update-ref", EXEC_HEAD, "HEAD")
    git(project, "symbolic-ref", EXEC_BRANCH, "refs/exps/gone")
    (project / ".git" / f"{EXEC_BASELINE}.lock").touch()
    recover(project)
    assert current() == branch
    assert list((project / ".git" / EXEC_NAMESPACE).iterdir()) == []
    git(project, "checkout", "--quiet", "--detach")
    recover(project)
    assert current() != branch


@pytest.mark.parametrize("committed", [True, False])
def test_files_cut_off_anywhere_are_usable_again(project, committed):
    if committed:
        git(project, "add", "dvc.lock")
        git(project, "commit", "--quiet", "--message", "lock")
    outcomes = set()
    for length in range(0, len(LOCK), 9):
        (project / "dvc.lock").write_text(LOCK[:length])
        (project / ".dvc/tmp/rwlock").write_text('{"read": {}}'[:length])
        recover(project)
        with Repo(str(project)) as repo:
            lockfile = Lockfile(repo, str(project / "dvc.lock"))
            found = lockfile.load() if lockfile.exists() else None
        outcomes.add("gone" if found is None else "back" if len(found) == 2 else "short")
        assert not (project / ".dvc/tmp/rwlock").exists() or length >= 12
    assert ("back" if committed else "gone") in outcomes


@pytest.mark.parametrize("alone", [True, False])
def test_the_params_that_a_sweep_kept_do_not_undo_later_edits(project, alone):
    """It was killed between two experiments, so that nothing is to be restored; or it lives."""
    kept, params = project / KEPT, project / "params.yaml"
    kept.parent.mkdir(parents=True)
    kept.write_text("lr: 1\n")
    params.write_text("lr: 2\n")
    with nullcontext() if alone else FileLock(project / f"{HELD}.lock"):
        recover(project)
    assert kept.exists() != alone
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    entry = {"pid": dead.pid, "cmd": "dvc exp run"}
    (project / ".dvc/tmp/exps").mkdir()
    (project / ".dvc/tmp/exps/rwlock").write_text(json.dumps({"write": {"workspace": entry}}))
    recover(project)
    assert params.read_text() == f"lr: {1 + alone}\n"
    assert not kept.exists()


@pytest.mark.parametrize("key", ["source", "shards", "pretrained"])
def test_params_with_credentials_are_refused_before_dvc_reads_them(project, key):
    (project / "params.yaml").write_text(f"seed: 1\n{key}: s3://key:topsecret@bucket/city\n")
    with pytest.raises(ConfigError, match=f"params.yaml, {key}: .*environment alone") as caught:
        recover(project)
    assert "topsecret" not in str(caught.value)


def test_a_living_dvc_is_not_disturbed(project):
    (project / "dvc.lock").write_text("")
    with Repo(str(project)) as repo, repo.lock, pytest.raises(DsferError, match="at work here"):
        recover(project)
    assert (project / "dvc.lock").read_text() == ""

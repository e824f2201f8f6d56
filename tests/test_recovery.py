"""What DVC writes in place, cut off at every length, is mended; what is whole is left alone."""

import subprocess
from pathlib import Path

import pytest
from dvc.dvcfile import Lockfile
from dvc.repo import Repo

from dsfer.errors import DsferError
from pipeline.recovery import recover

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
    rwlock.write_text('{"read": {}}')
    recover(project)
    assert (rwlock.read_text(), (project / "dvc.lock").read_text()) == ('{"read": {}}', LOCK)


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


def test_a_living_dvc_is_not_disturbed(project):
    (project / "dvc.lock").write_text("")
    with Repo(str(project)) as repo, repo.lock, pytest.raises(DsferError, match="at work here"):
        recover(project)
    assert (project / "dvc.lock").read_text() == ""

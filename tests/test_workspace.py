"""Who works where: one holder at a time, copies that never outlive their run."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from pipeline.workspace import (
    COPIES,
    WorkspaceError,
    changed_workspace,
    experiment_name,
    project_workspace,
)
from tests.project import ROOT, commit, run

HOLDER = (
    "import sys, time\nfrom pathlib import Path\nfrom pipeline.workspace import {0}\n"
    "with {0}(Path(sys.argv[1]), {1}'other') as folder:\n"
    "    print(folder, flush=True)\n    time.sleep(100)\n"
)
"""A process that holds a workspace until it is killed."""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    run(folder, "git", "init", "--quiet")
    Repo.init(str(folder)).close()
    shutil.copy(ROOT / "params.yaml", folder)
    commit(folder, "project")
    return folder


def seed(folder: Path) -> int:
    return int(YAML().load(folder / "params.yaml")["seed"])


def held_by_another(project: Path, function: str, changes: str = "") -> subprocess.Popen[str]:
    code = HOLDER.format(function, changes)
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(project)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout
    assert holder.stdout.readline().startswith(str(project))
    return holder


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_the_second_in_a_project_hears_who_holds_it_until_that_one_is_killed(project):
    holder = held_by_another(project, "project_workspace")
    try:
        with pytest.raises(WorkspaceError) as caught, project_workspace(project, "us"):
            pass
    finally:
        kill(holder)
    assert f"{project}: other (process {holder.pid} on " in str(caught.value)
    with project_workspace(project, "us") as folder:
        assert folder == project


def test_a_copy_has_other_parameters_and_the_edits_of_the_project(project):
    (project / "params.yaml").write_text((project / "params.yaml").read_text() + "# edited\n")
    with changed_workspace(project, {"seed": 3}, "us") as folder:
        assert (seed(folder), seed(project)) == (3, 0)
        assert (folder / "params.yaml").read_text().endswith("# edited\n")
        with Repo(str(folder)) as copy, Repo(str(project)) as original:
            assert copy.cache.local.path == original.cache.local.path
    assert not folder.exists()
    assert len(run(project, "git", "worktree", "list").splitlines()) == 1


def test_a_copy_whose_run_was_killed_is_removed_by_the_next(project):
    holder = held_by_another(project, "changed_workspace", "{'seed': 1}, ")
    try:
        with changed_workspace(project, {"seed": 2}, "us"):
            assert len(copies(project)) == 2  # that of a living run is left alone
        with (
            pytest.raises(WorkspaceError, match="other"),
            changed_workspace(project, {"seed": 1}, "us"),
        ):
            pass
    finally:
        kill(holder)
    (left,) = copies(project)
    with changed_workspace(project, {"seed": 2}, "us") as folder:
        assert copies(project) == [folder] != [left]


def copies(project: Path) -> list[Path]:
    return [path for path in (project / COPIES).iterdir() if path.is_dir()]


def test_an_experiment_is_named_after_what_it_is_made_of(project):
    name = experiment_name(project, {"seed": 1, "lr": 0.1})
    assert name == experiment_name(project, {"lr": 0.1, "seed": 1})
    assert name != experiment_name(project, {"lr": 0.1, "seed": 2})
    with (project / "params.yaml").open("a") as file:
        file.write("# edited\n")
    assert name != experiment_name(project, {"lr": 0.1, "seed": 1})

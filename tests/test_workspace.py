"""Who works where: one holder at a time, copies that never outlive their run."""

import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import pytest
from dvc.repo import Repo
from filelock import FileLock
from ruamel.yaml import YAML

from dsfer.errors import ConfigError
from pipeline import flows
from pipeline.recovery import KEPT
from pipeline.workspace import (
    COPIES,
    WorkspaceError,
    changed_workspace,
    experiment_name,
    fetch_experiment,
    project_state,
    project_workspace,
)
from tests.project import ROOT, commit, dvc, run
from tests.waiting import PATIENCE

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
    (folder / "gone").touch()
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
    (project / "gone").unlink()
    for name in ("added", "untracked"):
        (project / name).write_text(name)
    run(project, "git", "add", "added")
    before = run(project, "git", "status", "--short")
    with changed_workspace(project, {"seed": 3}, "us") as folder:
        assert (seed(folder), seed(project)) == (3, 0)
        assert (folder / "params.yaml").read_text().endswith("# edited\n")
        assert (folder / "added").read_text() == "added"
        assert not (folder / "gone").exists() and not (folder / "untracked").exists()
        with Repo(str(folder)) as copy, Repo(str(project)) as original:
            assert copy.cache.local.path == original.cache.local.path
    assert not folder.exists()
    assert run(project, "git", "status", "--short") == before
    assert run(project, "git", "fsck", "--unreachable") == ""


@pytest.mark.parametrize("kind", ["worktree", "shallow clone"])
def test_a_project_may_be_any_kind_of_clone(project, tmp_path, kind):
    clone = tmp_path / "clone"
    if kind == "worktree":  # of a bare repository
        run(tmp_path, "git", "clone", "--quiet", "--bare", str(project), "bare")
        run(tmp_path / "bare", "git", "worktree", "add", "--quiet", str(clone))
    else:
        run(project, "git", "commit", "--quiet", "--allow-empty", "--message", "second")
        run(tmp_path, "git", "clone", "--quiet", "--depth", "1", project.as_uri(), str(clone))
    (clone / "added").write_text("added")
    run(clone, "git", "add", "added")
    with changed_workspace(clone, {"seed": 3}, "us") as folder:
        assert seed(folder) == 3 and (folder / "added").exists()
        dvc(folder, "exp", "save", "--name", "result")
        fetch_experiment(clone, folder, "result")
    assert "+seed: 3" in shown(clone, "result")


def shown(project: Path, name: str) -> str:
    """What an experiment changed."""
    (ref,) = run(
        project, "git", "for-each-ref", "--format=%(refname)", f"refs/exps/**/{name}"
    ).split()
    return run(project, "git", "show", ref)


def test_flows_that_save_at_the_same_moment_all_keep_their_experiments(project):
    together = threading.Barrier(3)

    def work(seed: int) -> None:
        with changed_workspace(project, {"seed": seed}, "us") as folder:
            together.wait(PATIENCE)
            dvc(folder, "exp", "save", "--name", f"seed-{seed}")
            together.wait(PATIENCE)
            fetch_experiment(project, folder, f"seed-{seed}")

    seeds = range(1, together.parties + 1)
    with ThreadPoolExecutor(together.parties) as flows:
        list(flows.map(work, seeds))
    for number in seeds:
        assert f"+seed: {number}" in shown(project, f"seed-{number}")
    refs = run(project, "git", "for-each-ref", "--format=%(refname)").splitlines()
    assert len([ref for ref in refs if not ref.startswith("refs/heads/")]) == len(seeds)
    assert list((project / COPIES).iterdir()) == []


def test_what_a_killed_run_has_left_is_removed_by_the_next(project):
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
    assert list((project / COPIES).iterdir()) == []


def test_a_run_in_the_project_removes_what_killed_ones_have_left(project):
    kill(held_by_another(project, "changed_workspace", "{'seed': 1}, "))
    with project_workspace(project, "us"):
        assert copies(project) == []


def test_a_run_in_the_project_starts_with_no_params_of_a_killed_sweep_and_no_credentials(project):
    with project_workspace(project, "a sweep"):
        (project / KEPT).write_text("seed: 1\n")
    with project_workspace(project, "us"):
        assert not (project / KEPT).exists()
    with (project / "params.yaml").open("a") as params:
        params.write("mine: https://me:topsecret@host/x\n")
    with (
        pytest.raises(ConfigError, match="mine: the URL of https"),
        project_workspace(project, "us"),
    ):
        pass


def test_a_killed_run_may_start_again_while_another_removes_its_copy(project, monkeypatch):
    kill(held_by_another(project, "changed_workspace", "{'seed': 1}, "))
    rmtree, started = shutil.rmtree, []

    def start(folder: Path, **how: Any) -> None:
        """In place of the removal."""
        if started and folder != started[0]:
            rmtree(folder, **how)
        elif not started:
            started.append(folder)
            with changed_workspace(project, {"seed": 1}, "again") as copy:
                assert copy.exists() and copy != folder

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", start)
        with project_workspace(project, "us"):
            assert copies(project) == started
    with project_workspace(project, "us"):  # what is left of a removal that was killed goes, too
        assert {path.name for path in (project / COPIES).iterdir()} == {
            "workspace.json", "workspace.lock",
        }  # fmt: skip


def test_who_wants_what_is_held_while_leftovers_are_removed_waits_for_it(project):
    def work() -> bool:
        with project_workspace(project, "us"):
            return True

    (project / COPIES).mkdir()
    with ThreadPoolExecutor(1) as runs:
        with FileLock(project / COPIES / "workspace.lock").acquire(timeout=0):
            waiting = runs.submit(work)
            with pytest.raises(TimeoutError):
                waiting.result(0.1)
        assert waiting.result(PATIENCE)


def copies(project: Path) -> list[Path]:
    return [path for path in (project / COPIES).iterdir() if path.is_dir()]


def test_an_experiment_is_named_after_what_it_is_made_of(project):
    state = project_state(project)
    name = experiment_name("flow", state, {"seed": 1, "lr": 0.1})
    assert name == experiment_name("flow", state, {"lr": 0.1, "seed": 1})
    assert name != experiment_name("flow", state, {"lr": 0.1, "seed": 2})
    with (project / "params.yaml").open("a") as file:
        file.write("# edited\n")
    assert name != experiment_name("flow", project_state(project), {"lr": 0.1, "seed": 1})


@pytest.mark.parametrize(
    ("first", "changes", "stage"),
    [
        ("evaluate", {"lambda": 0.5}, "train"),
        ("report", {"overlap": 0.25, "seed": 1, "tile_size": 64}, "crop"),
        ("figures", {"overlap": 0.25}, "evaluate"),
        ("evaluate", {"model": "bit"}, "train"),
        ("train", {"dataset": "levir-cd"}, "download"),
    ],
)
def test_parameters_of_stages_before_the_first_are_refused(monkeypatch, first, changes, stage):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(flows, "changed_workspace", lambda *_: pytest.fail("something starts"))
    with pytest.raises(ConfigError, match=rf"is of stage {stage}, .*start from {stage}\."):
        flows.run_stages([first], changes)


@pytest.mark.parametrize(
    ("first", "changes"),
    [
        ("evaluate", {"overlap": 0.25, "device": "cpu"}),
        ("train", {"lambda": 0.5, "seed": 1}),
        ("train", {"model": "bit", "recipe": "common"}),
    ],
)
def test_parameters_of_the_stages_that_run_or_of_none_are_taken(monkeypatch, first, changes):
    def copy(_project: Path, taken: dict[str, Any], _who: str) -> NoReturn:
        raise WorkspaceError(f"a copy with {taken}")

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(flows, "changed_workspace", copy)
    with pytest.raises(WorkspaceError, match=re.escape(f"a copy with {changes}")):
        flows.run_stages([first], changes)


def test_a_run_amid_the_graph_notices_edits_of_its_network(monkeypatch, tmp_path):
    ran: list[str] = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(flows, "project_workspace", lambda *_: nullcontext(tmp_path))
    monkeypatch.setattr(flows, "end_with_worker", nullcontext)
    monkeypatch.setattr(flows, "run_stage", lambda name, *_: ran.append(name))
    for names, expected in {
        ("shard",): ["shard"],
        ("report",): ["report"],
        ("train",): ["network", "train"],
        ("figures", "report"): ["network", "figures", "report"],
        ("network", "train"): ["network", "train"],
    }.items():
        flows.run_stages(list(names), {})
        assert ran == expected
        ran.clear()

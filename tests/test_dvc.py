"""The project under DVC, end to end, on a tiny data set of the user's own."""

import ast
import base64
import json
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import pandas as pd
import psutil
import pytest
from PIL import Image
from ruamel.yaml import YAML
from upath import UPath

import dsfer
from dsfer.files import read_json
from dsfer.models import MODELS
from pipeline.network import source_files
from tests.project import (
    ROOT,
    STAGES,
    checkpoint_appears,
    command,
    commit,
    dvc,
    environment,
    executed,
    restore,
    run,
)
from tests.store import SECRET, upload
from tests.test_own_model import LINE, MODULE, RECIPE
from tests.waiting import wait_for

pytestmark = pytest.mark.xdist_group("dvc")  # one process: the project below is run only once


def test_a_second_repro_does_nothing(project):
    assert "Data and pipelines are up to date." in dvc(project, "repro")
    assert run(project, "git", "status", "--short") == ""


def test_the_bundle_that_training_leaves_says_where_it_comes_from(project):
    results = project / "data/folder/tiny/models/dsfer-net"
    about = dsfer.load(results / "training").metadata.about
    assert (about["dataset"], about["recipe"]) == ("folder/tiny", "modern")
    assert (about["seed"], about["iterations"]) == (0, 2)
    assert about["split_hash"] == read_json(results / "evaluation/metrics.json")["split_hash"]
    history = pd.read_csv(results / "training/history.csv").set_index("step")
    best = about["best"]
    assert best["val/F1"] == pytest.approx(history.loc[best["step"], "val/F1"], nan_ok=True)


def append(file: Path, text: str) -> None:
    with file.open("a") as opened:
        opened.write(text)


def test_another_network_is_added_and_edited_at_no_cost_to_this_one(project):
    """That of docs/own-model.md, with its recipe; an edit of its own file trains this one anew."""
    models = project / "dsfer/models"
    try:
        (models / "small_net.py").write_text(MODULE)
        registry = (models / "registry.py").read_text()
        (models / "registry.py").write_text(
            registry.replace("MODELS = {\n", f"MODELS = {{\n{LINE}")
        )
        append(project / "pipeline/recipes.yaml", f"\n{RECIPE}")
        printed = dvc(project, "repro")
        assert executed(printed) == ["network"]
        assert "Stage 'train' didn't change" in printed
        append(models / "small_net.py", "# edited\n")
        append(models / "bit.py", "# edited\n")
        assert executed(dvc(project, "repro")) == ["network"]
        append(models / "vgg.py", "# edited\n")
        assert executed(dvc(project, "repro", "train")) == ["network", "train"]
        status = dvc(project, "status", "evaluate", "figures")
        assert status.count("network.json") == 2
    finally:
        (models / "small_net.py").unlink()
        restore(project)


def processes_in(folder: Path) -> list[psutil.Process]:
    """Processes whose current folder it is."""
    found = psutil.process_iter(["cwd"])
    return [process for process in found if process.info["cwd"] == str(folder)]


@pytest.mark.slow
def test_a_killed_experiment_goes_on_and_runs_only_what_depends_on_lambda(project):
    """On two processes, which end with the command that started them."""
    start = command("exp", "run", "-S", "lambda=0.7", "-S", "iterations=20", "-S", "processes=2")
    killed = subprocess.Popen(
        start, cwd=project, env=environment(), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    saved = checkpoint_appears(project, killed)
    found = processes_in(project)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert saved and len(found) >= 4  # DVC, the launcher and two that train
    wait_for(lambda: not processes_in(project))
    printed = run(project, *start)
    assert executed(printed) == ["train", "evaluate", "figures", "report"]
    assert "continuing from step" in printed
    assert not list((project / ".dvc/tmp/resume").glob("*/last.pt"))  # finished: no state
    changed = json.loads(dvc(project, "params", "diff", "--json"))["params.yaml"]
    assert changed["lambda"] == {"old": None, "new": 0.7}
    metrics = json.loads(dvc(project, "metrics", "diff", "--json"))
    evaluated = metrics["data/folder/tiny/models/dsfer-net/evaluation/metrics.json"]
    assert evaluated["iterations"] == {"old": 2, "new": 20, "diff": 18}
    restore(project)


def test_the_plates_are_in_the_report(project):
    folder = project / "data/folder/tiny/models/dsfer-net"
    drawn = json.loads((folder / "figures/figures.json").read_text())
    names = [figure["name"] for figure in drawn["figures"]]
    tiles = len(drawn["tiles"])
    assert names == ["comparison", "difference", "retrieval"] + [
        f"evidence-{number}" for number in range(1, tiles + 1)
    ]
    assert list(drawn["methods"]) == ["dsfer-net"]
    page = (folder / "report.html").read_text()
    for name in names:
        assert (folder / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        picture = (folder / "figures" / f"{name}.png").read_bytes()
        assert base64.b64encode(picture).decode() in page


def test_plots_are_drawn_without_a_network(project):
    run(project, sys.executable, "-m", "pipeline.plots")
    dvc(project, "plots", "show")
    page = (project / "dvc_plots/index.html").read_text()
    assert "Training loss" in page and "Change class on the validation split" in page
    assert "<script src" not in page and '<script type="text/javascript" src' not in page


def test_own_imagery_that_changed_is_noticed(project):
    file = project.with_name("imagery") / "test/B/test0.png"
    before = file.read_bytes()
    picture = Image.open(file)
    picture.putpixel((0, 0), (1, 2, 3))
    picture.save(file)
    changed = dvc(project, "status", "crop")
    file.write_bytes(before)
    assert str(file.parents[2]) in changed
    assert "up to date" in dvc(project, "status", "crop")


def test_impossible_parameters_stop_before_any_work(project):
    printed = dvc(project, "exp", "run", "--temp", "-S", "dataset=lever-cd", fails=True)
    assert executed(printed) == ["download"]
    assert "unknown data set 'lever-cd'" in printed and "levir-cd" in printed
    assert not (project / "data/lever-cd").exists()
    assert run(project, "git", "status", "--short") == ""


def test_push_and_pull_carry_everything_to_another_clone(project, store, tmp_path):
    """Through a bucket; the credentials are the environment's and come to lie nowhere."""
    other = tmp_path / "other"
    UPath("s3://remote").mkdir()
    for command_ in (["remote", "add", "--default", "--force", "bucket", "s3://remote"], ["push"]):
        dvc(project, *command_)
    commit(project, "remote")
    run(tmp_path, "git", "clone", "--quiet", str(project), str(other))
    dvc(other, "pull")
    assert "Data and pipelines are up to date." in dvc(other, "repro")
    page = "data/folder/tiny/models/dsfer-net/report.html"
    assert (other / page).read_bytes() == (project / page).read_bytes()
    run(project, "git", "reset", "--quiet", "--hard", "HEAD~1")
    restore(project)


@pytest.mark.slow
def test_imagery_and_shards_that_move_to_a_bucket_change_no_result(project, store):
    imagery = upload(project.with_name("imagery"), "s3://moved/imagery")
    moves = ["-S", f"source={imagery}", "-S", "shards=s3://moved/shards"]
    printed = dvc(project, "exp", "run", *moves)
    assert executed(printed) == ["download", "crop", "validate", "shard"]  # and no training
    shards = project / "data/folder/tiny/shards"
    assert list(shards.rglob("*.tar")) == []
    assert len(list(UPath("s3://moved/shards/folder/tiny").rglob("*.tar"))) == 3
    assert "up to date" in dvc(project, "status")
    leaked = run(project, "grep", "--recursive", "--files-with-matches", SECRET, ".", fails=True)
    assert leaked == ""
    changed = imagery / "test/B/test0.png"
    changed.write_bytes((imagery / "test/A/test0.png").read_bytes())
    assert str(imagery) in dvc(project, "status", "crop")
    restore(project)


# What a stage imports and need not declare.
NO_RESULT = {  # messages, files, processes and parameters: none of them makes a number
    "dsfer/errors.py", "dsfer/files.py", "dsfer/paths.py", "dsfer/data/workers.py",
    "dsfer/data/shard_cache.py", "dsfer/checkpoint.py", "dsfer/devices.py",
    "dsfer/launcher.py", "dsfer/memory.py", "dsfer/signals.py", "dsfer/console.py",
    "pipeline/frozen.py", "pipeline/params.py", "pipeline/catalog.py", "pipeline/recipes.py",
    "pipeline/download.py", "pipeline/cluster.py", "pipeline/workspace.py",
    "pipeline/stages/__init__.py",
}  # fmt: skip
FORMATS = {  # whoever reads a file depends on the file; whoever writes it declares the module
    "dsfer/data/manifest.py", "dsfer/data/scenes.py", "dsfer/data/shards.py",
    "dsfer/data/shard_index.py", "dsfer/data/tars.py", "dsfer/weights.py", "pipeline/results.py",
}  # fmt: skip
TRAINING = {  # building a training, and several processes
    "dsfer/training.py", "dsfer/distributed.py", "dsfer/averaging.py",
    "dsfer/data/augmentation.py", "dsfer/optimisation.py",
}  # fmt: skip
UNUSED = {  # imported by a module that is declared, for a part of it that the stage does not call
    "train": {"dsfer/prediction.py", "pipeline/network.py"},  # stitching; the name of its state
    "figures": {"dsfer/metrics.py", "dsfer/data/batches.py", *TRAINING},  # counts of a split
    "evaluate": {"dsfer/losses.py", *TRAINING},
}
RECORD = "data/${dataset}/models/${model}/network.json"
"""What stages depend on for what they use of `dsfer/models`."""

ASKED_FOR = {"dsfer_net.py", "frnet.py", "hopfield.py"}
"""Of these, code outside `dsfer/models` uses what the network is an instance of: its own files."""


@cache
def imported(file: Path) -> list[Path]:
    """Modules of this project that a module imports."""
    found = []
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            path = Path(*name.split("."))
            if path.parts[0] in ("dsfer", "pipeline"):
                for each in (path.with_suffix(".py"), path / "__init__.py"):
                    if (ROOT / each).is_file():
                        found.append(each)
    return found


@cache
def needed(model: str) -> set[Path]:
    """Files of `dsfer/models` that a network needs."""
    return set(source_files(model))


def behind(stage: str) -> set[str]:
    """Code that makes a stage's result: its module and all that this imports."""
    found: set[str] = set()
    todo = [Path(f"pipeline/stages/{stage}.py")]
    while todo:
        file = todo.pop()
        name = "dsfer/models" if file.parts[:2] == ("dsfer", "models") else file.as_posix()
        packages = {"dsfer/__init__.py", "dsfer/data/__init__.py", "pipeline/__init__.py"}
        if name not in found | NO_RESULT | packages:
            found.add(name)
            todo += imported(file)
    return found


@pytest.mark.parametrize("stage", ["train", "evaluate", "figures"])
def test_what_a_stage_uses_of_the_networks_counts_for_each(stage):
    used = {file for name in behind(stage) - {"dsfer/models"} for file in imported(Path(name))}
    used = {ROOT / file for file in used if file.parts[:2] == ("dsfer", "models")}
    used -= {ROOT / "dsfer/models" / name for name in ("registry.py", *ASKED_FOR)}
    assert ROOT / "dsfer/models/output.py" in used
    for model in MODELS:
        assert used <= needed(model), model


@pytest.mark.parametrize("stage", STAGES)
def test_stages_declare_the_code_behind_them(stage):
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    assert list(stages) == STAGES
    deps = {str(dep) for dep in stages[stage]["deps"]}
    declared = {dep for dep in deps if dep.endswith(".py") or dep == "dsfer/models"}
    declared |= {"dsfer/models"} if RECORD in deps else set()
    assert declared <= behind(stage)
    assert behind(stage) - declared <= FORMATS | UNUSED.get(stage, set())

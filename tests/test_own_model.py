"""docs/own-model.md, followed word by word: a file, a line, a recipe, and the stages run."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.project import ROOT, commit, copy_project, environment
from tests.test_methods import TINY, configure, prepared  # noqa: F401 - a fixture

PAGE = (ROOT / "docs/own-model.md").read_text(encoding="utf-8")
MODULE, LINE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(RECIPE,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)

STAGES = """
from pipeline.stages import evaluate, figures, report, train

for stage in (train, evaluate, figures, report):
    stage.main()
"""


@pytest.fixture
def own_project(prepared: Path, tmp_path: Path) -> Path:  # noqa: F811
    """The project with the page's network in it, and prepared data."""
    copy_project(tmp_path)
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    (tmp_path / "dsfer/models/small_net.py").write_text(MODULE)
    catalog = tmp_path / "dsfer/models/__init__.py"
    before, after = catalog.read_text().split("MODELS = {\n")
    catalog.write_text(f"{before}MODELS = {{\n{LINE}{after}")
    commit(tmp_path, "a network of one's own")
    return tmp_path


def python(folder: Path, code: str) -> str:
    """What a program prints that runs on the copy's code."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, text=True, check=False,
        env=environment() | {"PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_a_file_and_a_line_put_a_network_through_the_stages(own_project):
    configure(own_project, model="small-net")
    python(own_project, STAGES)
    out = own_project / "data" / TINY["dataset"] / "models/small-net"
    metrics = json.loads((out / "evaluation/metrics.json").read_text())
    assert (metrics["model"], metrics["recipe"]) == ("small-net", "common")
    assert metrics["tiles"]["n"] == 1
    assert "small-net" in (out / "report.html").read_text()
    recipes = own_project / "pipeline/recipes.yaml"
    recipes.write_text(f"{recipes.read_text()}\n{RECIPE}")
    shown = python(own_project, "from pipeline.params import main; main()")
    assert "recipe small-net" in shown and "default of small-net" in shown

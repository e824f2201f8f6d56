"""Which files count for a network: those that building it loads, and no other network's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dsfer.errors import ConfigError
from dsfer.models import MODELS, Method
from pipeline import network
from pipeline.network import network_code, source_files
from pipeline.params import ENCODERS, REDRAWN
from tests.project import ROOT

LOADED = """
import json
import sys

found = {}
for name, builds in json.loads(sys.argv[1]).items():
    found[name] = set()
    for options in builds:
        for module in [each for each in sys.modules if each.partition(".")[0] == "dsfer"]:
            del sys.modules[module]
        import dsfer

        before = set(sys.modules)
        dsfer.create_model(name, **{"width": 0.125} | options)
        found[name] |= {
            module for module in set(sys.modules) - before if module.startswith("dsfer.models.")
        }
print(json.dumps({name: sorted(modules) for name, modules in found.items()}))
"""
"""Modules that building each network loads, all its options together."""


def builds(name: str) -> list[dict]:
    """Options with which a network is built, so that all its parts are."""
    variants = list(MODELS[name].variants.values()) or [{}]
    encoders = [{"encoder": encoder} for encoder in ENCODERS if name == "dsfer-net"]
    others = [{"encoder": "resnet34", "width": 1}] if name == "dsfer-net" else []
    redrawn = [{"released_init": True}] if name in REDRAWN else []
    return [*variants, *encoders, *others, *redrawn]


def test_the_files_of_a_network_are_those_that_building_it_loads():
    """Beside the package itself and variants.py, which the registry loads for all."""
    options = json.dumps({name: builds(name) for name in MODELS})
    printed = subprocess.run(
        [sys.executable, "-c", LOADED, options], cwd=ROOT, check=True, stdout=subprocess.PIPE
    ).stdout
    loaded = json.loads(printed)
    assert loaded.keys() == MODELS.keys()
    for name, modules in loaded.items():
        files = {file.relative_to(ROOT).as_posix() for file in source_files(name)}
        assert "dsfer/models/__init__.py" in files
        own = files - {"dsfer/models/__init__.py", "dsfer/models/variants.py"}
        assert own == {f"{module.replace('.', '/')}.py" for module in modules}, name
    assert ROOT / "dsfer/models/variants.py" in source_files("dsfer-net")


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `dsfer` in which a network imports in every way that a statement can."""
    files = {
        "dsfer/__init__.py": "",
        "dsfer/blocks.py": "from dsfer.models import far",
        "dsfer/models/__init__.py": "from dsfer.models.registry import MODELS",
        "dsfer/models/registry.py": "from dsfer.models import other\nMODELS = {}",
        "dsfer/models/mine.py": (
            "import torch\n"
            "import dsfer.models.whole as whole\n"
            "from dsfer.models.name import layer\n"
            "from dsfer.models import module\n"
            "from . import near\n"
            "from .parts.deep import block\n"
            "from dsfer.blocks import far\n"
            "def build():\n"
            "    from dsfer.models.late import layer\n"
        ),
        **{f"dsfer/models/{name}.py": "" for name in ("whole", "name", "module", "near", "late")},
        **{f"dsfer/models/{name}.py": "" for name in ("far", "other", "third")},
        "dsfer/models/parts/__init__.py": "",
        "dsfer/models/parts/deep.py": "from ..second import layer",
        "dsfer/models/second.py": "",
    }
    write(tmp_path, files)
    monkeypatch.setattr(network, "ROOT", tmp_path)
    monkeypatch.setitem(MODELS, "mine", Method("dsfer.models.mine.Mine"))
    return tmp_path / "dsfer/models"


def test_every_statement_that_imports_counts_and_no_neighbour(mine):
    assert [file.relative_to(mine).as_posix() for file in source_files("mine")] == [
        "__init__.py", "far.py", "late.py", "mine.py", "module.py", "name.py", "near.py",
        "parts/__init__.py", "parts/deep.py", "second.py", "whole.py",
    ]  # fmt: skip


def test_an_edit_of_a_file_or_of_the_entry_is_seen(mine, monkeypatch):
    before = network_code("mine")
    for name in ("other.py", "third.py", "registry.py"):
        (mine / name).write_text("# edited")
    monkeypatch.setitem(MODELS, "third", Method("dsfer.models.third.Third"))
    assert network_code("mine") == before
    for file in source_files("mine"):
        text = file.read_text()
        file.write_text(f"{text}\n# edited")
        assert network_code("mine") != before
        file.write_text(text)
    assert network_code("mine") == before
    entry = Method("dsfer.models.mine.Mine", variants={"small": {"width": 0.5}})
    monkeypatch.setitem(MODELS, "mine", entry)
    assert network_code("mine") != before


def test_an_entry_without_its_module_is_told(mine):
    (mine / "mine.py").unlink()
    with pytest.raises(ConfigError, match=r"mine is to be in module dsfer\.models\.mine, which is"):
        source_files("mine")

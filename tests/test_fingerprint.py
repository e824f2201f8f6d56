"""The name of a training run: with which other parameters a killed one may be continued."""

import shutil
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import network
from pipeline.frozen import read_yaml
from pipeline.params import current_settings
from pipeline.stages.train import MACHINE_KEYS, run_fingerprint
from tests.project import ROOT

OWN = {"dataset": "folder/mine", "source": "imagery", "tile_size": 64}

TILES = SimpleNamespace(
    split_hash="0123456789ab", ids=["a"], mean=(0.5,) * 3, std=(0.2,) * 3,
    class_frequency=(0.9, 0.1),
)  # fmt: skip

OTHER = {
    "device": "cpu", "processes": 2, "compile": False, "in_memory": True, "workers": 5,
    "cluster": 4, "overlap": 0.25, "figures": ["a"], "source": "elsewhere", "shards": "s3://b/f",
}  # fmt: skip
"""Values of parameters that do not change training, other than those of params.yaml."""

IN_THE_SPLIT = {"source", "shards"}
"""Parameters of the stages before training that say where pixels lie: the hash of the split and the
statistics of the shards say which."""


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def fingerprint(**changes: Any) -> str:
    return run_fingerprint(current_settings(OWN | changes), TILES, TILES)


def test_parameters_that_training_does_not_depend_on_leave_a_run_its_state():
    stages = read_yaml(ROOT / "dvc.yaml")["stages"]
    names = list(stages)
    training, preparing = set(stages["train"]["params"]), set[str]()
    for name in names[: names.index("train")]:
        preparing |= set(stages[name]["params"])
    others = set(current_settings(OWN).resolved()) - training - preparing
    assert others | IN_THE_SPLIT == set(OTHER) == set(MACHINE_KEYS)
    for key, value in OTHER.items():
        assert fingerprint(**{key: value}) == fingerprint(), key


@pytest.mark.parametrize("changes", [{"seed": 1}, {"lr": 1e-5}, {"label_rule": "binary01"}])
def test_a_run_of_other_parameters_is_another(changes):
    assert fingerprint(**changes) != fingerprint()


def test_a_run_goes_on_after_an_edit_of_another_network_not_of_its_own(monkeypatch, tmp_path):
    shutil.copytree(ROOT / "dsfer", tmp_path / "dsfer")
    monkeypatch.setattr(network, "ROOT", tmp_path)
    before = fingerprint()
    for name, same in {
        "bit.py": True,
        "new.py": True,
        "vgg.py": False,
        "__init__.py": False,
    }.items():
        with (tmp_path / "dsfer/models" / name).open("a") as file:
            file.write("# edited\n")
        assert (fingerprint() == before) == same, name
        before = fingerprint()

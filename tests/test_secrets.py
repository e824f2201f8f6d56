"""Secrets stay where they were put, nothing from outside is unpickled, and no shell is built."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.utilities.schema_tools.validation import is_valid
from ruamel.yaml import YAML

from dsfer.errors import ConfigError, DataError
from pipeline import flows
from pipeline.catalog import Archive
from pipeline.frozen import parse
from pipeline.prediction import predict
from tests.project import ROOT, SECRETS, STAGES, STORED, dvc

UNSAFE = re.compile(
    r"(c|_)?pickle\.(loads?|Unpickler)|(dill|cloudpickle|marshal)\.loads?|joblib\.load|shelve\.open"
    r"|pandas\.read_pickle|torch\.hub\.load|torch\.package\..*|yaml\.(load|load_all|(unsafe|full)_load)"
    r"|os\.(system|popen)|subprocess\.get(status)?output|eval|exec"
)
"""What runs code that a file or a string holds."""

WEIGHTS = re.compile(r"torch\.load|.*\.(get_state_dict|load_state_dict_from_url)")
"""What unpickles unless it is told to take tensors only."""

PROCESSES = re.compile(r"subprocess\.(run|Popen|call|check_call|check_output)")


def dangers(code: str) -> Iterator[str]:
    """Calls that could run what is none of our code."""
    tree, names = ast.parse(code), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            names |= {each.asname or each.name: module + each.name for each in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, dot, rest = ast.unparse(node.func).partition(".")
            name = names.get(first, f"({first})" if dot else first) + dot + rest
            options = {each.arg: ast.unparse(each.value) for each in node.keywords}
            command = node.args[0] if node.args else None
            if (
                UNSAFE.fullmatch(name)
                or (WEIGHTS.fullmatch(name) and options.get("weights_only") != "True")
                or options.get("allow_pickle", "False") != "False"
                or options.get("shell", "False") != "False"
                or "unsafe" in options.get("typ", "")
                or (PROCESSES.fullmatch(name) and isinstance(command, ast.Constant | ast.JoinedStr))
            ):
                yield ast.unparse(node)


@pytest.mark.parametrize(
    "code",
    [
        "import pickle\npickle.load(file)",
        "from pickle import loads as read\nread(content)",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "weights.get_state_dict(check_hash=True)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import pandas as pd\npd.read_pickle(path)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "from ruamel.yaml import YAML\nYAML(typ='unsafe')",
        "import os\nos.system(command)",
        "import subprocess\nsubprocess.run(command, shell=True)",
        "import subprocess as s\ns.Popen(f'unrar {path}')",
        "eval(text)",
    ],
)
def test_every_danger_is_seen(code):
    assert len(list(dangers(code))) == 1


@pytest.mark.parametrize("package", ["dsfer", "pipeline", "benchmarks"])
def test_no_code_from_outside_is_run(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    found = {file: list(dangers(file.read_text(encoding="utf-8"))) for file in files}
    assert {str(file): calls for file, calls in found.items() if calls} == {}


def test_shell_commands_hold_no_parameter():
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    assert {name: stage["cmd"] for name, stage in stages.items()} == {
        name: f"python -m pipeline.stages.{name}" for name in STAGES
    }


def test_a_password_in_a_mirror_is_refused_and_not_repeated():
    known = {"name": "a.zip", "kind": "zip", "by_hand": "from the homepage"}
    with pytest.raises(ConfigError, match=r"urls, host: .*netrc") as caught:
        parse(Archive, known | {"urls": ["https://me:secret@host/a.zip"]}, "catalog.yaml")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("s3://key:topsecret@bucket/x", False),
        ("s3://key:a/topsecret@bucket/x", False),
        ("s3://bucket/x?token=topsecret", False),
        ("s3://bucket/x@y", True),
        ("/data/a@b:c?d", True),
    ],
)
def test_prefect_keeps_no_credentials_of_a_url(value, kept):
    """Its server checks parameters by these schemas before it makes a run of them."""
    whole = {"pairs": "pairs.csv", "weights": "weights.safetensors", "out": "maps"}
    for flow, parameters in (
        (flows.pipeline, {"source": value}),
        (flows.stage, {"name": "train", "shards": value}),
        (flows.sweep, {"grid": {"source": ["/data", value]}}),
        (flows.benchmark, {"changes": {"shards": value}}),
        (flows.benchmark, {"out": value}),
        (flows.pipeline, {"pretrained": value}),
        *((predict, whole | {name: value}) for name in whole),
    ):
        assert is_valid(parameters, flow.parameters.model_dump()) == kept, flow.name


def test_prefect_keeps_no_credentials_of_a_scheduler():
    given = {"pairs": "pairs.csv", "weights": "weights.safetensors", "out": "maps"}
    schema = predict.parameters.model_dump()
    for cluster, kept in ((None, True), (2, True), ("tcp://host:8786", True),
                          ("tcp://me:topsecret@host:8786", False)):  # fmt: skip
        assert is_valid(given | {"cluster": cluster}, schema) == kept


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("s3://key:topsecret@bucket/x", "s3://bucket/x"),
        ("s3://key:top/secret@bucket/x", "s3://bucket/x"),
        ("https://host:80/x@2?sig=topsecret", "https://host:80/x@2?..."),
        ("/data/a@b:c?d", "/data/a@b:c?d"),
    ],
)
def test_errors_show_no_credentials_of_a_url(address, shown):
    """Not even of one that became a path, which loses a slash."""
    said = str(DataError(f"no {address}", where=address))
    assert said == f"{shown}: no {shown}."
    path = Path(address)
    assert str(DataError(f"no {path}", where=path)) == said.replace("://", ":/")


@pytest.mark.xdist_group("dvc")
def test_secrets_are_in_no_output_experiment_or_log(project):
    dvc(project, "exp", "save", "--force", "--name", "secrets")
    listing = ["git", "cat-file", "--batch-all-objects", "--batch"]
    objects = subprocess.run(listing, cwd=project, capture_output=True, check=True).stdout
    held = {"git": objects} | {
        str(file.relative_to(project)): file.read_bytes()
        for file in project.rglob("*")
        if file.is_file() and ".git" not in file.parts
    }
    assert b"learning rate" in objects  # they are looked into, not only listed
    found = {
        (name, secret)
        for name, content in held.items()
        for secret in (*SECRETS.values(), STORED)
        if secret.encode() in content
    }
    assert found == {(".dvc/config.local", STORED)}

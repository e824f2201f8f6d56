"""A few damaged inputs for every reader, the same in each run; `tests.fuzzing` does many."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fuzzed_readers import READERS
from tests.fuzzing import TOKENS, damaged

INPUTS = 40

ROOT = Path(__file__).parents[1]


pytestmark = pytest.mark.xdist_group("fuzz")  # one process for all: its imports take seconds

CODE = """
import ctypes, json
from dataclasses import asdict
from tests import fuzzing
from tests.fuzzed_readers import READERS, Reader, copied
def crash(folder): ctypes.string_at(0)
def other(folder): [][0]
def unsound(folder): assert False, "unsound"
for read in (crash, other, unsound):
    READERS["faulty"] = Reader(copied(fuzzing.Path("params.yaml")), read)
    print(json.dumps(asdict(fuzzing.isolated("faulty", 2, None))), flush=True)
del READERS["faulty"]
fuzzing.main()
"""
"""Three readers with a fault each, then `python -m tests.fuzzing`."""

FAULTS = 3


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """What each of these readers did."""
    command = [sys.executable, "-c", CODE, "--examples", str(INPUTS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == FAULTS + len(READERS), done.stderr
    assert done.returncode == any(row["finding"] for row in rows[FAULTS:])
    return rows


@pytest.fixture(scope="module")
def outcomes(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What each of our readers did, by its name."""
    return {row["reader"]: row for row in rows[FAULTS:]}


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused_by_name(outcomes, name):
    outcome = outcomes[name]
    assert outcome["finding"] is None, outcome["finding"]
    assert outcome["inputs"] >= round(INPUTS * READERS[name].share)
    assert outcome["refused"] > 0
    assert outcome["refused"] + outcome["accepted"] == outcome["inputs"]


def test_crashes_other_errors_and_unsound_values_are_findings(rows):
    crash, other, unsound = (row["finding"] for row in rows[:FAULTS])
    assert "Segmentation fault" in crash and "in crash" in crash
    assert "IndexError" in other
    assert "AssertionError: unsound" in unsound


def test_every_edit_is_what_it_says():
    content = b"0123456789"
    assert damaged(content, [("flip", 11, 0)]) == b"0023456789"
    assert damaged(content, [("byte", 2, 65)]) == b"01A3456789"
    assert damaged(content, [("cut", 4, 0)]) == b"0123"
    assert damaged(content, [("delete", 2, 3)]) == b"0156789"
    assert damaged(content, [("double", 2, 3)]) == b"0123423456789"
    assert damaged(content, [("zero", 8, 9)]) == b"01234567\0\0"
    assert damaged(content, [("insert", 1, b"ab")]) == b"0ab123456789"
    assert damaged(b"lr: 10\n", [("value", 4, TOKENS[1])]) == b"lr: null\n"
    assert damaged(b"", [("flip", 3, 1), ("delete", 1, 2)]) == b""

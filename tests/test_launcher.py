"""How several processes that were launched together end, before they come to train."""

import os
import subprocess
import sys

import pytest

from tests.project import ROOT

RANK = (
    "from dsfer.console import run; from dsfer.errors import DataError, StoreError\n"
    "def main(): raise {}('no answer')\n"
    "run(main)"
)

LAUNCH = (
    "import sys; from dsfer.console import run; from dsfer.launcher import launch\n"
    "run(lambda: launch([sys.executable, '-c', sys.argv[1]], processes=2))"
)


@pytest.mark.parametrize(("kind", "status"), [("StoreError", os.EX_TEMPFAIL), ("DataError", 1)])
def test_a_launch_ends_with_the_status_of_its_ranks(kind, status):
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, RANK.format(kind)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    said = done.stderr.rstrip("\n").rpartition("\n")[2]
    assert said in {"error: no answer.", "error: rank 1: no answer."}  # whoever was first

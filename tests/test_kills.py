"""SIGKILL anywhere in the pipeline: the next runs end with the bytes of a run left alone."""

import re
import sys

import pytest

from tests.project import ROOT, STAGES, run

pytestmark = pytest.mark.xdist_group("kills")

KILL = re.compile(r"((?:dvc )?\w+) +(?:group|self|dvc) +(.+)")

INSIDE = {
    "train": r"os\.rename .* \.dvc/tmp/resume/\w+/last\.pt",
    "shard": r"os\.rename .*/shard-000000\.tar",
    "dvc shard": r"inside \.dvc/cache/files/md5/.*",
}
"""Where a checkpoint, a shard and a file of DVC's cache are cut off by a kill."""


def killed(*options: str) -> list[tuple[str, ...]]:
    """Where and at which write a round, or several, killed."""
    printed = run(ROOT, sys.executable, "-m", "tests.killer", *options)
    kills = [match.groups() for line in printed.splitlines() if (match := KILL.fullmatch(line))]
    assert f"the bytes of a run left alone; kills so far: {len(kills)}" in printed
    for where, what in INSIDE.items():
        assert any(kill[0] == where and re.fullmatch(what, kill[1]) for kill in kills), where
    return kills


def test_a_kill_inside_a_shard_a_file_of_the_cache_or_a_checkpoint_leaves_no_trace():
    assert len(killed("--few")) == len(INSIDE)


@pytest.mark.slow
def test_kills_everywhere_leave_no_trace():
    kills = killed("--kills", "20", "--seed", "0")
    assert len(kills) >= 20
    assert {where for where, _ in kills} >= {*STAGES, *(f"dvc {stage}" for stage in STAGES)}

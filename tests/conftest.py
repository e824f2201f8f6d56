"""What every test process is given before it imports anything, and fixtures of several files."""

import os

# One thread each, set before torch is imported: parallel test processes do not fight over
# the cores, and results do not depend on how many there are.
os.environ["OMP_NUM_THREADS"] = "1"

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disks import Disk, mounted
from tests.project import ROOT, STAGES, commit, executed, run
from tests.store import object_store

# A shell's background job ignores Ctrl-C, and whatever the tests start would with it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def site_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What DVC notes of every project beside it goes with the tests, not to `/var/tmp/dvc`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path_factory.mktemp("site")))
        yield


@pytest.fixture(scope="session")
def store() -> Iterator[str]:
    """A server that speaks S3, known by the environment from now on; its URL."""
    with object_store() as url:
        yield url


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, run once on the tiny data set; the state that the tests find is committed.

    DVC and its stages are forks of one process, which imports torch and all the rest once, not
    eleven times. As commands of their own they are run by `.ci/run`, and by tests of the flows.
    """
    folder = tmp_path_factory.mktemp("dvc") / "project"
    printed = run(ROOT, sys.executable, "-m", "tests.killable", str(folder))
    assert executed(printed) == STAGES
    assert "report: data/folder/tiny/models/dsfer-net/report.html" in printed
    commit(folder, "tiny")
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Disk]:
    """An empty disk of 24 MiB; the test is skipped where none can be mounted."""
    with mounted(tmp_path / "disk", 24) as disk:
        yield disk

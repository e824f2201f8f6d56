"""A real file system of a few megabytes, to fill up or to write-protect."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PAGE = 4096


class Disk:
    """A mounted tmpfs.

    Attributes:
        folder: where it is mounted.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._ballast = folder / ".ballast"

    def fill(self, room: int = 0) -> None:
        """Leave `room` bytes, to the page."""
        with self._ballast.open("wb", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, max(shutil.disk_usage(self.folder).free - room, 1))

    def clear(self) -> None:
        """Make room again."""
        self._ballast.unlink()

    def protect(self) -> None:
        """Let nothing be written any more."""
        mount("-o", "remount,ro", str(self.folder))


def mount(*arguments: str) -> None:
    """Mount, or skip the test where that is not allowed."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a file system")
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


@contextmanager
def mounted(folder: Path, megabytes: int) -> Iterator[Disk]:
    """A disk that is there for the length of the block."""
    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder))
    try:
        yield Disk(folder)
    finally:
        # Lazily: memory maps of shards live until they are collected.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)

"""Shards of an object store on this machine's disk: fetched when first needed, checked by hash.

fsspec's caching file systems do not compare hashes, and two processes may write one file of theirs.
"""

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from filelock import FileLock
from rich.filesize import decimal

from dsfer.errors import DataError, ShardError
from dsfer.files import atomic_path, sha256_file
from dsfer.paths import download

_log = logging.getLogger(__name__)

FOLDER = "DSFER_CACHE"
"""Environment variable that names the folder: it speaks of a machine, not of a project."""


@dataclass(frozen=True)
class ShardCache:
    """A folder of shards that are named after their SHA-256; any number of processes may share it.

    Whatever lies in it may be deleted between runs.

    Attributes:
        folder: where the shards lie.
    """

    folder: Path

    @classmethod
    def of_this_machine(cls) -> Self:
        """The cache in the folder that `DSFER_CACHE` names, or in `~/.cache/dsfer`."""
        return cls(Path(os.environ.get(FOLDER) or "~/.cache/dsfer").expanduser())

    def require_room(self, sizes: Mapping[str, int]) -> None:
        """Refuse to begin what the disk cannot hold.

        Args:
            sizes: bytes of each shard that will be needed, by its SHA-256.

        Raises:
            DataError: what is still to be fetched of them is more than what is free.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = sum(size for sha256, size in sizes.items() if not self._path(sha256).is_file())
        free = shutil.disk_usage(self.folder).free
        if missing > free:
            raise DataError(
                f"{decimal(missing)} of shards are to be fetched, and {decimal(free)} are free",
                where=self.folder,
                mend=f"make room, or set {FOLDER} to a folder on a larger disk",
            )

    def fetch(self, url: str, sha256: str, size: int) -> Path:
        """The file of a shard; the first process that needs it downloads it, and the others wait.

        Args:
            url: where it lies in the store.
            sha256: 64 hex digits that it must hash to.
            size: its bytes.

        Raises:
            ShardError: there is no such object, or its content is another one.
            StoreError: the store does not answer, or refuses.
        """
        path = self._path(sha256)
        with self._lock(path):
            if not path.is_file() or path.stat().st_size != size:
                _download(url, path, sha256)
        return path

    def verify(self, sha256: str) -> None:
        """Remove the file of a shard if it was damaged, so that it is fetched again."""
        path = self._path(sha256)
        with self._lock(path):
            if path.is_file() and (found := sha256_file(path)) != sha256:
                _log.warning("%s has SHA-256 %s: removed, to be fetched again", path, found)
                path.unlink()

    def _path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.tar"

    def _lock(self, path: Path) -> FileLock:
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(path.with_suffix(".lock"))


def _download(url: str, path: Path, sha256: str) -> None:
    """Fetch a shard, which gets its name once it has the hash that it should."""
    mend = "run the shard stage again"
    with atomic_path(path, flush=False) as temporary:
        try:
            download(url, temporary)
        except FileNotFoundError as error:
            raise ShardError(
                "no such shard, but the index lists it", where=url, mend=mend
            ) from error
        if (found := sha256_file(temporary)) != sha256:
            raise ShardError(f"has SHA-256 {found}, the index says {sha256}", where=url, mend=mend)

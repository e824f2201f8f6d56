"""Shards of an object store on this machine's disk: fetched when first needed, checked by hash.

fsspec's caching file systems do not compare hashes, and two processes may write one file of theirs.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from dsfer.errors import ConfigError, ShardError
from dsfer.files import atomic_path, sha256_file
from dsfer.paths import download

_log = logging.getLogger(__name__)

FOLDER, LIMIT = "DSFER_CACHE", "DSFER_CACHE_GB"
"""Environment variables: they speak of a machine, not of a project."""


@dataclass(frozen=True)
class ShardCache:
    """A folder of shards that are named after their SHA-256; any number of processes may share it.

    It may be deleted at any time, as may each file in it.

    Attributes:
        folder: where the shards lie.
        limit: bytes that they may take together, or None for no limit. What was used longest ago
            makes room; what is just being fetched comes on top.
    """

    folder: Path
    limit: int | None = None

    @classmethod
    def of_this_machine(cls) -> Self:
        """The cache in `DSFER_CACHE`, or `~/.cache/dsfer`, of up to `DSFER_CACHE_GB` gigabytes.

        Raises:
            ConfigError: the limit is no positive number.
        """
        folder = os.environ.get(FOLDER) or "~/.cache/dsfer"
        text = os.environ.get(LIMIT) or "inf"
        try:
            size = float(text)
        except ValueError:
            size = 0.0
        if not size > 0:
            raise ConfigError(
                f"'{text}' is no number of gigabytes",
                where=LIMIT,
                mend="set it to a number above 0, or unset it for no limit",
            )
        limit = None if size == float("inf") else int(size * 1e9)
        return cls(Path(folder).expanduser(), limit)

    @contextmanager
    def entry(self, url: str, sha256: str, size: int) -> Iterator[Path]:
        """Yield the file of a shard, fetched if it is not there; nobody removes it meanwhile.

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
                self._make_room(size)
                self._fetch(url, path, sha256)
            os.utime(path)  # when it was last used
            yield path

    def verify(self, sha256: str) -> None:
        """Remove the file of a shard if it was damaged, so that it is fetched again."""
        path = self._path(sha256)
        with self._lock(path):
            if path.is_file() and (found := sha256_file(path)) != sha256:
                _log.warning("%s has SHA-256 %s: removed, to be fetched again", path, found)
                path.unlink()

    def _path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.tar"

    def _lock(self, path: Path, timeout: float = -1) -> FileLock:
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(path.with_suffix(".lock"), timeout)

    def _fetch(self, url: str, path: Path, sha256: str) -> None:
        with atomic_path(path, flush=False) as temporary:
            try:
                download(url, temporary)
            except FileNotFoundError as error:
                raise ShardError(
                    "no such shard, but the index lists it",
                    where=url,
                    mend="run the shard stage again",
                ) from error
            found = sha256_file(temporary)
            if found != sha256:
                raise ShardError(
                    f"has SHA-256 {found}, the index says {sha256}",
                    where=url,
                    mend="run the shard stage again",
                )

    def _make_room(self, size: int) -> None:
        if self.limit is None:
            return
        files = sorted(self.folder.glob("*.tar"), key=lambda file: file.stat().st_mtime)
        taken = size + sum(file.stat().st_size for file in files)
        for file in files:
            if taken <= self.limit:
                return
            try:
                with self._lock(file, timeout=0):
                    taken -= file.stat().st_size
                    file.unlink()
            except Timeout:  # somebody is just opening it
                continue

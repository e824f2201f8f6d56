"""Shards: the WebDataset tars of one split, and the verified random access that training reads by.

A shard's index is read once; after that a tile is two copies out of a memory map, in any order.
That makes shuffling exact and resuming a matter of one integer. Shards lie beside their index, or
in an object store from which each is fetched when the first of its tiles is read.
"""

import hashlib
import json
import logging
import operator
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from dsfer.data.manifest import read_manifest, write_manifest
from dsfer.data.shard_cache import ShardCache
from dsfer.data.shard_index import REWRITE, SCHEMA, ShardEntry, ShardIndex, read_index, write_index
from dsfer.data.tars import MEMBERS, Pixels, check_folder, npy_header, tar_members, write_tar
from dsfer.data.workers import Spread, check_written
from dsfer.errors import DataError, ShardError, StoreError
from dsfer.files import atomic_folder, atomic_object, remove_temporary, sha256_file
from dsfer.paths import AnyPath, location, upload

_log = logging.getLogger(__name__)

TILES_PER_SHARD = 512


class Statistics(NamedTuple):
    """What a network needs to know about the pixels of the training split.

    Attributes:
        mean: of each RGB band over both dates, 0 to 255.
        std: of each RGB band over both dates, 0 to 255.
        class_frequency: shares of the valid pixels that are unchanged and changed; they sum to 1.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_frequency: tuple[float, float]


def data_statistics(train: pd.DataFrame) -> Statistics:
    """Statistics of the training split from the sums in its manifest rows, exact to rounding.

    Args:
        train: manifest rows of the training split.

    Raises:
        DataError: no pixel of these rows is valid.
    """
    pixels = int(train["valid_pixels"].sum())
    if pixels == 0:
        raise DataError(
            "no valid pixel in the training split", mend="check the nodata values of the imagery"
        )
    # Python integers do not overflow, and the difference of two large numbers loses no digit.
    sums = [_total(train, f"{date}_sum") for date in ("t1", "t2")]
    squares = [_total(train, f"{date}_sum_of_squares") for date in ("t1", "t2")]
    n = 2 * pixels
    mean, std = [], []
    for band in range(3):
        total = sums[0][band] + sums[1][band]
        mean.append(total / n)
        std.append((n * (squares[0][band] + squares[1][band]) - total**2) ** 0.5 / n)
    changed = int(train["changed_pixels"].sum()) / pixels
    return Statistics(tuple(mean), tuple(std), (1 - changed, changed))


def _total(rows: pd.DataFrame, column: str) -> list[int]:
    return [int(value) for value in np.sum(np.stack(list(rows[column])).astype(np.int64), axis=0)]


def write_shards(
    tiles: Path,
    rows: pd.DataFrame,
    out: Path,
    *,
    split: str,
    split_hash: str,
    statistics: Statistics,
    spread: Spread,
    store: str | None = None,
    tiles_per_shard: int = TILES_PER_SHARD,
) -> None:
    """Copy the tiles of one split into shards, with an index; byte-identical on every run.

    The pixels are not decoded; each member is checked against its hash on the way.

    Args:
        tiles: output folder of the crop stage.
        rows: manifest rows of this split, in any order; they are stored by ascending id.
        out: folder to write; it is replaced as a whole, or left as it was on an error.
        split: name of the split.
        split_hash: hash of the split that every number downstream carries.
        statistics: mean, standard deviation and class frequency of the training split.
        spread: where shards are written; all of it must see `tiles` and `out`.
        store: URL of a folder in an object store, or None. Shards then go there, with a copy of
            index and manifest, into a folder named after the content: nothing that was published
            is ever changed.
        tiles_per_shard: tiles in each tar but the last.

    Raises:
        ShardError: a tar of the crop stage is missing or damaged, or disagrees with the manifest.
        DataError: there is no row, or a worker does not share `out`.
        StoreError: the object store does not answer, or refuses.
    """
    if rows.empty:
        raise DataError(
            f"the split {split!r} has no tile", where=tiles, mend="choose another split ratio"
        )
    rows = rows.sort_values("id", ignore_index=True)
    with atomic_folder(out) as folder:
        manifest = folder / "manifest.parquet"
        write_manifest(manifest, rows)
        manifest_sha256 = sha256_file(manifest)
        content = [SCHEMA, split_hash, statistics, tiles_per_shard, manifest_sha256]
        name = f"{split}-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]}"
        home = folder if store is None else location(store) / name
        starts = range(0, len(rows), tiles_per_shard)
        work = [
            (tiles, rows[start : start + tiles_per_shard], home / f"shard-{number:06d}.tar")
            for number, start in enumerate(starts)
        ]
        shards = tuple(spread(_write_shard, work, preload=["webdataset.writer"]))
        if isinstance(home, Path):  # a store has what it did not refuse
            for shard in shards:
                check_written(home / shard.file, shard.bytes)
        remove_temporary(folder)
        index = folder / "index.json"
        write_index(
            index,
            ShardIndex(
                name=name,
                manifest_sha256=manifest_sha256,
                split=split,
                split_hash=split_hash,
                tile_size=int(rows["size"].iloc[0]),
                count=len(rows),
                **statistics._asdict(),
                shards=shards,
                tiles=tuple(rows["id"]),
            ),
        )
        if not isinstance(home, Path):
            for file in (manifest, index):  # who finds an index finds all of it
                upload(file, home / file.name)


def _write_shard(work: tuple[Path, pd.DataFrame, AnyPath]) -> ShardEntry:
    """Write one shard; return its entry of the index."""
    tiles, rows, path = work
    check_folder(path)
    with atomic_object(path) as temporary:
        write_tar(temporary, _copied(tiles, rows))
        return ShardEntry(path.name, sha256_file(temporary), temporary.stat().st_size, len(rows))


def _copied(tiles: Path, rows: pd.DataFrame) -> Iterator[tuple[str, dict[str, bytes | memoryview]]]:
    """Members of each tile out of the crop tars, checked against the manifest."""
    tars: dict[str, tuple[npt.NDArray[np.uint8], dict[str, tuple[int, int]]]] = {}
    for row in rows.to_dict("records"):
        path = tiles / row["shard"]
        if row["shard"] not in tars:
            members = tar_members(path)
            tars[row["shard"]] = np.memmap(path, np.uint8, "r").view(np.ndarray), members
        data, members = tars[row["shard"]]
        contents: dict[str, bytes | memoryview] = {}
        for member in MEMBERS:
            name = f"{row['id']}.{member}.npy"
            if name not in members:
                raise ShardError(
                    f"holds no {name}, which the manifest lists",
                    where=path,
                    mend="run the crop stage again",
                )
            offset, size = members[name]
            content = data[offset : offset + size].data
            found, expected = hashlib.sha256(content).hexdigest(), row[f"{member}_sha256"]
            if found != expected:
                raise ShardError(
                    f"{name} has SHA-256 {found}, the manifest says {expected}",
                    where=path,
                    mend="run the crop stage again",
                )
            contents[member] = content
        yield row["id"], contents


class TileShards:
    """The tiles of one split in random access, memory-mapped; cheap to send to loader workers.

    Attributes:
        folder: where the index lies.
        split: `train`, `val` or `test`.
        split_hash: 12 hex digits that say how the data were split.
        ids: tile ids in order; item `i` is tile `ids[i]`.
        tile_size: side of a tile in pixels.
        mean: of each RGB band of the training split, 0 to 255.
        std: of each RGB band of the training split, 0 to 255.
        class_frequency: shares of unchanged and changed pixels of the training split.
        manifest: manifest rows, in the order of `ids`.

    Args:
        folder: what `write_shards` wrote, or its URL in an object store.
        store: the object store that the shards were written to, as given to `write_shards`.
        cache: where shards of an object store are kept; None is `ShardCache.of_this_machine()`.
        verify: compare the SHA-256 of every shard that is on this machine with the index (reads
            all of it once); processes that share this work take a slice of the shards each. Sizes,
            members and ids are always checked, and so is the SHA-256 of what is fetched; a damaged
            file of the cache is fetched again.

    Raises:
        ShardError: a shard or the index is missing, damaged, or disagrees with the others.
        StoreError: the object store does not answer, or refuses.
        DataError: the disk of the cache has no room for what is still to be fetched.
    """

    def __init__(
        self,
        folder: str | AnyPath,
        *,
        store: str | None = None,
        cache: ShardCache | None = None,
        verify: bool | slice = True,
    ):
        self.folder = location(folder)
        index = read_index(self.folder / "index.json")
        self.split, self.split_hash = index.split, index.split_hash
        self.ids, self.tile_size = index.tiles, index.tile_size
        self.mean, self.std = index.mean, index.std
        self.class_frequency = index.class_frequency
        self.manifest = _read_rows(
            self.folder / "manifest.parquet", self.ids, index.manifest_sha256
        )
        self._shards = index.shards
        self._first = np.cumsum([0, *(shard.count for shard in self._shards)])
        self._offsets: dict[int, npt.NDArray[np.int64]] = {}
        self._maps: dict[int, Pixels] = {}
        home = self.folder if store is None else location(store) / index.name
        self._home = str(home)  # as text: each thread and process opens a connection of its own
        self._cache: ShardCache | None = None
        if isinstance(verify, bool):
            verify = slice(None if verify else 0)
        compared = range(len(self._shards))[verify]
        if isinstance(home, Path):
            for number, shard in enumerate(self._shards):
                file = home / shard.file
                self._offsets[number] = self._checked(number, file, file, verify=number in compared)
        else:
            self._cache = cache or ShardCache.of_this_machine()
            for number in compared:
                self._cache.verify(self._shards[number].sha256)
            self._cache.require_room({shard.sha256: shard.bytes for shard in self._shards})
            _log.info(
                "shards of %s are fetched from %s and kept in %s",
                self.split, self._home, self._cache.folder,
            )  # fmt: skip

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> tuple[Pixels, Pixels]:
        """Pixels of tile `i`.

        Returns:
            Both dates, (2, h, w, 3) RGB uint8, and the label, (h, w) uint8 with 0 unchanged,
            1 changed, 255 ignore. Both are copies that the caller may write to.

        Raises:
            IndexError: there is no such tile.
        """
        i = operator.index(i)
        if not 0 <= i < len(self.ids):
            raise IndexError(f"tile {i} of {len(self.ids)}")
        number = int(np.searchsorted(self._first, i, side="right")) - 1
        data = self._map(number)
        side = self.tile_size
        label, t1, t2 = (
            data[offset : offset + side * side * bands].reshape(shape)
            for offset, bands, shape in zip(
                self._offsets[number][i - self._first[number]],
                (1, 3, 3),
                ((side, side), (side, side, 3), (side, side, 3)),
                strict=True,
            )
        )
        return np.stack((t1, t2)), label.copy()

    def _map(self, number: int) -> Pixels:
        """Memory map of a shard, opened on first use in each process."""
        if number not in self._maps:
            shard = self._shards[number]
            place = f"{self._home}/{shard.file}"
            if self._cache is None:
                file = Path(place)
            else:
                file = self._cache.fetch(place, shard.sha256, shard.bytes)
            if number not in self._offsets:
                self._offsets[number] = self._checked(number, file, place, verify=False)
            # The map keeps its own handle on the file; numpy closes the Python file at once.
            self._maps[number] = np.memmap(file, np.uint8, "r").view(np.ndarray)
        return self._maps[number]

    def _checked(
        self, number: int, file: Path, where: str | Path, *, verify: bool
    ) -> npt.NDArray[np.int64]:
        """Where the pixels of each tile of a shard begin in its file: (tiles, members) in bytes."""
        ids = self.ids[self._first[number] : self._first[number + 1]]
        shard = self._shards[number]
        return _checked_offsets(file, where, shard, ids, self.tile_size, verify=verify)

    def __getstate__(self) -> dict[str, Any]:
        """All but the memory maps: pickling one would send its pixels."""
        return self.__dict__ | {"_maps": {}}


def _read_rows(path: AnyPath, ids: Sequence[str], sha256: str) -> pd.DataFrame:
    """The manifest rows of the shards, in their order."""
    try:
        rows = read_manifest(path, sha256)
    except StoreError:
        raise
    except DataError as error:
        raise ShardError(error.problem, where=path, mend=REWRITE) from error
    if len(rows) != len(ids):
        raise ShardError(
            f"has {len(rows)} rows, the index lists {len(ids)} tiles", where=path, mend=REWRITE
        )
    for number, (found, expected) in enumerate(zip(rows["id"], ids, strict=True)):
        if found != expected:
            raise ShardError(
                f"row {number} is tile {found}, the index says {expected}",
                where=path,
                mend=REWRITE,
            )
    return rows


def _checked_offsets(
    path: Path,
    where: str | Path,
    shard: ShardEntry,
    ids: Sequence[str],
    side: int,
    *,
    verify: bool,
) -> npt.NDArray[np.int64]:
    """Where the pixels of each tile of a shard begin in its file: (tiles, members) in bytes.

    Errors speak of `where`, be it that file or the object that it is a copy of.
    """

    def damaged(problem: str) -> ShardError:
        return ShardError(problem, where=where, mend=f"{REWRITE}, or `dvc checkout` the shards")

    if not path.is_file():
        raise damaged("no such shard, but the index lists it")
    if (size := path.stat().st_size) != shard.bytes:
        raise damaged(f"has {size} bytes, the index says {shard.bytes}")
    if verify and (found := sha256_file(path)) != shard.sha256:
        raise damaged(f"has SHA-256 {found}, the index says {shard.sha256}")
    members = tar_members(path)
    expected = [f"{tile}.{member}.npy" for tile in ids for member in MEMBERS]
    if list(members) != expected:
        wrong = next(
            (pair for pair in zip(members, expected, strict=False) if pair[0] != pair[1]), None
        )
        raise damaged(
            f"member {wrong[0]} stands where the index expects {wrong[1]}"
            if wrong
            else f"holds {len(members)} members, the index expects {len(expected)}"
        )
    data = np.memmap(path, np.uint8, "r").view(np.ndarray)
    headers = {member: npy_header((side, side, 3)) for member in ("t1", "t2")}
    headers["label"] = npy_header((side, side))
    starts = []
    for number, (name, (offset, size)) in enumerate(members.items()):
        member = MEMBERS[number % len(MEMBERS)]
        header = headers[member]
        start = offset + len(header)
        pixels = side * side * (1 if member == "label" else 3)
        if data[offset:start].tobytes() != header or size != len(header) + pixels:
            raise damaged(f"member {name} is no uint8 array of {side} x {side} pixels")
        starts.append(start)
    return np.array(starts, np.int64).reshape(-1, len(MEMBERS))

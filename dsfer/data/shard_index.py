"""The index of a folder of shards: all that is known of them before one is opened."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, PositiveInt, TypeAdapter, ValidationError

from dsfer.errors import DataError, ShardError, StoreError
from dsfer.files import read_json, write_json
from dsfer.paths import AnyPath

SCHEMA: Literal[2] = 2

REWRITE = "run the shard stage again"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
OfBands = Annotated[tuple[FiniteFloat, ...], Field(min_length=3, max_length=3)]


@dataclass(frozen=True)
class ShardEntry:
    """One shard: a tar, what it must hash to, its bytes, and how many tiles it holds."""

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+\.tar$")]
    sha256: Sha256
    bytes: PositiveInt
    count: PositiveInt


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """What `index.json` holds.

    Attributes:
        name: of the folder in an object store.
        manifest_sha256: what the manifest beside the index must hash to.
        split: `train`, `val` or `test`.
        split_hash: 12 hex digits that say how the data were split.
        tile_size: side of a tile in pixels.
        count: number of tiles.
        mean: of each RGB band of the training split, 0 to 255.
        std: of each RGB band of the training split, 0 to 255.
        class_frequency: shares of unchanged and changed pixels of the training split.
        shards: the tars, in order.
        tiles: ids of the tiles, in order.
    """

    schema: Literal[2] = SCHEMA
    name: Name
    manifest_sha256: Sha256
    split: Name
    split_hash: Name
    tile_size: PositiveInt
    count: PositiveInt
    mean: OfBands
    std: OfBands
    class_frequency: tuple[FiniteFloat, FiniteFloat]
    shards: tuple[ShardEntry, ...]
    tiles: tuple[str, ...]


_FORM = TypeAdapter(ShardIndex)


def write_index(path: Path, index: ShardIndex) -> None:
    """Write the index of a folder of shards, atomically."""
    write_json(path, asdict(index))


def read_index(path: AnyPath) -> ShardIndex:
    """Read the index of a folder of shards.

    Raises:
        ShardError: it is missing or damaged, of another schema, or disagrees with itself.
        StoreError: it lies in an object store that does not answer, or refuses.
    """
    try:
        index = _FORM.validate_python(read_json(path))
    except StoreError:
        raise
    except DataError as error:
        raise ShardError(error.problem, where=path, mend=REWRITE) from error
    except ValidationError as error:
        issue = error.errors(include_url=False)[0]
        what = ".".join(str(part) for part in issue["loc"])
        raise ShardError(
            f"not an index of schema {SCHEMA} ({what}: {issue['msg']})", where=path, mend=REWRITE
        ) from error
    counts = (len(index.tiles), sum(shard.count for shard in index.shards))
    if counts != (index.count, index.count):
        raise ShardError(
            f"says {index.count} tiles, lists {counts[0]}, and its shards hold {counts[1]}",
            where=path,
            mend=REWRITE,
        )
    return index

"""Tars of tiles: the WebDataset files that both the crop stage and the shards are made of.

A tile is three members, `<id>.label.npy`, `<id>.t1.npy` and `<id>.t2.npy`. Raw `.npy` is chosen
over PNG because a memory map then serves pixels without decoding, at about twice the disk.
"""

import io
import platform
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from dsfer.errors import DataError, ShardError
from dsfer.files import naming
from dsfer.paths import AnyPath

Pixels: TypeAlias = npt.NDArray[np.uint8]

MEMBERS = ("label", "t1", "t2")
"""Members of a tile in the order in which WebDataset writes them (sorted by name)."""


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The bytes before the pixels in the `.npy` file of a C-ordered uint8 array of this shape."""
    file = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def npy_bytes(array: Pixels) -> bytes:
    """A uint8 array of any shape as the content of a `.npy` file."""
    return npy_header(array.shape) + array.tobytes()


def write_tar(path: Path, tiles: Iterable[tuple[str, dict[str, bytes | memoryview]]]) -> None:
    """Write tiles as a tar; the same tiles give the same bytes, whoever writes them and when.

    Args:
        path: file to write.
        tiles: id of each tile, and the `.npy` content of its three `MEMBERS`.
    """
    # Imported here, because it imports torch: seconds that only those who write should wait for.
    from webdataset.writer import TarWriter

    options: dict[str, Any] = {"encoder": False, "mtime": 0, "user": "", "group": "", "mode": 0o644}
    with naming(path), path.open("wb") as file, TarWriter(file, **options) as writer:
        for tile, members in tiles:
            writer.write({"__key__": tile} | {f"{name}.npy": members[name] for name in MEMBERS})


def check_folder(path: AnyPath) -> None:
    """Refuse to write a tar into a folder that is not there: who spreads the work has made it.

    Args:
        path: the tar, or an object of a store, which has no folders.

    Raises:
        DataError: this machine does not share the folder; or the work was given up and the folder
            removed, and nothing may stay in its place.
    """
    if isinstance(path, Path) and not path.parent.is_dir():
        raise DataError(
            f"the worker on {platform.node()} does not see the folder that it belongs in",
            where=path,
            mend="share the folder, so that all machines see the same files in it under this path, "
            "and run the stage again",
        )


def tar_members(path: Path) -> dict[str, tuple[int, int]]:
    """Where the content of each member of a tar lies: name -> (offset, size), in file order.

    Raises:
        ShardError: the file is missing or is no whole tar.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            members = {item.name: (item.offset_data, item.size) for item in tar}
    except FileNotFoundError as error:
        raise ShardError(
            "no such file", where=path, mend="run the stage that writes it again"
        ) from error
    except (tarfile.TarError, OSError) as error:
        raise ShardError(
            f"not a whole tar ({error})", where=path, mend="run the stage that writes it again"
        ) from error
    end = max((offset + size for offset, size in members.values()), default=0)
    if end > path.stat().st_size:
        raise ShardError(
            f"ends after {path.stat().st_size} bytes, inside a member that ends at {end}",
            where=path,
            mend="run the stage that writes it again",
        )
    return members

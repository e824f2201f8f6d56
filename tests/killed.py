"""What dies in a worker process; it imports little, for every such process imports it anew."""

import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from dsfer.data.tiles import Tile, Unit

T = TypeVar("T")


@dataclass(frozen=True)
class KilledOnce:
    """A unit of work whose process is killed in the middle, the first time that it is done."""

    unit: Unit
    mark: Path

    @property
    def count(self) -> int:
        return self.unit.count

    def tiles(self) -> Iterator[Tile]:
        return killed_once(self.unit.tiles(), self.count // 2, self.mark)


@dataclass(frozen=True)
class RowsKilledOnce:
    """Rows of a shard whose writer is killed in the middle, the first time."""

    rows: pd.DataFrame
    mark: Path

    def __len__(self) -> int:
        return len(self.rows)

    def to_dict(self, orient: str) -> Iterator[dict[str, Any]]:
        return killed_once(self.rows.to_dict(orient), len(self) // 2, self.mark)


def killed_once(things: Iterable[T], last: int, mark: Path) -> Iterator[T]:
    for number, thing in enumerate(things):
        if number == last and not mark.exists():
            mark.touch()
            kill(number)
        yield thing


def kill(_item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)

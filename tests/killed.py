"""What dies in a worker process; it imports little, for every such process imports it anew."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dsfer.data.tiles import Tile, Unit


@dataclass(frozen=True)
class KilledOnce:
    """A unit of work whose process is killed in the middle, the first time that it is done."""

    unit: Unit
    mark: Path

    @property
    def count(self) -> int:
        return self.unit.count

    def tiles(self) -> Iterator[Tile]:
        for number, tile in enumerate(self.unit.tiles()):
            if number == self.unit.count // 2 and not self.mark.exists():
                self.mark.touch()
                kill(number)
            yield tile


def kill(_item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)

"""Ways to do the same work, timed in turn, and what came out as a table and as JSON.

A busy or throttled machine slows all ways of a round alike, so that ratios within a round hold
where times do not. torch.utils.benchmark, pyperf and richbench time one way after the other, which
is why the loop below is ours.
"""

import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from dsfer.files import write_json


def clock() -> float:
    """Seconds on a clock that first waits for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass(frozen=True)
class Timing:
    """What one way took.

    Attributes:
        name: which way.
        seconds: median over the rounds.
        spread: half the distance of the quartiles, relative to the median.
        faster: times as fast as the first way: median over the rounds of the ratio within one.
        rate: items per second, at the median.
    """

    name: str
    seconds: float
    spread: float
    faster: float
    rate: float


def compare(
    ways: Mapping[str, Callable[[], object]], *, items: float, rounds: int, warm_up: int = 1
) -> list[Timing]:
    """Time every way once in each round; the first way is what the others are compared with.

    Args:
        ways: what to time, by name.
        items: pieces of work that a call does.
        rounds: calls of each way that count, at least 2.
        warm_up: calls of each way before that.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-warm_up, rounds):
        for name, way in ways.items():
            started = clock()
            way()
            if number >= 0:
                seconds[name].append(clock() - started)
    first = next(iter(seconds.values()))
    timings = []
    for name, taken in seconds.items():
        low, median, high = statistics.quantiles(taken, n=4, method="inclusive")
        ratios = [reference / own for reference, own in zip(first, taken, strict=True)]
        timings.append(
            Timing(
                name,
                median,
                (high - low) / 2 / median,
                statistics.median(ratios),
                items / median,
            )
        )
    return timings


class Report:
    """Tables on the terminal, in Markdown, and the same numbers as JSON.

    Args:
        device: where torch computed.
        json_file: where to write the numbers, or None.
    """

    def __init__(self, device: torch.device, json_file: Path | None):
        self._file = json_file
        self._tables: list[dict[str, object]] = []
        self._notes: list[str] = []
        self._content: dict[str, object] = {
            "command": " ".join(["python -m", *_module_and_arguments()]),
            "device": describe(device),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "torch": torch.__version__,
            "tables": self._tables,
            "notes": self._notes,
        }
        self._console = Console(width=150)
        for key in ("command", "device", "date", "torch"):
            self._console.print(f"{key}: {self._content[key]}", highlight=False)

    def add(
        self,
        title: str,
        timings: Sequence[Timing],
        unit: str,
        limit: tuple[str, float | Sequence[float]] | None = None,
    ) -> None:
        """Show one comparison.

        Args:
            title: what the work was.
            timings: from `compare`.
            unit: what a rate counts.
            limit: what bounds the rate, and the rate that it allows, of all ways or of each;
                every way is shown as a share of it.
        """
        columns = [title, "ms", "±", f"{unit}/s", "times as fast"]
        table = Table(*columns, box=box.MARKDOWN)
        for column in table.columns[1:]:
            column.justify = "right"
        bounds: Sequence[float] = ()
        if limit is not None:
            table.add_column(f"of {limit[0]}", justify="right")
            bounds = [limit[1]] * len(timings) if isinstance(limit[1], float) else limit[1]
        for number, timing in enumerate(timings):
            cells = [
                timing.name,
                _figures(1000 * timing.seconds),
                f"{100 * timing.spread:.0f} %",
                _figures(timing.rate),
                f"{timing.faster:.2f}",
            ]
            if bounds:
                cells.append(f"{100 * timing.rate / bounds[number]:.0f} %")
            table.add_row(*cells)
        self._console.print()
        self._console.print(table)
        self._tables.append(
            {"title": title, "unit": unit, "limit": limit, "rows": [asdict(t) for t in timings]}
        )
        self._write()

    def note(self, text: str) -> None:
        """Add a sentence that follows from the tables."""
        self._console.print(f"\n{text}", highlight=False)
        self._notes.append(text)
        self._write()

    def rows(self, rows: Sequence[Mapping[str, object]], failed: Mapping[str, str]) -> None:
        """Show what belongs to no comparison.

        Args:
            rows: a line for each, a column for each key; lists and the like are in the JSON alone.
            failed: what has no line, and why.
        """
        shown = [{k: v for k, v in r.items() if not isinstance(v, list | dict)} for r in rows]
        table = Table(*shown[0], box=box.MARKDOWN)
        for row in shown:
            table.add_row(*(_figures(v) if isinstance(v, float) else str(v) for v in row.values()))
        self._console.print()
        self._console.print(table)
        for name, why in failed.items():
            self._console.print(f"\n{name} failed: {why}", highlight=False)
        self._content |= {"rows": list(rows), "failed": dict(failed)}
        self._write()

    def _write(self) -> None:
        if self._file is not None:
            write_json(self._file, self._content)


def _figures(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def describe(device: torch.device) -> str:
    """The device as tables name it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = torch.cpu.get_capabilities().get("cpu_name") or platform.processor()
    return f"{name}, {torch.get_num_threads()} threads"


def _module_and_arguments() -> list[str]:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return [spec.name if spec else sys.argv[0], *sys.argv[1:]]

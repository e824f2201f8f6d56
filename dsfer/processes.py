"""Which process is which: numbers are given again, and clocks are set."""

import hashlib
from pathlib import Path

import psutil

BOOT = Path("/proc/sys/kernel/random/boot_id")

START = 19
"""Place of the start, in ticks since boot, among the fields of `/proc/PID/stat` after the name."""


def process_mark(pid: int) -> str | None:
    """What tells a process from all others that had or will have its number.

    It is made of when the process started since boot, and of which boot that was: neither moves
    when the wall clock is set. Outside Linux it is made of the time of the start.

    Args:
        pid: number of the process.

    Returns:
        8 hex digits, or None where there is no such process or it has ended. One that has ended and
        that nobody has buried is usual in containers.
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        start = _ticks(pid) if psutil.LINUX else str(process.create_time())
    except psutil.NoSuchProcess:
        return None
    boot = BOOT.read_text(encoding="ascii") if BOOT.is_file() else ""
    return hashlib.sha256(f"{boot}{start}".encode()).hexdigest()[:8]


def _ticks(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise psutil.NoSuchProcess(pid) from error
    return stat.rpartition(")")[2].split()[START]  # a name may hold blanks and brackets

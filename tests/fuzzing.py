"""Fuzzing of everything that is read from disk: valid files, damaged, must be read or refused.

    python -m tests.fuzzing --examples 20000          # every reader
    python -m tests.fuzzing --examples 20000 --reader shard-tar checkpoint --seed 7

A reader passes if it returns a sound value or raises a DsferError. Anything else is a finding:
another exception, a value that is not sound, a crash of the interpreter or a hang (each reader runs
in a process of its own, whose death is noticed). One line of JSON is printed for each reader; the
exit status is 1 if there was a finding.
`tests/test_fuzz.py` runs a few inputs of each with every test run.
"""

import argparse
import faulthandler
import json
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dsfer.errors import DsferError
from tests import fuzzed_readers

LONGEST = 30
"""Seconds that one input may take."""

MEMORY = 2 * 2**30
"""Bytes of address space that one input may take on top of what the readers' libraries do."""

TOKENS = [
    b"", b"null", b"true", b"-1", b"0", b"1e999", b"nan", b"99999999999999999999", b"[]", b"{}",
    b'""', b'"', b"'", b"\\", b"/", b"..", b":", b"\n", b"\t", b"\x00", b"\xff", b"\xef\xbb\xbf",
    b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\xf0\x9f\x9b\xb0", b"&a *a", b"!!python/name:os",
]  # fmt: skip
"""What is put into files beside noise: values that parsers of text and of bytes stumble over."""

place = st.integers(0, 2**32)
edit = st.one_of(
    st.tuples(st.just("flip"), place, st.integers(0, 7)),
    st.tuples(st.just("byte"), place, st.integers(0, 255)),
    st.tuples(st.just("cut"), place, st.just(0)),
    st.tuples(st.just("delete"), place, st.integers(1, 64)),
    st.tuples(st.just("double"), place, st.integers(1, 200)),
    st.tuples(st.just("swap"), place, place),
    st.tuples(st.just("zero"), place, st.integers(1, 64)),
    st.tuples(st.just("insert"), place, st.binary(min_size=1, max_size=16)),
    st.tuples(st.just("token"), place, st.sampled_from(TOKENS)),
    st.tuples(st.just("value"), place, st.sampled_from(TOKENS)),
)
edits = st.lists(edit, min_size=1, max_size=4)


def damaged(content: bytes, changes: list[tuple[str, int, Any]]) -> bytes:
    """Apply edits to a file's content, each somewhere in what the edits before it left."""
    data = bytearray(content)
    for kind, where, what in changes:
        at = where % max(len(data), 1)
        if kind in ("flip", "byte") and data:
            data[at] = data[at] ^ 1 << what if kind == "flip" else what
        elif kind == "cut":
            del data[at:]
        elif kind == "delete":
            del data[at : at + what]
        elif kind == "double":
            data[at:at] = data[at : at + what]
        elif kind == "swap":
            other = what % max(len(data), 1)
            one, two = data[at : at + 16], data[other : other + 16]
            data[at : at + 16], data[other : other + 16] = two, one
        elif kind == "zero":
            data[at : at + what] = bytes(len(data[at : at + what]))
        elif kind in ("insert", "token"):
            data[at:at] = what
        elif kind == "value":  # the rest of the word that begins here
            end = next((i for i in range(at, len(data)) if data[i : i + 1] in b",:\n}] "), at)
            data[at:end] = what
    return bytes(data)


@dataclass
class Outcome:
    """What a reader did with its inputs."""

    reader: str
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    finding: str | None = None
    seconds: float = 0.0


def run(name: str, examples: int, seed: int | None, log: IO[str]) -> Outcome:
    """Fuzz a reader in this process; the first finding, made small, ends it.

    What the interpreter says when it crashes or hangs goes to `log`.
    """
    outcome = Outcome(name)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as root:
        reader = fuzzed_readers.READERS[name]
        folder = Path(root)
        files = reader.files(folder)
        contents = {path: path.read_bytes() for path in files}

        @settings(
            max_examples=max(1, round(examples * reader.share)), derandomize=seed is None,
            database=None, deadline=None,
            suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink],
        )  # fmt: skip
        @given(st.sampled_from(files), edits)
        def check(path: Path, changes: list[tuple[str, int, Any]]) -> None:
            content = damaged(contents[path], changes)
            renew(path, content)
            outcome.inputs += 1
            faulthandler.dump_traceback_later(LONGEST, exit=True, file=log)
            try:
                reader.read(folder)
                outcome.accepted += 1
            except DsferError as error:
                assert str(error)
                outcome.refused += 1
            finally:
                faulthandler.cancel_dump_traceback_later()
                renew(path, contents[path])

        if seed is not None:
            check = hypothesis.seed(seed)(check)
        try:
            check()
        except BaseException as error:
            outcome.finding = "".join(traceback.format_exception(error))
    return outcome


def renew(path: Path, content: bytes) -> None:
    """Write a file anew; memory maps of the former one stay whole."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def isolated(name: str, examples: int, seed: int | None) -> Outcome:
    """Fuzz a reader in a child process, so that its death is an outcome too."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as log:
        child = os.fork()
        if child == 0:
            silence()
            faulthandler.enable(log)
            json.dump(asdict(run(name, examples, seed, log)), said)
            said.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        said.seek(0)
        log.seek(0)
        if status == 0:
            outcome = Outcome(**json.load(said))
        else:
            outcome = Outcome(name, finding=f"crashed or hung, status {status}\n{log.read()}")
    outcome.seconds = round(time.perf_counter() - started, 1)
    return outcome


def silence() -> None:
    """GDAL and others write their own complaints; limit what a bomb can take."""
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def warm_up() -> None:
    """Do once what every child would do by itself: imports that are put off, a first example."""
    for module in ("scipy.stats", "webdataset.writer", "pyarrow.parquet", "matplotlib.figure"):
        import_module(module)
    settings(max_examples=1, database=None)(given(edits)(lambda _: None))()


def main() -> None:
    """Fuzz the readers one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--examples", type=int, default=1000, help="inputs of each reader")
    parser.add_argument("--reader", nargs="+", choices=fuzzed_readers.READERS, metavar="NAME")
    parser.add_argument("--seed", type=int, help="other inputs than those of the test")
    arguments = parser.parse_args()
    warm_up()
    found = False
    for name in arguments.reader or fuzzed_readers.READERS:
        outcome = isolated(name, arguments.examples, arguments.seed)
        print(json.dumps(asdict(outcome)), flush=True)
        found |= outcome.finding is not None
    sys.exit(found)


if __name__ == "__main__":
    main()

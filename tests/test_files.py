"""Files and folders are whole or not there, whatever happens while they are written."""

import errno
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest.mock import Mock

import pytest
from upath import UPath

from dsfer.errors import DataError
from dsfer.files import (
    atomic_folder,
    atomic_object,
    atomic_path,
    read_json,
    remove_leftovers,
    sha256_file,
    write_json,
)
from dsfer.processes import process_mark


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "a.csv"
    with atomic_path(path) as temporary:
        assert temporary.suffix == ".csv"
        temporary.write_text("1")
        assert not path.exists()
    assert (path.read_text(), names(path.parent)) == ("1", ["a.csv"])
    assert path.stat().st_mode & 0o777 == 0o644


def test_an_error_leaves_the_former_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert (path.read_text(), names(tmp_path)) == ("old", ["a.txt"])


def test_an_error_leaves_the_former_folder(tmp_path):
    path = tmp_path / "out"
    with atomic_folder(path) as temporary:
        (temporary / "old").touch()
    with pytest.raises(ZeroDivisionError), atomic_folder(path) as temporary:
        (temporary / "half").touch()
        raise ZeroDivisionError
    assert (names(path), names(tmp_path)) == (["old"], ["out"])
    with atomic_folder(path) as temporary:
        (temporary / "new").touch()
    assert (names(path), names(tmp_path)) == (["new"], ["out"])


def test_the_former_folder_is_there_until_the_new_one_is(tmp_path, monkeypatch):
    path = tmp_path / "out"
    with atomic_folder(path) as temporary:
        (temporary / "old").touch()
    replace, states = Path.replace, []

    def watched(source, target):
        replace(source, target)
        states.append({item.name for folder in tmp_path.iterdir() for item in folder.iterdir()})

    monkeypatch.setattr(Path, "replace", watched)
    with atomic_folder(path) as temporary:
        (temporary / "new").touch()
    assert states == [{"old", "new"}, {"old", "new"}]
    assert (names(path), names(tmp_path)) == (["new"], ["out"])


def test_a_folder_that_cannot_be_put_in_place_leaves_the_former_one(tmp_path, monkeypatch):
    path = tmp_path / "out"
    with atomic_folder(path) as temporary:
        (temporary / "old").touch()
    replace = Path.replace

    def full_disk(source, target):
        if source.name.startswith(".tmp-"):
            raise OSError("no space left")
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="no space"), atomic_folder(path) as temporary:
        (temporary / "new").touch()
    assert (names(path), names(tmp_path)) == (["old"], ["out"])


def test_a_kill_between_the_renames_loses_nothing(tmp_path):
    (tmp_path / ".former-out").mkdir()
    (tmp_path / ".former-out" / "old").touch()
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "out"):
        raise ZeroDivisionError
    assert (names(tmp_path / "out"), names(tmp_path)) == (["old"], ["out"])


def test_leftovers_of_dead_processes_are_removed_and_those_of_living_ones_stay(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here, other = f".tmp-{platform.node()}", "0123abcd"
    mine, parents = (f"{pid}-{process_mark(pid)}" for pid in (os.getpid(), os.getppid()))
    kept = [f"{here}-{mine}-a", f"{here}-{parents}-a", f"{here}x-{dead.pid}-{other}-a", "out-1"]
    gone = [
        f"{here}-{dead.pid}-{other}-a1_b",
        f"{here}-{dead.pid}-{other}-a.csv",
        f"{here}-{os.getpid()}-{other}-b",  # of an earlier process with this one's number
    ]

    def leave():
        for name in (gone[0], *kept):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "part").touch()
            os.utime(tmp_path / name, (1e9, 1e9))  # before a clock was set
        for name in gone[1:]:
            (tmp_path / name).touch()

    leave()
    with atomic_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == sorted([*kept, "out"])
    leave()
    with atomic_path(tmp_path / "file"):
        pass
    assert names(tmp_path) == sorted([*kept, "out", "file"])


def test_leftovers_of_a_process_that_nobody_buries_are_removed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as dead:
        mark = process_mark(dead.pid)
        dead.stdin.close()
        os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
        (tmp_path / f".tmp-{platform.node()}-{dead.pid}-{mark}-a").touch()
        remove_leftovers(tmp_path)
        assert names(tmp_path) == []


def test_another_users_leftovers_stay(tmp_path, monkeypatch):
    (tmp_path / f".tmp-{platform.node()}-{os.getpid()}-0123abcd-a").touch()
    monkeypatch.setattr(Path, "unlink", Mock(side_effect=PermissionError))
    remove_leftovers(tmp_path)
    assert len(names(tmp_path)) == 1


KILLED = """
import os, signal
import dsfer.files
from upath import UPath

def upload(file, target):
    os.kill(os.getpid(), signal.SIGKILL)

dsfer.files.upload = upload
with dsfer.files.atomic_object(UPath("memory://bucket/shard.tar")) as file:
    file.touch()
"""


def test_what_a_killed_upload_left_goes_with_the_next(tmp_path, monkeypatch):
    done = subprocess.run(
        [sys.executable, "-c", KILLED], env=os.environ | {"TMPDIR": str(tmp_path)}, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.glob("*/*")] == ["shard.tar"]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    target = UPath("memory://bucket/shard.tar")
    with atomic_object(target) as file:
        file.write_bytes(b"whole")
        assert list(tmp_path.glob("*/*")) == [file]
    assert (target.read_bytes(), names(tmp_path)) == (b"whole", [])


def refused(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device", *arguments)


def test_a_refused_write_names_the_file_and_not_its_temporary_name(tmp_path):
    path = tmp_path / "a.csv"
    with pytest.raises(OSError, match="No space") as caught, atomic_path(path):
        refused()
    assert caught.value.filename == str(path)
    with pytest.raises(OSError, match="No space") as caught, atomic_path(path) as temporary:
        refused(temporary)
    assert caught.value.filename == str(path)
    with (
        pytest.raises(OSError, match="No space") as caught,
        atomic_folder(tmp_path / "out") as folder,
        atomic_path(folder / "b" / "c.tar"),
    ):
        refused()
    assert caught.value.filename == str(tmp_path / "out/b/c.tar")
    assert not names(tmp_path)


def test_what_another_file_was_refused_for_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, atomic_path(tmp_path / "a.csv"):
        Path("none.tif").read_bytes()
    assert caught.value.filename == "none.tif"


def test_json_comes_back_and_damage_is_named(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"é": [1, None]})
    assert read_json(path) == {"é": [1, None]}
    assert path.read_text(encoding="utf-8").endswith("}\n")
    assert json.loads(path.read_bytes())
    path.write_text('{"a": ')
    with pytest.raises(DataError, match=r"a\.json: not valid JSON.*run the stage"):
        read_json(path)
    with pytest.raises(DataError, match=r"none\.json: no such file.*run the stage"):
        read_json(tmp_path / "none.json")


def test_the_hash_is_that_of_the_content(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")

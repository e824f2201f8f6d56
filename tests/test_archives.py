import os
import shutil
import signal
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest

from dsfer.errors import DownloadError
from dsfer.files import remove_leftovers
from pipeline import archives
from pipeline.archives import check_integrity, check_magic, unpack
from tests.disks import PAGE

CONTENT = {"A/1.png": b"before " * 500, "B/1.png": b"after " * 500, "label/1.png": b"\0" * 99}


def zipped(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def vint(value: int) -> bytes:
    """RAR 5's integer of variable length."""
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def rar_block(body: bytes, data: bytes = b"") -> bytes:
    sized = vint(len(body)) + body
    return struct.pack("<I", zlib.crc32(sized)) + sized + data


def rarred(path: Path, content: dict[str, bytes]) -> Path:
    """Write a RAR 5 archive of stored (not compressed) files."""
    blocks = [b"Rar!\x1a\x07\x01\x00", rar_block(vint(1) + vint(0) + vint(0))]
    for name, data in content.items():
        fields = vint(4) + vint(len(data)) + vint(0o100644) + struct.pack("<I", zlib.crc32(data))
        fields += vint(0) + vint(1) + vint(len(name.encode())) + name.encode()
        blocks.append(rar_block(vint(2) + vint(2) + vint(len(data)) + fields, data))
    blocks.append(rar_block(vint(5) + vint(0) + vint(0)))
    path.write_bytes(b"".join(blocks))
    return path


def rar_program(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Put a stand-in for `unrar` on an otherwise empty PATH."""
    folder.mkdir()
    program = folder / "unrar"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_zip_unpacks_whole(tmp_path):
    unpack(zipped(tmp_path / "a.zip", CONTENT), "zip", tmp_path / "raw" / "train")
    assert tree(tmp_path / "raw" / "train") == CONTENT
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["train"]


@pytest.mark.parametrize(
    "name",
    ["../evil", "a/../../evil", "/evil", "C:/evil", "..\\evil", "\\\\host\\share\\evil", "a\nb"],
)
@pytest.mark.parametrize("kind", ["zip", "rar"])
def test_no_member_leaves_the_target(tmp_path, kind, name):
    path = tmp_path / "in" / f"hostile.{kind}"
    path.parent.mkdir()
    (zipped if kind == "zip" else rarred)(path, {"good": b"1", name: b"2"})
    with pytest.raises(DownloadError, match="outside the target") as caught:
        unpack(path, kind, tmp_path / "out" / "raw")
    assert str(path) in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("evil"))


def test_links_are_refused(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc")
        archive.writestr("link/passwd", b"x")
    with pytest.raises(DownloadError, match="is a link"):
        unpack(tmp_path / "a.zip", "zip", tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_a_bomb_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    path = zipped(tmp_path / "a.zip", {"zeros": bytes(10_000_000)})
    assert path.stat().st_size < 20_000
    usage = archives.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        archives.shutil, "disk_usage", lambda _: usage._replace(free=5_000_000), raising=True
    )
    with pytest.raises(DownloadError, match=r"needs 10\.0 MB .* has 5\.0 MB free"):
        unpack(path, "zip", tmp_path / "raw")
    assert [item.name for item in tmp_path.iterdir()] == ["a.zip"]


def test_a_zip_on_a_full_disk(small_disk, monkeypatch):
    path = zipped(small_disk.folder / "a.zip", {"A/1.png": b"1", "A/2.png": os.urandom(9 * PAGE)})
    small_disk.fill(room=4 * PAGE)
    with pytest.raises(DownloadError, match=r"needs 36\.9 kB .* has 16\.4 kB free.* make room"):
        unpack(path, "zip", small_disk.folder / "raw")
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage("/")._replace(free=10**12)
        patch.setattr(archives.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(OSError, match="No space left") as caught:
            unpack(path, "zip", small_disk.folder / "raw")
    assert caught.value.filename == str(small_disk.folder / "raw/A/2.png")
    assert not (small_disk.folder / "raw").exists()
    small_disk.clear()
    unpack(path, "zip", small_disk.folder / "raw")
    assert len(tree(small_disk.folder / "raw")) == 2


def test_a_rar_on_a_full_disk_is_not_called_damaged(small_disk, monkeypatch):
    """Blocks make it need more than the sum of its sizes."""
    content = {f"{number}.png": b"x" * 100 for number in range(30)}
    path = rarred(small_disk.folder / "a.rar", content)
    search = os.environ["PATH"]
    body = "for i in $(seq 0 29); do printf %0100d 0 | tr 0 x > $i.png || exit 9; done"
    rar_program(small_disk.folder / "bin", monkeypatch, body)
    monkeypatch.setenv("PATH", f"{small_disk.folder / 'bin'}{os.pathsep}{search}")
    small_disk.fill(room=10 * PAGE)
    with pytest.raises(DownloadError, match=r"has 0 bytes free.* make room"):
        unpack(path, "rar", small_disk.folder / "raw")
    assert not (small_disk.folder / "raw").exists()
    small_disk.clear()
    unpack(path, "rar", small_disk.folder / "raw")
    assert tree(small_disk.folder / "raw") == content


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.99])
def test_truncated_zip(tmp_path, keep):
    path = zipped(tmp_path / "a.zip", {f"{i}": os.urandom(500) for i in range(20)})
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    for action in (
        lambda: check_integrity(path, "zip"),
        lambda: unpack(path, "zip", tmp_path / "r"),
    ):
        with pytest.raises(DownloadError, match="not a whole archive"):
            action()
    assert [item.name for item in tmp_path.iterdir()] == ["a.zip"]


def test_flipped_byte_leaves_nothing_behind(tmp_path):
    path = zipped(tmp_path / "a.zip", {"first": b"good", "second": os.urandom(1000)})
    damaged = bytearray(path.read_bytes())
    damaged[600] ^= 255
    path.write_bytes(damaged)
    with pytest.raises(DownloadError, match="not a whole archive"):
        check_integrity(path, "zip")
    with pytest.raises(DownloadError, match="not a whole archive"):
        unpack(path, "zip", tmp_path / "raw")
    assert [item.name for item in tmp_path.iterdir()] == ["a.zip"]


def test_a_name_that_no_file_system_takes(tmp_path):
    path = zipped(tmp_path / "a.zip", {"x" * 300: b"1"})
    with pytest.raises(OSError, match="name too long"):
        unpack(path, "zip", tmp_path / "raw")
    assert [item.name for item in tmp_path.iterdir()] == ["a.zip"]


def test_two_members_of_one_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("same", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("same", b"2")
    with pytest.raises(DownloadError, match="not a whole archive"):
        unpack(tmp_path / "a.zip", "zip", tmp_path / "raw")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><title>Quota exceeded</title>", "is a web page"),
        (b"\n <HTML>", "is a web page"),
        (b"\x1f\x8b gzip", "magic bytes of a zip"),
        (b"", "magic bytes of a zip"),
    ],
)
def test_what_is_no_archive_is_named(tmp_path, content, message):
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DownloadError, match=message):
        check_magic(tmp_path / "a.zip", "zip")


def test_rar_without_any_program(tmp_path, monkeypatch):
    path = rarred(tmp_path / "a.rar", CONTENT)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DownloadError, match="unrar, unar, 7zz, 7z, bsdtar; none is installed"):
        unpack(path, "rar", tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


@pytest.mark.skipif(
    not any(archives.shutil.which(program) for program in ("unrar", "unar")),
    reason="needs a program that unpacks RAR 5",
)
def test_rar_unpacks_whole(tmp_path):
    path = rarred(tmp_path / "a.rar", CONTENT)
    check_magic(path, "rar")
    check_integrity(path, "rar")
    unpack(path, "rar", tmp_path / "raw")
    assert tree(tmp_path / "raw") == CONTENT


def test_truncated_rar(tmp_path):
    path = rarred(tmp_path / "a.rar", CONTENT)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DownloadError, match="not a whole archive"):
        unpack(path, "rar", tmp_path / "raw")


def test_what_the_rar_program_wrote_is_compared_with_the_list(tmp_path, monkeypatch):
    path = rarred(tmp_path / "a.rar", {"x": b"right"})
    rar_program(tmp_path / "bin", monkeypatch, "printf wrong > x")
    with pytest.raises(DownloadError, match="'x' did not unpack whole"):
        unpack(path, "rar", tmp_path / "raw")
    rar_program(tmp_path / "bin2", monkeypatch, "printf right > x")
    unpack(path, "rar", tmp_path / "raw")
    assert tree(tmp_path / "raw") == {"x": b"right"}


@pytest.mark.parametrize(
    ("also", "message"),
    [
        ("echo > y", "'y' is not on its list"),
        ("mkdir z", "'z' is not on its list"),
        ("ln -s /etc z", "'z' is a link"),
        ("mv a ../elsewhere; ln -s ../elsewhere a", "'a' is a link"),
        ("ln a/x a/y", "is a link"),
    ],
)
def test_the_rar_program_wrote_what_was_listed_and_nothing_else(
    tmp_path, monkeypatch, also, message
):
    path = rarred(tmp_path / "a.rar", {"a/x": b"right"})
    search = os.environ["PATH"]
    rar_program(tmp_path / "bin", monkeypatch, f"mkdir a; printf right > a/x; {also}")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{search}")
    with pytest.raises(DownloadError, match=message):
        unpack(path, "rar", tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline import archives

def unpack(path, kind, target):
    target.mkdir()
    os.kill(os.getpid(), signal.SIGKILL)

archives.unpack = unpack
archives.check_integrity(Path(sys.argv[1]), "rar")
"""


def test_what_a_kill_amid_the_test_of_a_rar_left_is_found_by_recovery(tmp_path):
    path = tmp_path / "downloads/a.rar"
    path.parent.mkdir()
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(path.parent.glob("*/content"))) == 1
    remove_leftovers(tmp_path)  # what recovery does in data/
    assert not any(path.parent.iterdir())


def test_the_complaint_of_the_rar_program_is_passed_on(tmp_path, monkeypatch):
    path = rarred(tmp_path / "a.rar", CONTENT)
    rar_program(tmp_path / "bin", monkeypatch, "echo no space left >&2; exit 5")
    with pytest.raises(DownloadError, match="unrar: no space left"):
        unpack(path, "rar", tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_no_shell_sees_the_name_of_an_archive(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        archives.subprocess,
        "run",
        lambda command, **_: (
            calls.append(command) or subprocess.CompletedProcess(command, 1, b"", b"")
        ),
    )
    monkeypatch.setattr(archives, "rar_tools", lambda: ["unrar"])
    path = rarred(tmp_path / "a; touch hacked.rar", CONTENT)
    with pytest.raises(DownloadError):
        unpack(path, "rar", tmp_path / "raw")
    assert calls[0][-1] == str(path)

"""Archives: recognise, test and unpack them, trusting nothing that they say.

Zip archives are read by the standard library. Of RAR archives `rarfile` reads the list of members;
their content needs one of the programs in `RAR_TOOLS`, run once for the whole archive (member by
member, a solid archive of tens of thousands of files would be decompressed anew for each).
"""

import shutil
import stat
import subprocess
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import rarfile
from rich.filesize import decimal

from dsfer.errors import DownloadError, first_line
from dsfer.files import atomic_folder, naming, temporary_folder

MAGIC = {"zip": (b"PK\x03\x04", b"PK\x05\x06"), "rar": (b"Rar!\x1a\x07",)}
"""First bytes of each kind of archive."""

RAR_TOOLS = {
    "unrar": ["unrar", "x", "-inul", "-p-", "-y", "--"],
    "unar": ["unar", "-q", "-D", "-p", ""],
    "7zz": ["7zz", "x", "-bso0", "-p", "-y", "--"],
    "7z": ["7z", "x", "-bso0", "-p", "-y", "--"],
    "bsdtar": ["bsdtar", "-x", "-f"],
}
"""Programs that unpack RAR into the current folder (the archive's path follows), the best first.
Some builds of 7-Zip lack RAR, and bsdtar lacks solid archives: where one fails, the next has its
turn, and what came out is compared with the archive's own checksums either way."""


@dataclass(frozen=True)
class Member:
    """One entry of an archive: name as stored, size in bytes, what it is, CRC-32 where known."""

    name: str
    size: int
    is_folder: bool
    is_plain: bool
    crc: int | None = None


def check_magic(path: Path, kind: str) -> None:
    """Check that a file starts as an archive of this kind does.

    Raises:
        DownloadError: it starts otherwise; a web page is named as such, since sites answer with
            one when a quota is used up or a login is needed.
    """
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(MAGIC[kind]):
        return
    is_page = head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head"))
    raise DownloadError(
        "is a web page (often about a quota or a login)"
        if is_page
        else f"starts with {head[:8]!r}" + f", not with the magic bytes of a {kind} archive",
        where=path,
        mend="delete it and fetch the archive itself",
    )


def check_integrity(path: Path, kind: str) -> None:
    """Read a whole archive and compare the checksum of each member.

    Raises:
        DownloadError: it is truncated or damaged, or no program for RAR is installed.
    """
    if kind == "rar":
        # The programs' own test modes miss damage or see it where there is none.
        with temporary_folder(path.parent) as folder:
            unpack(path, kind, folder / "content")
        return
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except Exception as error:  # see `_damaged`
        raise _damaged(path, first_line(error)) from error
    if bad is not None:
        raise _damaged(path, f"the checksum of '{bad}' is wrong")


def unpack(path: Path, kind: str, target: Path) -> None:
    """Unpack a whole archive into a new folder, which appears only when all of it is there.

    Args:
        path: the archive.
        kind: `zip` or `rar`.
        target: folder to make; it is replaced as a whole, or left as it was on an error.

    Raises:
        DownloadError: a member's name leads out of the target, a member is a link or another thing
            that is no file, the archive needs more room than the disk has, or it is damaged.
    """
    members = list_members(path, kind)
    for member in members:
        _check_member(member, path)
    _check_room(sum(member.size for member in members), path, target)
    with atomic_folder(target) as folder:
        if kind == "rar":
            _unpack_rar(members, path, folder)
        else:
            _unpack_zip(path, folder)
        _check_unpacked(members, path, folder)


def list_members(path: Path, kind: str) -> list[Member]:
    """List an archive's members without unpacking any.

    Raises:
        DownloadError: the list cannot be read: the archive is truncated, damaged or encrypted.
    """
    try:
        if kind == "rar":
            with rarfile.RarFile(path, errors="strict") as rar:
                if rar.needs_password():
                    raise _damaged(path, "it wants a password")
                return [_rar_member(info) for info in rar.infolist()]
        with zipfile.ZipFile(path) as archive:
            return [_zip_member(info) for info in archive.infolist()]
    except DownloadError:
        raise
    except Exception as error:  # see `_damaged`
        raise _damaged(path, first_line(error)) from error


def _zip_member(info: zipfile.ZipInfo) -> Member:
    mode = info.external_attr >> 16  # file mode, or 0 where the archive was made on Windows
    plain = stat.S_IFMT(mode) in (0, stat.S_IFREG)
    return Member(info.orig_filename, info.file_size, info.is_dir(), plain)


def _rar_member(info: rarfile.RarInfo) -> Member:
    return Member(info.filename, info.file_size or 0, info.is_dir(), info.is_file(), info.CRC)


def rar_tools() -> list[str]:
    """Names of the programs for RAR that are installed, the best first.

    Raises:
        DownloadError: none is.
    """
    installed = [program for program in RAR_TOOLS if shutil.which(program)]
    if not installed:
        raise DownloadError(
            f"a RAR archive needs one of the programs {', '.join(RAR_TOOLS)}; none is installed",
            where="PATH",
            mend="install one, for example `apt install unrar` or `apt install unar`, "
            "`conda install -c conda-forge unrar`, `brew install unar`",
        )
    return installed


def _check_member(member: Member, archive: Path) -> None:
    """Refuse names that lead out of the target on any system, and everything but files."""
    posix, windows = PurePosixPath(member.name), PureWindowsPath(member.name)
    leaves = (
        posix.is_absolute()
        or bool(windows.anchor)
        or ".." in posix.parts
        or ".." in windows.parts
        or any(ord(character) < 32 for character in member.name)
    )
    if leaves or not (member.is_folder or member.is_plain):
        raise DownloadError(
            f"member {member.name!r} "
            + ("would be written outside the target" if leaves else "is a link, not a file"),
            where=archive,
            mend="this is not the published archive; delete it and fetch it from its homepage",
        )


def _check_room(needed: int, archive: Path, target: Path) -> None:
    """Refuse what does not fit on the disk, be it large or a decompression bomb."""
    existing = next(folder for folder in (target, *target.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise DownloadError(
            f"needs {decimal(needed)} to be unpacked, but {existing} has {decimal(free)} free",
            where=archive,
            mend="make room, or check that this is the published archive",
        )


def _unpack_zip(path: Path, folder: Path) -> None:
    """Write each file of a zip whose members were checked; reading compares the checksums."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            place = folder / info.filename
            try:
                if info.is_dir():
                    place.mkdir(parents=True, exist_ok=True)
                    continue
                place.parent.mkdir(parents=True, exist_ok=True)
                # Mode x: two members of one name are an error, not a silent choice.
                with naming(place), place.open("xb") as out:
                    out.writelines(_read(path, archive, info))
            except (FileExistsError, NotADirectoryError) as error:
                raise _damaged(path, first_line(error)) from error


def _read(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """The content of a member, a mebibyte at a time."""
    try:
        with archive.open(info) as source:
            while chunk := source.read(1 << 20):
                yield chunk
    except Exception as error:  # see `_damaged`
        raise _damaged(path, first_line(error)) from error


def _unpack_rar(members: list[Member], archive: Path, folder: Path) -> None:
    """Unpack a RAR whose members were checked, by the first installed program that can."""
    complaints = []
    for program in rar_tools():
        done = subprocess.run(
            [*RAR_TOOLS[program], str(archive.resolve())],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
        if done.returncode == 0:
            return
        said = done.stderr.decode(errors="replace").strip().splitlines()
        complaints.append(f"{program}: {said[-1] if said else f'status {done.returncode}'}")
    unpacked = sum(place.stat().st_size for place in folder.rglob("*") if place.is_file())
    _check_room(sum(member.size for member in members) - unpacked, archive, folder)
    raise _damaged(archive, "; ".join(complaints))


def _check_unpacked(members: list[Member], archive: Path, folder: Path) -> None:
    """Compare what lies in the folder with what the archive's list promised, and no more."""
    listed = {folder / member.name for member in members}
    listed |= {parent for place in listed for parent in place.parents}
    for place in folder.rglob("*"):
        is_link = place.is_symlink() or (place.is_file() and place.stat().st_nlink > 1)
        if is_link or place not in listed:
            raise _damaged(
                archive,
                f"{str(place.relative_to(folder))!r} is "
                + ("a link, not a file" if is_link else "not on its list of members"),
            )
    for member in members:
        place = folder / member.name
        if member.is_folder:
            continue
        whole = place.is_file() and place.stat().st_size == member.size
        if not whole or (member.crc is not None and _crc(place) != member.crc):
            raise _damaged(archive, f"member '{member.name}' did not unpack whole")


def _crc(path: Path) -> int:
    """CRC-32 of a file."""
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            value = zlib.crc32(chunk, value)
    return value


def _damaged(path: Path, reason: str) -> DownloadError:
    """What to raise where a reader of archives does not come through.

    `zipfile` and `rarfile` raise their own errors for some damage; for other damage OSError,
    ValueError, struct.error, ..., whatever they come upon.
    """
    return DownloadError(
        f"not a whole archive ({reason})", where=path, mend="delete it and fetch it again"
    )

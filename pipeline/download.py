"""Fetch archives: mirrors in order, resumed, checked by magic bytes, size and hash.

The transfer itself is libcurl's (through pycurl), the retries are tenacity's. libcurl continues a
partial file by a range request and verifies the server's answer, follows redirects, honours proxy
settings, and gives up on a stalled connection.
"""

import hashlib
import logging
import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import certifi
import pycurl
from filelock import FileLock
from tenacity import (
    Retrying,
    before_sleep_log,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)
from tenacity.wait import wait_base
from tqdm import tqdm

from dsfer.errors import DataError, DownloadError
from dsfer.files import naming, read_json, sha256_file, write_json
from pipeline.archives import check_integrity, check_magic, rar_tools
from pipeline.catalog import Archive

log = logging.getLogger(__name__)

ROUNDS = 5
"""How often the mirrors are tried in turn before giving up."""

BACK_OFF = wait_random_exponential(multiplier=2, max=60)
"""Seconds between two rounds: random, up to 2, 4, 8, 16."""

STALLED = 60
"""Seconds without a byte after which a connection counts as dead."""

PINS = "pins.json"

TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
TRANSIENT_CURL = frozenset(
    {
        pycurl.E_COULDNT_RESOLVE_HOST,
        pycurl.E_COULDNT_CONNECT,
        pycurl.E_PARTIAL_FILE,
        pycurl.E_OPERATION_TIMEDOUT,
        pycurl.E_SSL_CONNECT_ERROR,
        pycurl.E_GOT_NOTHING,
        pycurl.E_SEND_ERROR,
        pycurl.E_RECV_ERROR,
        pycurl.E_HTTP2,
        92,  # CURLE_HTTP2_STREAM, for which pycurl has no name
    }
)
"""HTTP statuses and libcurl errors that may go away by themselves."""


class _TransientError(Exception):
    """A mirror failed in a way that may go away by itself."""


class _RefusedError(Exception):
    """A mirror does not have the archive."""


def downloads_folder(dataset: str) -> Path:
    """Where a data set's archives lie; outside DVC, so that they are fetched only once.

    DVC_ROOT points at the project itself even in the temporary copy that an experiment runs in.
    """
    return Path(os.environ.get("DVC_ROOT", ".")) / "data" / "downloads" / dataset


def fetch(archive: Archive, folder: Path, back_off: wait_base = BACK_OFF) -> Path:
    """Return an archive's verified file, downloading it if it is not there.

    A file that a person put in place is verified like any other, and never deleted. A partial
    download (`<name>.part`) is continued by this call or a later one, from any mirror.

    Args:
        archive: what to fetch.
        folder: where the file lies, or is put, under the archive's name.
        back_off: seconds to wait between two rounds through the mirrors.

    Raises:
        DownloadError: no mirror gave the archive, or what is there is not it; the message says
            what was found, what was wanted, and how to get the file by hand.
    """
    if archive.kind == "rar":
        rar_tools()  # before gigabytes come in, not after
    folder.mkdir(parents=True, exist_ok=True)
    path, partial = folder / archive.name, folder / f"{archive.name}.part"
    with FileLock(folder / f".{archive.name}.lock"):
        if path.exists():
            verify(path, archive, folder)
            log.info("%s is in place and verified", path)
        else:
            _download(archive, partial, back_off)
            partial.replace(path)
            log.info("%s is downloaded and verified", path)
    return path


def verify(path: Path, archive: Archive, folder: Path) -> None:
    """Check a file against everything that is known about the archive.

    Where no hash is published, the first file that passes an integrity test pins its SHA-256 in
    `pins.json` beside it, and later files must match.

    Args:
        path: the file.
        archive: what it should be.
        folder: where the pins are kept.

    Raises:
        DownloadError: it is something else, truncated or damaged.
    """
    check_magic(path, archive.kind)
    size = path.stat().st_size
    if archive.bytes is not None and size != archive.bytes:
        raise _wrong(path, archive, f"has {size} bytes, the published file {archive.bytes}")
    published = {"sha256": archive.sha256, "md5": archive.md5}
    for algorithm, wanted in published.items():
        if wanted is not None:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, algorithm).hexdigest()
            if found != wanted:
                raise _wrong(path, archive, f"has {algorithm} {found}, the published file {wanted}")
            return
    _verify_pin(path, archive, folder / PINS)


def _verify_pin(path: Path, archive: Archive, pins_file: Path) -> None:
    """Compare with the pinned hash, or pin this file's."""
    pins = _read_pins(pins_file)
    found, wanted = sha256_file(path), pins.get(archive.name)
    if wanted is None:
        check_integrity(path, archive.kind)
        write_json(pins_file, pins | {archive.name: found})
        log.warning(
            "no hash is published for %s; its sha256 %s is now pinned in %s",
            archive.name,
            found,
            pins_file,
        )
    elif found != wanted:
        problem = f"has sha256 {found}, but {wanted} is pinned in {pins_file.name}"
        raise _wrong(path, archive, problem)


def _read_pins(path: Path) -> dict[str, str]:
    """Hashes that were pinned, by name of archive."""
    try:
        pins = read_json(path) if path.exists() else {}
    except DataError as error:
        pins = error.problem
    if isinstance(pins, dict) and all(isinstance(each, str) for each in pins.values()):
        return pins
    raise DataError(
        f"no record of hashes ({pins})",
        where=path,
        mend="delete it, and the archives that are in place are pinned anew",
    )


def _wrong(path: Path, archive: Archive, problem: str) -> DownloadError:
    fetched = "move it away and run again to download it, or " if archive.urls else ""
    return DownloadError(
        problem, where=path, mend=f"{fetched}put the right file in its place: {archive.by_hand}"
    )


def _download(archive: Archive, partial: Path, back_off: wait_base) -> None:
    """Bring in a verified partial file, trying the mirrors in turn, for several rounds."""
    mirrors = list(archive.urls)
    failures: dict[str, str] = {}

    def one_round() -> None:
        for url in tuple(mirrors):
            host = urlsplit(url).netloc
            try:
                return _obtain(url, partial, archive)
            except _TransientError as error:
                failures[host] = str(error)
            except _RefusedError as error:
                failures[host] = str(error)
                mirrors.remove(url)
            log.warning("%s from %s: %s", archive.name, host, failures[host])
        if mirrors:
            raise _TransientError
        raise _unobtainable(archive, partial, failures)

    rounds = Retrying(
        stop=stop_after_attempt(ROUNDS),
        wait=back_off,
        retry=retry_if_exception_type(_TransientError),
        before_sleep=before_sleep_log(log, logging.INFO),
        reraise=True,
    )
    try:
        rounds(one_round)
    except _TransientError as error:
        raise _unobtainable(archive, partial, failures) from error


def _unobtainable(archive: Archive, partial: Path, failures: dict[str, str]) -> DownloadError:
    tried = "; ".join(f"{host}: {reason}" for host, reason in failures.items())
    again = "run again to continue, or " if archive.urls else ""
    return DownloadError(
        f"could not be downloaded ({tried})" if tried else "has no public address to download from",
        where=partial.with_suffix(""),
        mend=f"{again}put the file there by hand: {archive.by_hand}",
    )


def _obtain(url: str, partial: Path, archive: Archive) -> None:
    """Complete the partial file from one mirror and verify it."""
    held = partial.stat().st_size if partial.exists() else 0
    if archive.bytes is None or held < archive.bytes:
        _transfer(url, partial, archive)
    try:
        check_magic(partial, archive.kind)
        if archive.bytes is not None and partial.stat().st_size < archive.bytes:
            raise _TransientError("the connection ended early")
        verify(partial, archive, partial.parent)
    except DownloadError as error:
        partial.unlink()
        if held:  # perhaps the part from before belonged to another file: start over
            raise _TransientError(f"continued, it {error.problem}") from error
        raise _RefusedError(error.problem) from error


def _transfer(url: str, partial: Path, archive: Archive) -> None:
    """Append to the partial file what is missing, with a progress bar on a terminal."""
    held = partial.stat().st_size if partial.exists() else 0
    shortage: list[int] = []
    log.info("downloading %s from %s, from byte %d on", archive.name, urlsplit(url).netloc, held)
    with (
        naming(partial),
        partial.open("ab") as file,
        tqdm(
            desc=archive.name,
            total=archive.bytes,
            initial=held,
            unit="B",
            unit_scale=True,
            disable=None,
        ) as bar,
    ):

        def progress(expected: int, received: int, _up: int, _sent: int) -> bool:
            if expected:
                bar.total = held + expected
                if expected - received > shutil.disk_usage(partial.parent).free:
                    shortage.append(expected - received)
            bar.update(held + received - bar.n)
            return bool(shortage)  # true makes libcurl stop

        refused: list[OSError] = []

        def write(received: bytes) -> int:
            try:
                return file.write(received)
            except OSError as error:
                refused.append(error)
                return -1  # makes libcurl stop

        curl = _request(url, held)
        curl.setopt(pycurl.WRITEFUNCTION, write)
        curl.setopt(pycurl.XFERINFOFUNCTION, progress)
        try:
            curl.perform()
        except pycurl.error as error:
            if shortage:
                raise DownloadError(
                    f"{shortage[0] / 1e9:.1f} GB are missing, more than the disk has free",
                    where=partial,
                    mend="make room and run again to continue",
                ) from error
            if refused:
                raise refused[0] from error
            code, message = error.args
            if code == pycurl.E_HTTP_RANGE_ERROR and not _is_page(curl):
                file.truncate(0)
                raise _TransientError("cannot continue a partial file; starting over") from error
            raise _failure(curl, code, message) from error
        finally:
            curl.close()


def _request(url: str, held: int) -> pycurl.Curl:
    """A request for what follows the first `held` bytes."""
    curl = pycurl.Curl()
    options = {
        pycurl.URL: url,
        pycurl.PROTOCOLS: pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS,
        pycurl.REDIR_PROTOCOLS: pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS,
        pycurl.FOLLOWLOCATION: True,
        pycurl.MAXREDIRS: 10,
        pycurl.FAILONERROR: True,
        pycurl.NETRC: pycurl.NETRC_OPTIONAL,
        pycurl.CAINFO: os.environ.get("SSL_CERT_FILE") or certifi.where(),
        pycurl.CONNECTTIMEOUT: STALLED,
        pycurl.LOW_SPEED_LIMIT: 1,
        pycurl.LOW_SPEED_TIME: STALLED,
        pycurl.NOSIGNAL: True,
        pycurl.NOPROGRESS: False,
        pycurl.RESUME_FROM_LARGE: held,
    }
    for option, value in options.items():
        curl.setopt(option, value)
    return curl


def _is_page(curl: pycurl.Curl) -> bool:
    """Whether the answer is a web page: no reason to give up what is already here."""
    return str(curl.getinfo(pycurl.CONTENT_TYPE)).startswith("text/html")


def _failure(curl: pycurl.Curl, code: int, message: str) -> Exception:
    """Sort an error of libcurl into those worth another try and the others."""
    status = curl.getinfo(pycurl.RESPONSE_CODE)
    if code == pycurl.E_HTTP_RETURNED_ERROR:
        transient = status in TRANSIENT_STATUS
    else:
        transient = code in TRANSIENT_CURL
    return (_TransientError if transient else _RefusedError)(message)

"""Places on a disk or in an object store: a path or a URL, listed and read in the same way."""

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

from upath import UPath

from dsfer.errors import NoStoreError, StoreError, first_line

AnyPath: TypeAlias = Path | UPath

_OF_THIS_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""What an object store never says: a file on this machine is refused that is copied to or from."""


def location(text: str | AnyPath) -> AnyPath:
    """The place that a text names: a URL as `s3://bucket/folder`, or a path.

    The package that fsspec needs for the kind of store has to be installed, as `s3fs` for `s3://`.

    Raises:
        NoStoreError: fsspec knows no such kind of store, or the URL names no bucket.
    """
    if "://" not in str(text):
        return Path(str(text))
    try:
        place = UPath(text)
        place.joinpath("file")  # refuses a URL without a bucket
        return place
    except ValueError as error:
        raise NoStoreError(
            f"no URL of an object store ({first_line(error)})",
            where=str(text),
            mend="write it as s3://BUCKET/FOLDER",
        ) from error


def listed(folder: AnyPath) -> list[AnyPath]:
    """What lies in a folder, sorted by name."""
    entries: Iterable[AnyPath] = folder.iterdir()
    return sorted(entries, key=lambda entry: entry.name)


@contextmanager
def reaching(place: AnyPath) -> Iterator[None]:
    """Turn what the client of an object store raises in the block into an error with the URL.

    Raises:
        StoreError: the store does not answer, or refuses.
        FileNotFoundError: it answers that there is no such object.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, ImportError, _client_error()) as error:
        if isinstance(place, Path) or getattr(error, "errno", None) in _OF_THIS_DISK:
            raise
        raise StoreError(
            f"cannot be reached ({first_line(error)})",
            where=place,
            mend="see that the URL is right, the store answers (AWS_ENDPOINT_URL, if it is not "
            "Amazon's), and the environment holds credentials for it (AWS_PROFILE, or "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)",
        ) from error


def download(source: str, file: Path) -> None:
    """Copy an object to a file, over a connection of this process's own.

    Raises:
        StoreError: the store does not answer, or refuses.
        FileNotFoundError: there is no such object.
    """
    place = UPath(source)
    with reaching(place):
        place.fs.get_file(place.path, str(file))


def upload(file: Path, target: UPath) -> None:
    """Put a file into an object store, in one step: nobody sees a part of it there.

    Raises:
        NoStoreError: there is no such bucket.
        StoreError: the store does not answer, or refuses.
    """
    try:
        with reaching(target):
            target.fs.put_file(str(file), target.path)
    except FileNotFoundError as error:
        raise NoStoreError("no such bucket", where=target, mend="create it") from error


def _client_error() -> type[Exception]:
    """What S3's client raises beside OSError, if that client has been used at all."""
    client = sys.modules.get("botocore.exceptions")
    return OSError if client is None else client.BotoCoreError


def gdal_store_options() -> dict[str, str]:
    """Options that let GDAL read `s3://` as other clients do: it ignores AWS_ENDPOINT_URL.

    Nothing of an object stays in memory once it is closed: workers of a cluster live long, and an
    object may be replaced meanwhile.
    """
    options = {
        "CPL_VSIL_CURL_NON_CACHED": "/vsis3/",
        "GDAL_HTTP_MAX_RETRY": "5",
        "GDAL_HTTP_RETRY_DELAY": "1",
    }
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        scheme, host, *_ = urlsplit(endpoint)
        options |= {
            "AWS_S3_ENDPOINT": host,
            "AWS_HTTPS": "YES" if scheme == "https" else "NO",
            "AWS_VIRTUAL_HOSTING": "FALSE",
        }
    return options

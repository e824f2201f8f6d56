"""The errors a user can meet: each says where, what is wrong, and what to do about it."""

import re
from pathlib import Path
from pickle import UnpicklingError

from upath import UPath

# A path made of an address has lost a slash of `://`, and a password may have slashes in it.
_USER = re.compile(r"(:/+)([^/:\s'\"]*:(?!\d+/)[^\s'\"]*@|[^/\s'\"]*@)")
_QUERY = re.compile(r"(:/+[^?\s'\"]*\?)(?!\.\.\.)[^\s'\"]+")


def without_user(text: str) -> str:
    """A text whose addresses name no user and no password: `https://host/x?sig=y`."""
    return _USER.sub(r"\1", text)


def without_secrets(text: str) -> str:
    """A text whose addresses show no user, no password and no query: `https://host/x?...`."""
    return _QUERY.sub(r"\1...", without_user(text))


class DsferError(Exception):
    """Base of every error that is the input's fault, not the program's.

    What an address holds besides host and path is not shown: it may be a password or a signature.

    Args:
        problem: what is wrong, with the offending value.
        where: the file or parameter it was found in.
        mend: what the user can do.

    Attributes:
        passing: whether the reason may pass by itself, so that trying again makes sense.
    """

    passing = False

    def __init__(
        self, problem: str, *, where: str | Path | UPath | None = None, mend: str | None = None
    ):
        self.problem, self.where, self.mend = without_secrets(problem), where, mend
        place = f"{without_secrets(str(where))}: " if where is not None else ""
        remedy = f" To mend it: {mend}." if mend else ""
        super().__init__(f"{place}{self.problem}.{remedy}")

    def about(self, old: Path, new: Path) -> "DsferError":
        """The same error, speaking of what lies below `old` as of what is to lie below `new`."""

        def moved(text: str | Path | UPath | None) -> str | None:
            return None if text is None else str(text).replace(str(old), str(new))

        problem = self.problem.replace(str(old), str(new))
        return type(self)(problem, where=moved(self.where), mend=moved(self.mend))

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the trip back from a worker process, keyword arguments included."""
        return _rebuild, (type(self), self.problem, self.where, self.mend)


def _rebuild(
    kind: type[DsferError], problem: str, where: str | Path | UPath | None, mend: str | None
) -> DsferError:
    return kind(problem, where=where, mend=mend)


def first_line(error: BaseException) -> str:
    """What another library's error says, without the essay that some append.

    Of what torch does not unpickle it says no more than that: torch's essay comes first, and tells
    how to run the code in the file.
    """
    if isinstance(error, UnpicklingError):
        refused = re.search(r"GLOBAL (\S+)", str(error))
        return (
            f"it holds {refused[1]!r}, which is no plain value"
            if refused
            else "it is damaged, or holds more than plain values"
        )
    return str(error).partition("\n")[0] or type(error).__name__


class ConfigError(DsferError):
    """A parameter, recipe, model or data set name is unknown, of the wrong type or impossible."""


class DownloadError(DsferError):
    """An archive could not be fetched, verified or unpacked."""

    passing = True


class DataError(DsferError):
    """Imagery is missing, unreadable or not what was declared."""


class StoreError(DataError):
    """An object store does not answer, or refuses."""

    passing = True


class NoStoreError(StoreError):
    """There is no such object store, or no such bucket in it."""

    passing = False


class LabelError(DataError):
    """A label holds values that its declared rule does not allow."""


class GridMismatchError(DataError):
    """The rasters of one pair do not lie on the same grid."""


class ShardError(DataError):
    """A shard is missing, damaged or disagrees with its index."""


class LeakageError(DataError):
    """Splits share content, or code asked for a split that it must not see."""


class ValidationError(DataError):
    """A data set violates an expectation that it declares."""


class TileSizeError(DsferError):
    """A network cannot take images of this size."""


class CheckpointError(DsferError):
    """Weights or a checkpoint do not belong to this model, or are damaged."""


class TrainingError(DsferError):
    """Training cannot go on: the loss is not finite, say."""


class DeviceMemoryError(DsferError):
    """The GPU has too little memory for what it was given."""

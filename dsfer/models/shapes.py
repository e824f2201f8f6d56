"""Sizes that the networks share rules for: of tiles, and of channels."""

from dsfer.errors import TileSizeError


def check_divisible(model: str, h: int, w: int, *, divisor: int) -> None:
    """Refuse images that a network cannot halve as often as it does.

    Args:
        model: name of the network, for the message.
        h: rows.
        w: columns.
        divisor: what both must be divisible by.

    Raises:
        TileSizeError: they are not.
    """
    if h % divisor or w % divisor:
        padded = f"{-(-h // divisor) * divisor}x{-(-w // divisor) * divisor}"
        raise TileSizeError(
            f"images of {h}x{w} pixels do not divide by {divisor}",
            where=model,
            mend=f"pad them to {padded}",
        )


def scaled(channels: int, width: float) -> int:
    """Channels of a network `width` times as wide as published: a multiple of 8, 8 at least."""
    return channels if width == 1 else max(8, round(channels * width / 8) * 8)

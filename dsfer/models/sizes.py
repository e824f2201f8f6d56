"""The tile sizes that a network takes."""

from dsfer.errors import TileSizeError


def check_divisible(model: str, h: int, w: int, *, by: int) -> None:
    """Refuse sides that the network cannot halve as often as it must.

    Raises:
        TileSizeError: h or w is not divisible by `by`; the message names the size to pad to.
    """
    if h % by or w % by:
        raise TileSizeError(
            f"images of {h}x{w} pixels are not divisible by {by}",
            where=model,
            mend=f"pad them to {-(-h // by) * by}x{-(-w // by) * by}",
        )

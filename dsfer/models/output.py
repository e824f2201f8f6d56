"""What every network of this package returns."""

from typing import NamedTuple

from torch import Tensor


class ChangeOutput(NamedTuple):
    """Scores of one forward pass over a batch of image pairs.

    Attributes:
        logits: (b, 2, h, w) float, scores of unchanged and changed; the change map is their argmax.
        deep: intermediate maps for deep supervision, (b, 2, h/s, w/s) float each, shallow to deep;
            empty for networks without.
    """

    logits: Tensor
    deep: tuple[Tensor, ...] = ()

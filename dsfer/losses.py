"""Losses of Dsfer-Net: weighted cross entropy, and dice on the deep maps (paper, section III-D).

Each term exists as the paper prints it and as the released code computes it; recipes choose.
Shapes: b batch, h w sides; labels are uint8 with 0 unchanged, 1 changed, 255 ignored.

Where several processes train together, each has its share of the batch, and the mean of their
losses is the loss of the whole batch.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dsfer.data.manifest import IGNORE
from dsfer.distributed import sum_over_ranks, world_size
from dsfer.models.output import ChangeOutput

CrossEntropy = Literal["printed", "weighted-mean"]
Dice = Literal["printed", "released"]
ClassWeights = tuple[float, float]


class LossTerms(NamedTuple):
    """The loss of Eq. 7 and its parts, scalar float tensors on the device."""

    total: Tensor
    cross_entropy: Tensor
    dice: Tensor


@dataclass(frozen=True)
class ChangeLoss:
    """Cross entropy plus lambda times the mean dice of the deep maps (Eq. 7).

    Attributes:
        lambda_: factor on the dice terms.
        class_weights: (w0, w1), weights of unchanged and changed pixels.
        cross_entropy: `printed` is Eq. 4, the mean over pixels; `weighted-mean` divides by the
            sum of the pixels' weights, as the released code does.
        dice: `printed` is Eq. 5, on the changed class with a factor 2; `released` is the released
            code's form on both classes, which has no factor 2.
    """

    lambda_: float
    class_weights: ClassWeights
    cross_entropy: CrossEntropy = "printed"
    dice: Dice = "printed"

    def __call__(self, output: ChangeOutput, labels: Tensor) -> LossTerms:
        """Loss of a batch.

        Args:
            output: logits (b, 2, h, w) and deep maps (b, 2, h/s, w/s).
            labels: (b, h, w) uint8.
        """
        ce = CROSS_ENTROPIES[self.cross_entropy](output.logits.float(), labels, self.class_weights)
        dice_of = DICES[self.dice]
        dices = [
            dice_of(deep.float(), reduce_labels(labels, deep.shape[-1])) for deep in output.deep
        ]
        dice = torch.stack(dices).mean() if dices else ce.new_zeros(())
        return LossTerms(ce + self.lambda_ * dice, ce, dice)


def printed_cross_entropy(logits: Tensor, labels: Tensor, weights: ClassWeights) -> Tensor:
    """Eq. 4: weighted cross entropy, averaged over pixels, with Ŷ the softmax of (b, 2, h, w)."""
    count = sum_over_ranks((labels != IGNORE).sum()).clamp(min=1)
    return weighted_sum(logits, labels, weights) * world_size() / count


def weighted_mean_cross_entropy(logits: Tensor, labels: Tensor, weights: ClassWeights) -> Tensor:
    """The released form of Eq. 4: divided by the sum of the pixels' weights, not their number."""
    total = sum_over_ranks(pixel_weights(labels, weights, logits.dtype).sum())
    return weighted_sum(logits, labels, weights) * world_size() / total.clamp(min=min(weights))


def weighted_sum(logits: Tensor, labels: Tensor, weights: ClassWeights) -> Tensor:
    """Sum of the weighted cross entropy of all pixels."""
    per_pixel = F.cross_entropy(logits, labels.long(), ignore_index=IGNORE, reduction="none")
    return (per_pixel * pixel_weights(labels, weights, logits.dtype)).sum()


def pixel_weights(labels: Tensor, weights: ClassWeights, dtype: torch.dtype) -> Tensor:
    """Weight of each pixel by its class, 0 where it is ignored.

    Made of plain numbers: a tensor made of Python values would stop the device in every step.
    """
    return (labels == 0).to(dtype) * weights[0] + (labels == 1).to(dtype) * weights[1]


def printed_dice(logits: Tensor, labels: Tensor) -> Tensor:
    """Eq. 5: 1 - 2 Σ Y Ŷ / Σ (Y + Ŷ) of the changed class, per image, then the mean.

    A tile without change scores 1 whatever is predicted, as printed.
    """
    valid = labels != IGNORE
    predicted = logits.softmax(dim=1)[:, 1] * valid  # b h w
    target = (labels == 1).to(predicted.dtype)
    overlap = (target * predicted).sum(dim=(1, 2))
    total = (target + predicted).sum(dim=(1, 2))
    return (1 - 2 * overlap / total.clamp(min=torch.finfo(total.dtype).tiny)).mean()


def released_dice(logits: Tensor, labels: Tensor) -> Tensor:
    """The released form of Eq. 5: 1 - (Σ p t + 1) / (Σ p² + Σ t² + 1) per image and class.

    There is no factor 2, so a perfect prediction scores about 0.5. Mean over images, then over
    both classes.
    """
    valid = (labels != IGNORE).unsqueeze(1)  # b 1 h w
    target = torch.stack((labels == 0, labels == 1), dim=1).to(logits.dtype)  # b 2 h w
    predicted = logits.softmax(dim=1) * valid
    overlap = (predicted * target).sum(dim=(2, 3))  # b 2
    squares = (predicted.square() + target.square()).sum(dim=(2, 3))
    return (1 - (overlap + 1) / (squares + 1)).mean()


def reduce_labels(labels: Tensor, side: int) -> Tensor:
    """Down-sample (b, h, w) labels to (b, side, side): changed where any pixel changed.

    The paper leaves the rule of Eq. 6 open; the maximum is the released code's. A block is ignored
    where all of it is.
    """
    factor = labels.shape[-1] // side
    changed = F.max_pool2d((labels == 1).float().unsqueeze(1), factor).squeeze(1) > 0
    valid = F.max_pool2d((labels != IGNORE).float().unsqueeze(1), factor).squeeze(1) > 0
    return changed.to(labels.dtype).masked_fill(~valid, IGNORE)


CROSS_ENTROPIES = {
    "printed": printed_cross_entropy,
    "weighted-mean": weighted_mean_cross_entropy,
}
DICES = {"printed": printed_dice, "released": released_dice}

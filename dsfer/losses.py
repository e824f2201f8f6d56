"""Losses: a term on the change map, and one on the deep maps where a network has them.

Dsfer-Net's terms (paper, section III-D) exist as printed and as the released code computes them;
the compared methods bring the balanced contrastive loss, one more form of dice, and cross entropy
at several scales. Recipes choose.
Shapes: b batch, h w sides; labels are uint8 with 0 unchanged, 1 changed, 255 ignored.

Where several processes train together, each has its share of the batch, and the mean of their
losses is the loss of the whole batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dsfer.data.manifest import IGNORE
from dsfer.distributed import sum_over_ranks, world_size
from dsfer.models.output import ChangeOutput

ChangeTerm = Literal["cross-entropy", "weighted-mean", "contrastive"]
DeepTerm = Literal["dice", "released-dice", "sigmoid-dice", "cross-entropy"]
ClassWeights = tuple[float, float]

MARGIN = 2.0
"""Distance beyond which changed pixels cost nothing, in the contrastive loss."""

MULTISCALE_FIRST, MULTISCALE_REST = 0.8, 0.5
"""Weights of ChangeFormer's deep maps: of the one at 1/4 of the image, and of the deeper ones."""


class LossTerms(NamedTuple):
    """The loss of Eq. 7 and its parts, scalar float tensors on the device.

    Attributes:
        total: what is minimised.
        change: the term on the change map.
        deep: the term on the deep maps, without its factor.
    """

    total: Tensor
    change: Tensor
    deep: Tensor


@dataclass(frozen=True)
class ChangeLoss:
    """A term on the change map plus lambda times one on the deep maps (Eq. 7).

    Dsfer-Net: `cross-entropy` + lambda `dice`, or `weighted-mean` + lambda `released-dice`. BiT and
    VcT: `cross-entropy`. FC-Siam-conc and FC-EF-Res: `weighted-mean`, with `false_alarm_weights`.
    STANet: `contrastive`. DSAMNet: `contrastive` + 0.1 `sigmoid-dice`. ChangeFormer:
    `cross-entropy` + 1 `cross-entropy`.

    Attributes:
        lambda_: factor on the deep term.
        class_weights: (w0, w1), weights of unchanged and changed pixels of the change map.
        change: `cross-entropy` is Eq. 4, the mean over pixels; `weighted-mean` divides by the sum
            of the pixels' weights, as the released code does; `contrastive` is for the methods that
            return a distance.
        deep: `dice` is Eq. 5, on the changed class with a factor 2; `released-dice` is the released
            code's form on both classes, which has no factor 2; `sigmoid-dice` the same of DSAMNet,
            where the channels are no distribution; `cross-entropy` is ChangeFormer's, which weighs
            its four maps. Of the others it is the mean over the maps.
    """

    lambda_: float
    class_weights: ClassWeights
    change: ChangeTerm = "cross-entropy"
    deep: DeepTerm = "dice"

    def __call__(self, output: ChangeOutput, labels: Tensor) -> LossTerms:
        """Loss of a batch.

        Args:
            output: logits (b, 2, h, w) and deep maps (b, 2, h/s, w/s).
            labels: (b, h, w) uint8.
        """
        change = CHANGE_TERMS[self.change](output.logits.float(), labels, self.class_weights)
        deep = DEEP_TERMS[self.deep](output.deep, labels) if output.deep else change.new_zeros(())
        return LossTerms(change + self.lambda_ * deep, change, deep)


def printed_cross_entropy(logits: Tensor, labels: Tensor, weights: ClassWeights) -> Tensor:
    """Eq. 4: weighted cross entropy, averaged over pixels, with Ŷ the softmax of (b, 2, h, w)."""
    count = sum_over_ranks((labels != IGNORE).sum()).clamp(min=1)
    return weighted_sum(logits, labels, weights) * world_size() / count


def weighted_mean_cross_entropy(logits: Tensor, labels: Tensor, weights: ClassWeights) -> Tensor:
    """The released form of Eq. 4: divided by the sum of the pixels' weights, not their number."""
    total = sum_over_ranks(pixel_weights(labels, weights, logits.dtype).sum())
    return weighted_sum(logits, labels, weights) * world_size() / total.clamp(min=min(weights))


def contrastive(logits: Tensor, labels: Tensor, weights: ClassWeights) -> Tensor:
    """Batch-balanced contrastive loss of STANet and DSAMNet, on the distance d in channel 1.

    w0 Σ d² / (n + 0.0001) over unchanged pixels, plus w1 Σ max(0, 2 - d)² / (n + 0.0001) over
    changed ones, n being the number of either; published with w0 = w1 = 1. Ignored pixels count
    nowhere; STANet's released code takes them as unchanged, DSAMNet's adds a constant for them.
    """
    distance = logits[:, 1]
    costs = distance.square(), (MARGIN - distance).clamp(min=0).square()
    loss = distance.new_zeros(())
    for value, (cost, weight) in enumerate(zip(costs, weights, strict=True)):
        chosen = labels == value
        loss = loss + weight * (cost * chosen).sum() / (sum_over_ranks(chosen.sum()) + 1e-4)
    return loss * world_size()


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
    return squared_dice(logits.softmax(dim=1), labels)


def sigmoid_dice(logits: Tensor, labels: Tensor) -> Tensor:
    """DSAMNet's dice: `released_dice`, with p the sigmoid of each channel by itself."""
    return squared_dice(logits.sigmoid(), labels)


def squared_dice(probability: Tensor, labels: Tensor) -> Tensor:
    """Dice of (b, 2, h, w) probabilities of both classes, as `released_dice` has it."""
    valid = (labels != IGNORE).unsqueeze(1)  # b 1 h w
    target = torch.stack((labels == 0, labels == 1), dim=1).to(probability.dtype)  # b 2 h w
    predicted = probability * valid
    overlap = (predicted * target).sum(dim=(2, 3))  # b 2
    squares = (predicted.square() + target.square()).sum(dim=(2, 3))
    return (1 - (overlap + 1) / (squares + 1)).mean()


def mean_over_maps(
    term: Callable[[Tensor, Tensor], Tensor],
) -> Callable[[tuple[Tensor, ...], Tensor], Tensor]:
    """Make of a term on one map its mean over the deep maps, each beside labels of its size."""

    def mean(maps: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        terms = [term(x.float(), reduce_labels(labels, x.shape[-1])) for x in maps]
        return torch.stack(terms).mean()

    return mean


def multiscale_cross_entropy(maps: tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """ChangeFormer's: 0.8, 0.5, 0.5, 0.5 times the cross entropy of its maps, shallow to deep.

    The mean over pixels each, with the labels of the nearest pixels: as the released code reduces
    them, so that a small building may be in none of them. Of more or fewer maps than four, those
    after the first weigh 0.5.
    """
    total = labels.new_zeros((), dtype=torch.float32)
    for level, x in enumerate(maps):
        factor = labels.shape[-1] // x.shape[-1]
        nearest = labels[:, ::factor, ::factor]
        weight = MULTISCALE_FIRST if level == 0 else MULTISCALE_REST
        total = total + weight * printed_cross_entropy(x.float(), nearest, (1.0, 1.0))
    return total


def reduce_labels(labels: Tensor, side: int) -> Tensor:
    """Down-sample (b, h, w) labels to (b, side, side): changed where any pixel changed.

    The paper leaves the rule of Eq. 6 open; the maximum is the released code's. A block is ignored
    where all of it is.
    """
    factor = labels.shape[-1] // side
    changed = F.max_pool2d((labels == 1).float().unsqueeze(1), factor).squeeze(1) > 0
    valid = F.max_pool2d((labels != IGNORE).float().unsqueeze(1), factor).squeeze(1) > 0
    return changed.to(labels.dtype).masked_fill(~valid, IGNORE)


def false_alarm_weights(changed: float, factor: float = 10) -> ClassWeights:
    """Class weights of FC-Siam-conc and FC-EF-Res: (2 · factor · p, 2 (1 - p)).

    Args:
        changed: p, fraction of changed pixels in the training split.
        factor: by how much a false alarm costs more than balance would have it.
    """
    return 2 * factor * changed, 2 * (1 - changed)


CHANGE_TERMS = {
    "cross-entropy": printed_cross_entropy,
    "weighted-mean": weighted_mean_cross_entropy,
    "contrastive": contrastive,
}
DEEP_TERMS: dict[str, Callable[[tuple[Tensor, ...], Tensor], Tensor]] = {
    "dice": mean_over_maps(printed_dice),
    "released-dice": mean_over_maps(released_dice),
    "sigmoid-dice": mean_over_maps(sigmoid_dice),
    "cross-entropy": multiscale_cross_entropy,
}

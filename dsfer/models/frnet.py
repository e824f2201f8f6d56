"""FrNet: a Siamese VGG-16 with feature retrieval at its deepest level.

"A Deep Feature Retrieved Network for Bitemporal Remote Sensing Image Change Detection", CDCEO 2022,
the forerunner of Dsfer-Net. No code was released: the layout is inferred from the paper's words and
from the 14,998,578 parameters that Table II counts, which it meets exactly. What neither says is
declared here: the inverse temperature is the usual 1/sqrt(d), and maps are enlarged with
align_corners, as in Dsfer-Net. Shapes: b batch, h w image sides, c_i channels of level i (1 shallow
... 5 deep), at 1/2^(i-1) of the image; n tokens of level 5, d retrieval width.
"""

import torch
from torch import Tensor, nn

from dsfer.models.batch_norm import BatchNorm2d
from dsfer.models.hopfield import retrieve
from dsfer.models.output import ChangeOutput
from dsfer.models.resize import enlarge
from dsfer.models.shapes import check_divisible
from dsfer.models.vgg import VGG16Encoder


class FrNet(nn.Module):
    """VGG-16 per date, retrieval at level 5, four fusions by 1x1 convolution.

    Args:
        width: factor on every channel count of the encoder and the decoder.
        retrieval_dim: d, width in which state and stored patterns are compared.
    """

    def __init__(self, *, width: float = 1.0, retrieval_dim: int = 32):
        super().__init__()
        self.encoder = VGG16Encoder(width)
        channels = self.encoder.channels
        self.retrieval = DifferenceRetrieval(channels[-1], retrieval_dim)
        self.fusion = nn.ModuleList()  # of levels 4, 3, 2, 1
        deeper = channels[-1]
        for pair, outputs in zip(reversed(channels[:-1]), (128, 64, 32, 16), strict=True):
            fused = max(1, round(outputs * width))
            self.fusion.append(
                nn.Sequential(
                    nn.Conv2d(2 * pair + deeper, fused, kernel_size=1),
                    BatchNorm2d(fused),
                    nn.ReLU(inplace=True),
                )
            )
            deeper = fused
        self.classifier = nn.Conv2d(deeper, 2, kernel_size=1)

    def forward(self, t1: Tensor, t2: Tensor) -> ChangeOutput:
        """Detect changes between two dates.

        Args:
            t1: (b, 3, h, w) float, RGB of the first date, normalised per band.
            t2: the same of the second date.

        Returns:
            logits (b, 2, h, w); no deep maps.

        Raises:
            TileSizeError: h or w is not divisible by 16.
        """
        check_divisible("frnet", *t1.shape[-2:], divisor=self.encoder.strides[-1])
        *maps, deepest = self.encoder(torch.cat((t1, t2)))  # both dates in one pass: 2b c_i h_i w_i
        fused: Tensor = self.retrieval(deepest)
        for features, fuse in zip(reversed(maps), self.fusion, strict=True):
            fused = enlarge(fused, 2)
            fused = fuse(torch.cat((*features.chunk(2), fused), dim=1))  # date 1, date 2, deeper
        return ChangeOutput(self.classifier(fused))


class DifferenceRetrieval(nn.Module):
    """The difference |F1 - F2| retrieves itself from either date; the two results are added.

    R = Σ_j softmax(β (D Wq)(F_j Wk)ᵀ) F_j: the values are the features themselves.

    Args:
        channels: c, channels of the level.
        dim: d, width in which state and stored patterns are compared; β is 1/sqrt(d).
    """

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.query = nn.Linear(channels, dim, bias=False)
        self.key = nn.Linear(channels, dim, bias=False)
        self.beta = dim**-0.5

    def forward(self, features: Tensor) -> Tensor:
        """Retrieve (b, c, h, w) from (2b, c, h, w) features, date 1 first."""
        stored = torch.stack(features.flatten(2).transpose(1, 2).chunk(2), dim=1)  # b 2 n c
        state = self.query((stored[:, 0] - stored[:, 1]).abs())  # b n d
        retrieved = retrieve(state, self.key(stored), stored, self.beta)  # b n c
        return retrieved.transpose(1, 2).reshape(-1, *features.shape[1:])

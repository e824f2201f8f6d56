"""The straightforward implementation that ours is measured against.

What one writes first: tiles as PNG in folders, decoded and normalised by the loader in float32; a
network that encodes one date after the other and writes the softmax of Eq. 1 out; a test loop of
one pair at a time. It computes the same as ours, which every benchmark checks first.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset

from dsfer.data.scenes import Scene
from dsfer.models.dsfer_net import DsferNet
from dsfer.models.fusion import FusionBlock
from dsfer.models.hopfield import FeatureRetrieval
from dsfer.models.output import ChangeOutput

PARTS = {"t1": "A", "t2": "B", "label": "label"}


def crop(scenes: Sequence[Scene], out: Path, size: int) -> None:
    """Cut scenes into folders `A`, `B` and `label` of PNG tiles, one file after the other."""
    for part, folder in PARTS.items():
        (out / folder).mkdir(parents=True, exist_ok=True)
        for scene in scenes:
            image = Image.open(getattr(scene, part))
            for top in range(0, image.height, size):
                for left in range(0, image.width, size):
                    tile = image.crop((left, top, left + size, top + size))
                    tile.save(out / folder / f"{scene.id}_{top:05d}_{left:05d}.png")


Pair = tuple[Tensor, Tensor, Tensor]


class PngTiles(Dataset[Pair]):
    """A folder of PNG tiles as a torch data set.

    Items are t1 and t2, (3, h, w) float32 normalised, and the label, (h, w) int64 of 0 and 1.
    """

    def __init__(self, folder: Path, mean: Sequence[float], std: Sequence[float]):
        self.folder = folder
        self.names = sorted(path.name for path in (folder / "A").iterdir())
        self.mean, self.std = (torch.tensor(v)[:, None, None] for v in (mean, std))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Pair:
        images = (self._read("A", index), self._read("B", index))
        t1, t2 = (
            (torch.from_numpy(image).permute(2, 0, 1).float() - self.mean) / self.std
            for image in images
        )
        return t1, t2, torch.from_numpy(self._read("label", index) // 255).long()

    def _read(self, part: str, index: int) -> np.ndarray:
        return np.array(Image.open(self.folder / part / self.names[index]))


class PlainDsferNet(DsferNet):
    """Dsfer-Net with the same weights, one step of the paper after the other."""

    def forward(self, t1: Tensor, t2: Tensor) -> ChangeOutput:
        """What `DsferNet.forward` computes."""
        features = list(zip(self.encoder(t1), self.encoder(t2), strict=True))
        deep: list[Tensor] = []
        fused = None
        for level in (5, 4, 3, 2, 1):
            mask = None
            if str(level) in self.retrieval:
                mask, intermediate = retrieve(self.retrieval[str(level)], *features[level - 1])
                deep.insert(0, intermediate)
            if fused is not None:
                fused = F.interpolate(fused, scale_factor=2, mode="bilinear", align_corners=True)
            fused = fuse(self.fusion[str(level)], *features[level - 1], mask, fused)
        return ChangeOutput(self.classifier(fused), tuple(deep))


def retrieve(layer: nn.Module, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Eqs. 1 and 2, with the matrix of scores in memory."""
    assert isinstance(layer, FeatureRetrieval)
    b, c, h, w = first.shape
    tokens = [layer.norm(image).flatten(2).transpose(1, 2) for image in (first, second)]
    state = layer.query((tokens[0] - tokens[1]).abs())
    retrieved = [
        torch.softmax(layer.beta * state @ layer.key(stored).transpose(1, 2), dim=-1)
        @ layer.value(stored)
        for stored in tokens
    ]
    mask = torch.sigmoid(retrieved[0] + retrieved[1]).transpose(1, 2).reshape(b, c, h, w)
    return mask, layer.head(mask)


def fuse(
    block: nn.Module, first: Tensor, second: Tensor, mask: Tensor | None, deeper: Tensor | None
) -> Tensor:
    """Eq. 3."""
    assert isinstance(block, FusionBlock) and block.reduce is not None
    pair = block.reduce(torch.cat((first, second), dim=1))
    if mask is not None:
        pair = pair * mask
    fused: Tensor = block.fuse(pair if deeper is None else torch.cat((pair, deeper), dim=1))
    return fused


@torch.no_grad()
def count_tiles(
    model: nn.Module, tiles: PngTiles | Subset[Pair], device: torch.device, *, workers: int
) -> np.ndarray:
    """Confusion counts tp fp fn tn over all tiles, one at a time, as most test loops do."""
    model.eval()
    total = np.zeros((2, 2), dtype=np.int64)
    for t1, t2, label in DataLoader(tiles, batch_size=1, num_workers=workers):
        logits = model(t1.to(device), t2.to(device)).logits
        predicted = logits.argmax(dim=1).cpu().numpy()
        both = 2 * label.numpy().ravel() + predicted.ravel()
        total += np.bincount(both, minlength=4).reshape(2, 2)
    (tn, fp), (fn, tp) = total
    return np.array([tp, fp, fn, tn])

"""Which networks there are.

A module of its own: results depend on their own network's entry, not on this file, so that a line
for another network makes none of them stale (`pipeline/network.py`).
"""

from dataclasses import dataclass, field
from typing import Any

from dsfer.models.variants import VARIANTS


@dataclass(frozen=True)
class Method:
    """What is known of a network before it is built: torch takes seconds to load.

    Attributes:
        path: module and name of its class, which is imported when it is built.
        divisor: what the sides of its tiles must be divisible by.
        smallest: least side of its tiles in pixels.
        variants: options of its class by the name of the variant; the first is the default.
    """

    path: str
    divisor: int = 16
    smallest: int = 16
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)


MODELS = {
    "bit": Method(
        "dsfer.models.bit.BiT",
        divisor=8,
        variants={"dd8-dedim8": {"decoder_head_width": 8}, "dd8": {"decoder_head_width": 64}},
    ),
    "changeformer": Method(
        "dsfer.models.changeformer.ChangeFormer",
        divisor=32,
        variants={"v6": {"version": "v6"}, "v5": {"version": "v5"}},
    ),
    "dsamnet": Method("dsfer.models.dsamnet.DSAMNet", divisor=4),
    # 16 for VGG-16; other encoders say themselves.
    "dsfer-net": Method(
        "dsfer.models.dsfer_net.DsferNet",
        variants={name: {"variant": name} for name in reversed(VARIANTS)},
    ),
    "fc-ef-res": Method("dsfer.models.fc_ef_res.FCEFRes"),
    "fc-siam-conc": Method("dsfer.models.fc_siam_conc.FCSiamConc"),
    "frnet": Method("dsfer.models.frnet.FrNet"),
    # 32 for the pyramid's smallest parts; basic attention alone would do with 4.
    "stanet": Method(
        "dsfer.models.stanet.STANet",
        divisor=32,
        variants={"pam": {"attention": "pam"}, "bam": {"attention": "bam"}},
    ),
    # It selects 1,000 of the features at 1/4 of the image: 120 pixels have 900, 128 have 1,024.
    "vct": Method("dsfer.models.vct.VcT", divisor=8, smallest=128),
}
"""The networks by name. A new one is a file and a line here, see docs/own-model.md."""

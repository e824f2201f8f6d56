"""From settings to a network and its losses: what training and evaluation share."""

import logging
from typing import cast

import torch
from torch import nn

import dsfer
from dsfer.data.shards import TileShards
from dsfer.data.transforms import IMAGENET, SIGNED, STANDARDISED, Input
from dsfer.distributed import world_size
from dsfer.errors import DataError
from dsfer.evaluation import Inference, Precision, has_bf16
from dsfer.losses import ChangeLoss, false_alarm_weights
from dsfer.models.hopfield import FeatureRetrieval
from dsfer.training import Training
from pipeline.params import Settings

log = logging.getLogger(__name__)

NORMALISATIONS = {"signed": SIGNED, "per-image": STANDARDISED, "imagenet": IMAGENET}
"""Those of the recipes that do not depend on the data set."""

RESNET18_HOPFIELD_DIM = 256
"""What the counts of Table IV show for it; params.yaml holds the 512 of the other two encoders."""


def open_shards(settings: Settings, split: str, *, verify: bool | slice = True) -> TileShards:
    """The shards of a split, wherever `shards` in params.yaml keeps them."""
    folder = settings.folder / "shards" / split
    return TileShards(folder, store=settings.shard_store, verify=verify)


def describe_device(device: torch.device) -> str:
    """The devices as numbers are stamped with: the GPU's name, or `cpu` with its threads."""
    many = f"{world_size()} x " if world_size() > 1 else ""
    if device.type == "cuda":
        return f"{many}{torch.cuda.get_device_name(device)}"
    return f"{many}cpu, {torch.get_num_threads()} threads"


def build_network(settings: Settings) -> nn.Module:
    """The network to train, from ImageNet weights or from scratch as the recipe says."""
    pretrained, given = settings.recipe.pretrained, settings.params.hopfield_dim
    if settings.encoder == "resnet18" and given not in (None, RESNET18_HOPFIELD_DIM):
        log.warning(
            "hopfield_dim: resnet18 with %d is not Table IV's network; null is, %d at width 1",
            given,
            RESNET18_HOPFIELD_DIM,
        )
    torch.manual_seed(settings.params.seed)
    return dsfer.create_model(
        settings.params.model,
        pretrained={"none": False, "redrawn": False, "imagenet": True}.get(pretrained, pretrained),
        **settings.model_options,
    )


def input_of(settings: Settings, train: TileShards) -> Input:
    """How the recipe normalises the network's input, by statistics of the training split or not."""
    mean, std = (cast("tuple[float, float, float]", values) for values in (train.mean, train.std))
    statistics = Input(mean, std)
    return NORMALISATIONS.get(settings.recipe.normalisation, statistics)


def build_inference(settings: Settings, scale: Input, device: torch.device) -> Inference:
    """How the network is run on this device; bf16 only where the device computes in it."""
    precision: Precision = settings.recipe.precision if has_bf16(device) else "float32"
    if precision != settings.recipe.precision:
        log.info("precision: float32, since this %s does not compute in bf16", device.type)
    # float32 means float32: by default cuDNN convolves it in the shorter TF32.
    torch.backends.cudnn.allow_tf32 = precision != "float32"
    # A device that trains on its share of a batch has room to predict twice that.
    share = settings.recipe.batch_size // max(settings.params.processes, world_size())
    mean, std = (torch.tensor(values, device=device) for values in (scale.mean, scale.std))
    return Inference(mean, std, precision, max(2 * share, 1), scale.per_image)


def build_training(settings: Settings, train: TileShards, device: torch.device) -> Training:
    """Training as the resolved recipe says."""
    recipe, params = settings.recipe, settings.params
    return Training(
        loss=ChangeLoss(
            recipe.lambda_, class_weights(settings, train), recipe.change_loss, recipe.deep_loss
        ),
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        schedule=recipe.schedule,
        schedule_iterations=recipe.schedule_iterations,
        warmup=round(recipe.warmup * recipe.iterations),
        iterations=recipe.iterations,
        batch_size=recipe.batch_size,
        sampling=recipe.sampling,
        augmentation=recipe.augmentation,
        ema=recipe.ema,
        validate_every=recipe.validate_every,
        seed=params.seed,
        compile=is_compiled(settings, device),
        in_memory=params.in_memory,
        workers=params.workers,
        optimiser=recipe.optimiser,
        momentum=recipe.momentum,
        hold=round(recipe.hold * recipe.schedule_iterations),
    )


def is_compiled(settings: Settings, device: torch.device) -> bool:
    """Whether the network is trained through torch.compile: by default on one GPU."""
    if settings.params.compile is not None:
        return settings.params.compile
    if device.type == "cuda" and world_size() > 1:
        log.info("compile: false, since %d processes train together", world_size())
        return False
    return device.type == "cuda"


def class_weights(settings: Settings, train: TileShards) -> tuple[float, float]:
    """Weights (w0, w1) of unchanged and changed pixels, as the recipe derives them from the split.

    Raises:
        DataError: the training split shows no change.
    """
    if settings.recipe.class_weights == "none":
        return 1.0, 1.0
    unchanged, changed = train.class_frequency
    if not (unchanged and changed):
        raise DataError(
            f"all training pixels are {'un' if unchanged else ''}changed",
            where=train.folder,
            mend="choose another split seed or ratio, or label more scenes",
        )
    if settings.recipe.class_weights == "false-alarm":
        return false_alarm_weights(changed)
    return 1 / unchanged, 1 / changed


def effective_retrieval(network: nn.Module) -> dict[str, float]:
    """What `hopfield_dim` and `hopfield_beta` became in a network that retrieves features so."""
    for layer in network.modules():
        if isinstance(layer, FeatureRetrieval):
            return {"hopfield_dim": layer.query.out_features, "hopfield_beta": layer.beta}
    return {}

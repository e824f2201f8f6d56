"""How the released training code of BiT, ChangeFormer and VcT draws the weights."""

from torch import nn


def redraw(model: nn.Module) -> None:
    """Draw all weights anew: N(0, 0.02) in convolutions and linear layers, N(1, 0.02) in BN.

    Biases become 0; layer norms, learned tables and running statistics stay. The released code
    does this *after* it has loaded ImageNet weights, which erases them. Ours keeps pretrained
    weights unless a recipe asks for the released start: then the network is built with this
    option and `pretrained` stays off.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, mean=1.0, std=0.02)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)

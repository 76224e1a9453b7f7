"""Small networks between student and teacher: built for the maps announced, drawn from a loss's own generator.

Shape key: B batch, C channels, H height, W width.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from student_trainer.losses.trained_pairs import draw_weights, drawn_layer

Network = TypeVar("Network", bound=nn.Module)


def drawn(build: Callable[[], Network], *, generator: torch.Generator) -> Network:
    """What ``build`` makes of convolutions and batch norms, initialised as torch does, but from ``generator``."""
    with torch.device("meta"):
        network = build()
    network.to_empty(device="cpu")
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.reset_parameters()
        elif isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            draw_weights(part, generator=generator)
    return network


def conv_norm(width_in: int, width_out: int, *, generator: torch.Generator) -> nn.Sequential:
    """A 1x1 convolution without bias, weights of variance 2 / ``width_out``, and a batch norm."""
    conv = drawn_layer(nn.Conv2d, width_in, width_out, kernel_size=1, bias=False, generator=generator)
    nn.init.normal_(conv.weight, std=math.sqrt(2 / width_out), generator=generator)
    return nn.Sequential(conv, nn.BatchNorm2d(width_out))


def as_input(values: Tensor, network: nn.Module) -> Tensor:
    """``values`` in the precision of the network's weights; unchanged where it has none."""
    weight = next(network.parameters(), None)
    return values if weight is None else values.to(weight.dtype)

"""Wide residual networks (Zagoruyko and Komodakis 2016): wrn_D_W of depth D = 6n + 4 and width factor W, no dropout.

Shape key: B images, C classes.
"""

import math

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, relu


class PreActivationBlock(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions.

    Where the shape changes, the shortcut starts after the first batch norm and ReLU; elsewhere it is the input itself.
    """

    def __init__(self, in_channels: int, *, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        # The name of the published networks, so that their weights load.
        self.convShortcut = (
            None if in_channels == channels else nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The sum, before any batch norm."""
        activated = relu(self.bn1(x))
        residual: Tensor = self.conv2(relu(self.bn2(self.conv1(activated))))
        return residual + (x if self.convShortcut is None else self.convShortcut(activated))


class Stage(nn.Module):
    """Blocks of one width; the first may change width and size."""

    def __init__(self, in_channels: int, *, channels: int, blocks: int, stride: int) -> None:
        super().__init__()
        first = PreActivationBlock(in_channels, channels=channels, stride=stride)
        rest = (PreActivationBlock(channels, channels=channels, stride=1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        """The last block's output."""
        output: Tensor = self.layer(x)
        return output


class WideResNet(nn.Module):
    """A 3x3 stem of 16 channels, then stages of 16W, 32W and 64W channels at 1, 1/2 and 1/4 of the input's size."""

    def __init__(self, *, depth: int, width: int, classes: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = Stage(16, channels=16 * width, blocks=blocks, stride=1)
        self.block2 = Stage(16 * width, channels=32 * width, blocks=blocks, stride=2)
        self.block3 = Stage(32 * width, channels=64 * width, blocks=blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        nn.init.zeros_(self.fc.bias)

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps f0 (stem) to f3 (stages), each before the batch norm and ReLU that follow it."""
        f0 = self.conv1(x)
        f1 = self.block1(f0)
        f2 = self.block2(f1)
        return f0, f1, f2, self.block3(f2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C]."""
        activated = relu(self.bn1(self.maps(x)[-1]))
        logits: Tensor = self.fc(adaptive_avg_pool2d(activated, 1).flatten(1))
        return logits

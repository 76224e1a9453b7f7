"""MobileNetV2 for small images (Sandler et al. 2018) at half width: the student of RepDistiller's tables.

Shape key: B images, C classes.
"""

import math
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels at full width, blocks, stride of the first block."""
LAST_CHANNELS = 1280
MAP_ENDS = (0, 2, 3, 5, 7)
"""Feature map k is what the stages before index MAP_ENDS[k] give; map 0 is the stem's."""


class InvertedResidual(nn.Module):
    """Expand, depthwise 3x3, project without activation; a shortcut where the shape stays."""

    def __init__(self, in_channels: int, *, channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.keeps_shape = stride == 1 and in_channels == channels
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, stride=stride, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The projection, plus the input where shapes agree."""
        projected: Tensor = self.conv(x)
        return x + projected if self.keeps_shape else projected


class MobileNetV2(nn.Module):
    """A stem that halves the size, seven stages of inverted residuals, a 1x1 convolution to 1280 channels."""

    def __init__(self, *, classes: int, width: float = 0.5) -> None:
        super().__init__()
        stem = int(32 * width)
        self.conv1 = _unit(3, channels=stem, kernel=3, stride=2)
        stages = []
        source = stem
        for expansion, full_channels, blocks, stride in STAGES:
            channels = int(full_channels * width)
            stages.append(_stage(source, channels=channels, expansion=expansion, blocks=blocks, stride=stride))
            source = channels
        self.blocks = nn.Sequential(*stages)
        self.conv2 = _unit(source, channels=LAST_CHANNELS, kernel=1, stride=1)
        self.classifier = nn.Sequential(nn.Linear(LAST_CHANNELS, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps f0 (stem) to f4, the last at 1/16 of the input's size."""
        found = [self.conv1(x)]
        for start, end in pairwise(MAP_ENDS):
            found.append(self.blocks[start:end](found[-1]))
        return tuple(found)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C]."""
        pooled = adaptive_avg_pool2d(self.conv2(self.maps(x)[-1]), 1).flatten(1)
        logits: Tensor = self.classifier(pooled)
        return logits


def _unit(in_channels: int, *, channels: int, kernel: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())


def _stage(in_channels: int, *, channels: int, expansion: int, blocks: int, stride: int) -> nn.Sequential:
    first = InvertedResidual(in_channels, channels=channels, expansion=expansion, stride=stride)
    rest = (InvertedResidual(channels, channels=channels, expansion=expansion, stride=1) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)

"""ShuffleNet V1 (Zhang et al. 2018, 3 groups) and V2 (Ma et al. 2018, 1x) for small images: no stride in the stem.

Shape key: B images, C classes.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, relu

STEM_CHANNELS = 24
V1_GROUPS = 3
V1_STAGES = ((240, 4), (480, 8), (960, 4))
V2_STAGES = ((116, 4), (232, 8), (464, 4))
"""Channels and blocks of each stage; the first block of a stage halves the size."""
V2_LAST_CHANNELS = 1024


def shuffle_channels(x: Tensor, *, groups: int) -> Tensor:
    """Deal the channels of each group round the groups."""
    batch, channels, height, width = x.shape
    return x.view(batch, groups, channels // groups, height, width).transpose(1, 2).reshape(x.shape)


class GroupedBlock(nn.Module):
    """V1: grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; added to the input, or beside its average where halving."""

    def __init__(self, in_channels: int, *, channels: int, stride: int) -> None:
        super().__init__()
        hidden = channels // 4
        # 24 channels are too few to be worth grouping, says the paper.
        self.groups = 1 if in_channels == STEM_CHANNELS else V1_GROUPS
        self.stride = stride
        self.conv1 = nn.Conv2d(in_channels, hidden, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride=stride, padding=1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, channels, 1, groups=V1_GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """The sum or the concatenation, after ReLU."""
        mixed = shuffle_channels(relu(self.bn1(self.conv1(x))), groups=self.groups)
        residual = self.bn3(self.conv3(relu(self.bn2(self.conv2(mixed)))))
        if self.stride == 1:
            return relu(x + residual)
        return relu(torch.cat([residual, avg_pool2d(x, 3, stride=2, padding=1)], dim=1))


class SplitBlock(nn.Module):
    """V2, keeping the size: half of the channels pass, the others are convolved three times; then shuffle."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """Both halves, shuffled."""
        kept, worked = x.chunk(2, dim=1)
        worked = self.bn2(self.conv2(relu(self.bn1(self.conv1(worked)))))
        worked = relu(self.bn3(self.conv3(worked)))
        return shuffle_channels(torch.cat([kept, worked], dim=1), groups=2)


class HalvingBlock(nn.Module):
    """V2, halving the size: both branches see all channels; then shuffle."""

    def __init__(self, in_channels: int, *, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, stride=2, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, stride=2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """Both branches, shuffled."""
        left = relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = self.bn4(self.conv4(relu(self.bn3(self.conv3(x)))))
        right = relu(self.bn5(self.conv5(right)))
        return shuffle_channels(torch.cat([left, right], dim=1), groups=2)


class ShuffleNet(nn.Module):
    """What both versions share: a 1x1 stem of 24 channels and three stages at 1/2, 1/4 and 1/8 of the input's size."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM_CHANNELS, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps f0 (stem) to f3 (stages)."""
        f0 = relu(self.bn1(self.conv1(x)))
        f1 = self.layer1(f0)
        f2 = self.layer2(f1)
        return f0, f1, f2, self.layer3(f2)


class ShuffleNetV1(ShuffleNet):
    """The grouped version; the penultimate width is 960."""

    def __init__(self, *, classes: int) -> None:
        super().__init__()
        source = STEM_CHANNELS
        stages = []
        for channels, blocks in V1_STAGES:
            # The first block's convolutions give what its averaged input does not.
            first = GroupedBlock(source, channels=channels - source, stride=2)
            rest = (GroupedBlock(channels, channels=channels, stride=1) for _ in range(blocks - 1))
            stages.append(nn.Sequential(first, *rest))
            source = channels
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(source, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C]."""
        logits: Tensor = self.linear(adaptive_avg_pool2d(self.maps(x)[-1], 1).flatten(1))
        return logits


class ShuffleNetV2(ShuffleNet):
    """The splitting version; a last 1x1 convolution makes the penultimate width 1024."""

    def __init__(self, *, classes: int) -> None:
        super().__init__()
        source = STEM_CHANNELS
        stages = []
        for channels, blocks in V2_STAGES:
            rest = (SplitBlock(channels) for _ in range(blocks - 1))
            stages.append(nn.Sequential(HalvingBlock(source, channels=channels), *rest))
            source = channels
        self.layer1, self.layer2, self.layer3 = stages
        self.conv2 = nn.Conv2d(source, V2_LAST_CHANNELS, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(V2_LAST_CHANNELS)
        self.linear = nn.Linear(V2_LAST_CHANNELS, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C]."""
        last = relu(self.bn2(self.conv2(self.maps(x)[-1])))
        logits: Tensor = self.linear(adaptive_avg_pool2d(last, 1).flatten(1))
        return logits

"""ResNet50 for small images (He et al. 2016), as RepDistiller's tables have it for a teacher.

Shape key: B images, C classes.
"""

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, relu

STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
"""Channels inside a block, blocks, stride of the first block."""
EXPANSION = 4
"""Channels of a block's output over those inside."""


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut, ReLU after the sum."""

    def __init__(self, in_channels: int, *, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = EXPANSION * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            convolution = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, after ReLU."""
        inner = relu(self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))))
        return relu(self.bn3(self.conv3(inner)) + self.shortcut(x))


class CifarResNet50(nn.Module):
    """A 3x3 stem, then four stages of bottlenecks at 1, 1/2, 1/4 and 1/8 of the input's size."""

    def __init__(self, *, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        source = 64
        for number, (channels, blocks, stride) in enumerate(STAGES, start=1):
            setattr(self, f"layer{number}", _stage(source, channels=channels, blocks=blocks, stride=stride))
            source = EXPANSION * channels
        self.linear = nn.Linear(source, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps f0 (stem) to f4 (stages), after ReLU."""
        found = [relu(self.bn1(self.conv1(x)))]
        for number in range(1, len(STAGES) + 1):
            found.append(self.get_submodule(f"layer{number}")(found[-1]))
        return tuple(found)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C]."""
        logits: Tensor = self.linear(adaptive_avg_pool2d(self.maps(x)[-1], 1).flatten(1))
        return logits


def _stage(in_channels: int, *, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(in_channels, channels=channels, stride=stride)
    rest = (Bottleneck(EXPANSION * channels, channels=channels, stride=1) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)

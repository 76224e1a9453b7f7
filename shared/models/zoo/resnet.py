"""CIFAR ResNets (He et al. 2016, section 4.2), with 1x1 convolution shortcuts; resnetD and the 4x wider resnetDx4.

Shape key: B images, C classes.
"""

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, relu


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, ReLU after the sum."""

    def __init__(self, in_channels: int, *, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != channels:
            shortcut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, after ReLU."""
        residual = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        return relu(residual + (x if self.downsample is None else self.downsample(x)))


class CifarResNet(nn.Module):
    """Depth 6n + 2: a 3x3 stem, then three stages of n blocks at 1, 1/2 and 1/4 of the input's size."""

    def __init__(self, *, depth: int, widths: tuple[int, int, int, int], classes: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        stem, first, second, third = widths
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = _stage(stem, channels=first, blocks=blocks, stride=1)
        self.layer2 = _stage(first, channels=second, blocks=blocks, stride=2)
        self.layer3 = _stage(second, channels=third, blocks=blocks, stride=2)
        self.fc = nn.Linear(third, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps f0 (stem) to f3 (stages), after ReLU."""
        f0 = relu(self.bn1(self.conv1(x)))
        f1 = self.layer1(f0)
        f2 = self.layer2(f1)
        return f0, f1, f2, self.layer3(f2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C]."""
        logits: Tensor = self.fc(adaptive_avg_pool2d(self.maps(x)[-1], 1).flatten(1))
        return logits


def _stage(in_channels: int, *, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels=channels, stride=stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels=channels, stride=1) for _ in range(blocks - 1)))

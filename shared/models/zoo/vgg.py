"""VGG with batch norm for small images (Simonyan and Zisserman 2015): vgg8 (one convolution a block) to vgg19.

Shape key: B images, C classes.
"""

import math

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, max_pool2d, relu

BLOCK_CONVOLUTIONS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""Convolutions in each of the five blocks, by depth."""
BLOCK_CHANNELS = (64, 128, 256, 512, 512)


class CifarVgg(nn.Module):
    """Five blocks of 3x3 convolutions, halving the size after the first three, then the mean over places."""

    def __init__(self, *, depth: int, classes: int) -> None:
        super().__init__()
        counts = BLOCK_CONVOLUTIONS[depth]
        inputs = (3, *BLOCK_CHANNELS[:-1])
        self.block0, self.block1, self.block2, self.block3, self.block4 = (
            _block(source, channels=channels, convolutions=count)
            for source, channels, count in zip(inputs, BLOCK_CHANNELS, counts, strict=True)
        )
        self.classifier = nn.Linear(BLOCK_CHANNELS[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=math.sqrt(2.0 / (9 * module.out_channels)))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps f0 to f4, one per block, after ReLU and before pooling."""
        f0 = relu(self.block0(x))
        f1 = relu(self.block1(_halve(f0)))
        f2 = relu(self.block2(_halve(f1)))
        f3 = relu(self.block3(_halve(f2)))
        # As published: the fourth pooling is for images of 64 pixels and more.
        f4 = relu(self.block4(_halve(f3) if x.shape[-2] >= 64 else f3))
        return f0, f1, f2, f3, f4

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C]."""
        logits: Tensor = self.classifier(adaptive_avg_pool2d(self.maps(x)[-1], 1).flatten(1))
        return logits


def _block(in_channels: int, *, channels: int, convolutions: int) -> nn.Sequential:
    """Convolution and batch norm, with ReLU between but not after the last: `CifarVgg.maps` applies that one."""
    layers: list[nn.Module] = []
    for _ in range(convolutions):
        layers += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
        in_channels = channels
    return nn.Sequential(*layers[:-1])


def _halve(x: Tensor) -> Tensor:
    """2x2 maximum, except that a side of 1 stays 1."""
    window = (min(2, x.shape[-2]), min(2, x.shape[-1]))
    return max_pool2d(x, window, stride=window)

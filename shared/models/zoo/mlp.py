"""A small perceptron for experiments of thousands of trainings: seconds each, on one core.

Shape key: B images, C classes.
"""

from torch import Tensor, nn
from torch.nn.functional import relu

SIDE = 8
"""Images are averaged to this many pixels in height and width, so any size is taken."""
WIDTH = 128


class Mlp(nn.Module):
    """The image averaged to 8 x 8 pixels (192 numbers), two hidden layers of 128 with ReLU, and a linear classifier.

    Hidden weights are drawn as He et al. 2015 say (normal, variance 2 / inputs), the classifier's with standard
    deviation 0.01, and biases begin at 0: the first logits are near 0 for every image.
    """

    def __init__(self, *, classes: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(SIDE)
        self.fc1 = nn.Linear(3 * SIDE * SIDE, WIDTH)
        self.fc2 = nn.Linear(WIDTH, WIDTH)
        self.classifier = nn.Linear(WIDTH, classes)
        for hidden in (self.fc1, self.fc2):
            nn.init.kaiming_normal_(hidden.weight, nonlinearity="relu")
        nn.init.normal_(self.classifier.weight, std=0.01)
        for layer in (self.fc1, self.fc2, self.classifier):
            nn.init.zeros_(layer.bias)

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Both hidden layers after ReLU, f0 and f1, as maps of one place [B, 128, 1, 1]."""
        # Averaging 8 x 8 to 8 x 8 changes nothing, and takes a tenth of a step.
        pixels = x if x.shape[-2:] == (SIDE, SIDE) else self.pool(x)
        f0 = relu(self.fc1(pixels.flatten(1)))
        f1 = relu(self.fc2(f0))
        return f0[:, :, None, None], f1[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C]."""
        logits: Tensor = self.classifier(self.maps(x)[-1].flatten(1))
        return logits

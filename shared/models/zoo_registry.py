"""Which networks ``zoo:`` knows, by name."""

import difflib
import re
from collections.abc import Callable
from functools import partial

from torch import nn

from shared.errors import UnknownNameError
from shared.models.zoo.mlp import Mlp
from shared.models.zoo.mobilenet_v2 import MobileNetV2
from shared.models.zoo.resnet import CifarResNet
from shared.models.zoo.resnet50 import CifarResNet50
from shared.models.zoo.shuffle import ShuffleNetV1, ShuffleNetV2
from shared.models.zoo.vgg import BLOCK_CONVOLUTIONS, CifarVgg
from shared.models.zoo.wrn import WideResNet

Builder = Callable[..., nn.Module]
"""``builder(classes=C)`` gives an untrained network that maps float [B, 3, H, W] to logits [B, C]."""

NARROW = (16, 16, 32, 64)
WIDE = (32, 64, 128, 256)

ZOO: dict[str, Builder] = {
    **{f"resnet{depth}": partial(CifarResNet, depth=depth, widths=NARROW) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": partial(CifarResNet, depth=depth, widths=WIDE) for depth in (8, 32)},
    **{f"wrn_{depth}_{width}": partial(WideResNet, depth=depth, width=width) for depth in (16, 40) for width in (1, 2)},
    **{f"vgg{depth}": partial(CifarVgg, depth=depth) for depth in BLOCK_CONVOLUTIONS},
    "mlp": Mlp,
    "ResNet50": CifarResNet50,
    "MobileNetV2": MobileNetV2,
    "ShuffleV1": ShuffleNetV1,
    "ShuffleV2": ShuffleNetV2,
}
"""Networks by their published names, and a perceptron. Any other ``wrn_D_W`` with D = 6n + 4 is built as well."""

ALIASES = {"shufflenetv1": "ShuffleV1", "shufflenetv2": "ShuffleV2"}
WRN_PATTERN = re.compile(r"wrn_(\d{2,3})_(\d{1,2})")


def find_network(name: str) -> tuple[str, Builder]:
    """The published spelling of ``name``, whatever its case, and its builder; else `UnknownNameError`."""
    wanted = name.lower().replace("-", "_")
    spelling = ALIASES.get(wanted) or {known.lower(): known for known in ZOO}.get(wanted)
    if spelling is not None:
        return spelling, ZOO[spelling]
    match = WRN_PATTERN.fullmatch(wanted)
    if match and (int(match[1]) - 4) % 6 == 0 and int(match[1]) >= 10 and int(match[2]) >= 1:
        return wanted, partial(WideResNet, depth=int(match[1]), width=int(match[2]))
    raise UnknownNameError(f"unknown network zoo:{name[:60]}; {_suggestion(wanted)}")


def _suggestion(wanted: str) -> str:
    spellings = {known.lower(): known for known in ZOO}
    close = difflib.get_close_matches(wanted, spellings, n=3, cutoff=0.6)
    if close:
        return f"did you mean {', '.join(spellings[name] for name in close)}?"
    return f"known: {', '.join(ZOO)}, and wrn_D_W with D = 6n + 4"

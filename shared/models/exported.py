"""Networks saved by ``torch.export``: loading them without running anyone's code, and finding their features.

Shape key: B images, C classes, D feature width, H height, W width.
"""

import io
import math
from collections.abc import Callable
from pathlib import Path
from zipfile import BadZipFile

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.fx.graph import CodeGen

from shared.errors import InputError
from shared.models.export_safety import vetted_archive

PASSES_THROUGH = {"view", "reshape", "flatten", "squeeze", "clone", "contiguous", "dropout", "_to_copy", "to", "alias"}
POOLS = {"mean", "adaptive_avg_pool2d", "avg_pool2d", "_adaptive_avg_pool2d", "relu", "relu_"}
"""Operations between the head and the output: any head, and only a 1x1 convolution's."""
CONVOLUTIONS = {"conv2d", "convolution"}
REMEDY = (
    "export a classifier whose one output is the logits [B, C] of its last Linear (or 1x1 convolution, then pooled)"
)


def load_exported(path: Path, *, trust_export: bool = False) -> GraphModule:
    """The program as a module of float [B, 3, H, W]; refuses what could run code unless ``trust_export``."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    try:
        archive = data if trust_export else vetted_archive(data, name=path.name)
        program = torch.export.load(io.BytesIO(archive))
        # Its guards are source code out of the file; the sizes they would check are checked by the operators.
        return program.module(check_guards=trust_export)
    except (RuntimeError, AssertionError, KeyError, ValueError, TypeError, EOFError, BadZipFile) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(f"{path} is not a program of torch.export.save that this torch can load: {reason}") from error


def expose_features(model: GraphModule) -> tuple[nn.Module, int, int, bool]:
    """The same program with outputs (logits, head's input), C, D, and whether the input is a map [B, D, H, W]."""
    _, output = _ends(model)
    head = _head(output)
    activation = head.args[1] if _operation(head) == "addmm" else head.args[0]
    is_map = _operation(head) in CONVOLUTIONS
    sides = [int(side) for side in _shape(activation)[1:]]
    classes, width = int(_shape(output)[-1]), sides[0] if is_map else math.prod(sides)
    graph = model.graph
    graph.set_codegen(CodeGen())
    graph.output_node().args = ((output, activation),)
    model.recompile()
    return model, classes, width, is_map


def fixed_sizes(model: GraphModule) -> tuple[int | None, int | None, int | None]:
    """B, H and W that the program was exported with, None where it takes any."""
    batch, _, height, width = _shape(_ends(model)[0])
    return tuple(side if isinstance(side, int) else None for side in (batch, height, width))  # type: ignore[return-value]


def _ends(model: GraphModule) -> tuple[Node, Node]:
    images = [node for node in model.graph.nodes if node.op == "placeholder"]
    outputs = model.graph.output_node().args[0]
    outputs = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
    if len(images) != 1 or len(_shape(images[0])) != 4 or _shape(images[0])[1] != 3:
        raise InputError(f"the program takes {len(images)} inputs; it must take one float [B, 3, H, W]; {REMEDY}")
    if len(outputs) != 1 or not isinstance(outputs[0], Node) or len(_shape(outputs[0])) != 2:
        raise InputError(f"the program gives {len(outputs)} outputs, or not [B, C]; {REMEDY}")
    return images[0], outputs[0]


def _head(output: Node) -> Node:
    """Walk back from the logits to the linear or 1x1 convolution that made them."""
    node, pooled = output, False
    while True:
        name = _operation(node)
        if name in {"linear", "addmm"} and not pooled:
            return node
        if name in CONVOLUTIONS and tuple(_shape(node.args[1])[2:]) == (1, 1):
            return node
        pooled = pooled or name in POOLS
        if name not in PASSES_THROUGH | POOLS or not isinstance(node.args[0], Node):
            raise InputError(f"the program's logits come from {name or node.op}, not from one last layer; {REMEDY}")
        node = node.args[0]


def _operation(node: Node) -> str:
    """``linear`` of ``aten.linear.default``; empty for what is not an operation."""
    target: str | Callable[..., object] = node.target
    return getattr(target, "_opname", "") if node.op == "call_function" else ""


def _shape(node: object) -> tuple[int | torch.SymInt, ...]:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()

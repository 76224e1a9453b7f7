"""Compiles a network for one shape of batches, and on CUDA records what it does there as a graph."""

from collections.abc import Callable

import torch
from torch import Tensor

from shared.errors import InputError
from shared.models.features import LogitsAndFeatures
from shared.models.forward_graph import ForwardGraph

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]
MOST_SHAPES = 1024
"""torch gives up a network silently after 8 shapes or devices; here their number is known before."""


def compiled_forward(network: LogitsAndFeatures, *, prepare: Callable[[Tensor], Tensor], example: Tensor) -> Forward:
    """Logits and features of pixels of the example's shape; ``prepare`` makes the network's input of them.

    Compiling happens here, within the caller's kind of gradients and arithmetic. Raises `InputError` where there is
    no compiler, or the network cannot be compiled.
    """
    compiled = torch.compile(network, dynamic=False)

    def forward(pixels: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = compiled(prepare(pixels))
        return logits, features

    try:
        with torch._dynamo.config.patch(recompile_limit=MOST_SHAPES, accumulated_recompile_limit=MOST_SHAPES):
            forward(example)
            return ForwardGraph(forward, example=example) if example.is_cuda else forward
    except torch.OutOfMemoryError:
        raise
    # Whatever a compiler, its backend or a graph's recording raises: RuntimeError is the kind of all of them.
    except RuntimeError as error:
        kind, said = type(error).__name__, (str(error).strip().splitlines() or [""])[0][:200]
        needs = "triton" if example.is_cuda else "a C++ compiler such as g++"
        raise InputError(
            f"cannot compile this teacher for batches of {len(example)} images ({kind}: {said}); "
            f"compiling needs {needs}: install it, or leave out --compile"
        ) from error

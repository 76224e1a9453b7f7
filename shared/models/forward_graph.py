"""A CUDA graph of a forward: for one shape, recorded once, launched as a whole."""

from collections.abc import Callable

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
RUNS_BEFORE = 3
"""What libraries choose and allocate at their first runs must not be part of the recording."""


class ForwardGraph:
    """Replays a forward that was recorded on ``example``; what it gives is written over by its next call.

    So whoever calls it must have told the same stream to copy the answers before that.
    """

    def __init__(self, forward: Callable[[Tensor], Pair], *, example: Tensor) -> None:
        self._pixels = example.clone()
        stream = torch.cuda.Stream(example.device)  # type: ignore[no-untyped-call]  # torch has no types for it
        stream.wait_stream(torch.cuda.current_stream(example.device))
        with torch.cuda.stream(stream):
            for _ in range(RUNS_BEFORE):
                forward(self._pixels)
        torch.cuda.current_stream(example.device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Only what this thread does is recorded. The stream is given: torch's own is always one of the first device.
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            self._answers = forward(self._pixels)

    def __call__(self, pixels: Tensor) -> Pair:
        """The answers for ``pixels``, of the example's shape."""
        self._pixels.copy_(pixels)
        self._graph.replay()
        return self._answers

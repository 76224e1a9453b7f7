"""float32 arithmetic on CUDA, whatever the process has chosen for its own training."""

from threading import Lock
from types import TracebackType
from typing import Any

import torch


class ExactFloat32:
    """No TF32 while anybody is within; the last to leave restores what the first one found.

    torch's choice is one for the whole process. Two threads that each restored what they had found would leave one of
    them computing in TF32, or the process without it for ever.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._within = 0
        self._before: list[str] = []

    def __enter__(self) -> None:
        with self._lock:
            if self._within == 0:
                self._before = [backend.fp32_precision for backend in _backends()]
                for backend in _backends():
                    backend.fp32_precision = "ieee"
            self._within += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._within -= 1
            if self._within == 0:
                for backend, precision in zip(_backends(), self._before, strict=True):
                    backend.fp32_precision = precision


def _backends() -> tuple[Any, Any]:
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # torch adds it at run time
    return convolutions, torch.backends.cuda.matmul


EXACT_FLOAT32 = ExactFloat32()
"""The one of this process."""

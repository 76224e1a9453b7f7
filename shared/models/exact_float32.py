"""float32 arithmetic, whatever the process has chosen for its own training.

torch has two ways to choose, and raises "mix of the legacy and new APIs" where somebody asks and they disagree.
"""

from dataclasses import dataclass
from threading import Lock
from types import TracebackType
from typing import Any, Self

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What torch computes float32 with, in both ways that it can be told."""

    precisions: tuple[str, ...] = ("ieee",) * 4
    """The new way, per backend."""
    matmul: str = "highest"
    """The legacy way: ``highest``, ``high`` or ``medium``."""
    cudnn_tf32: bool = False
    """The legacy way."""

    @classmethod
    def found(cls) -> Self:
        """The process's own; may leave another behind."""
        precisions = tuple(backend.fp32_precision for backend in _backends())
        # The legacy getters raise unless the new way agrees: beside "ieee" only cuDNN's can, which then says TF32.
        _choose(EXACT.precisions)
        try:
            cudnn_tf32 = torch.backends.cudnn.allow_tf32
        except RuntimeError:
            cudnn_tf32 = True
        return cls(precisions=precisions, matmul=torch.get_float32_matmul_precision(), cudnn_tf32=cudnn_tf32)

    def choose(self) -> None:
        """Have torch compute so."""
        torch.set_float32_matmul_precision(self.matmul)
        torch.backends.cudnn.allow_tf32 = self.cudnn_tf32
        # Last: the legacy setters set these too.
        _choose(self.precisions)


EXACT = Choice()
"""No TF32, and no bfloat16 either."""


class ExactFloat32:
    """No TF32 while anybody is within; the last to leave restores what the first one found.

    torch's choice is one for the whole process. Two threads that each restored what they had found would leave one of
    them computing in TF32, or the process without it for ever.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._within = 0
        self._before = Choice()

    def __enter__(self) -> None:
        with self._lock:
            if self._within == 0:
                self._before = Choice.found()
                EXACT.choose()
            self._within += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._within -= 1
            if self._within == 0:
                self._before.choose()


def _backends() -> tuple[Any, ...]:
    backends: Any = torch.backends  # torch adds their parts at run time
    return backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul, backends.mkldnn.matmul


def _choose(precisions: tuple[str, ...]) -> None:
    for backend, precision in zip(_backends(), precisions, strict=True):
        backend.fp32_precision = precision


EXACT_FLOAT32 = ExactFloat32()
"""The one of this process."""

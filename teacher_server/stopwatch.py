"""When a batch's forward pass began, how long it took, and on what: a line of the ledger's history."""

import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

from cache.model_call import ModelCall
from shared.teacher import Teacher

Result = TypeVar("Result")


class Stopwatch:
    """Measures one piece of work, in the threads that do it."""

    def __init__(self) -> None:
        self.began_s = time.time()
        self.duration_s = 0.0
        self._began = time.perf_counter()

    def run(self, work: Callable[..., Result], *arguments: object) -> Result:
        """Do the work; what it raises is measured too."""
        self.began_s, self._began = time.time(), time.perf_counter()
        try:
            return work(*arguments)
        finally:
            self.stop()

    def stop(self, *, not_before_s: float = 0.0) -> None:
        """The work has ended; what came before ``not_before_s`` (of `time.perf_counter`) was other work."""
        self.duration_s = time.perf_counter() - max(self._began, not_before_s)

    def call(self, *, images: int, device: str, versions: Mapping[str, str]) -> ModelCall:
        """What the history is told."""
        return ModelCall(
            began_s=self.began_s, duration_s=self.duration_s, images=images, device=device, versions=versions
        )


def running_versions(teacher: Teacher) -> dict[str, str]:
    """This program, Python, and the libraries that compute."""
    try:
        own = version("teachonce")
    except PackageNotFoundError:
        own = "unknown"
    return {"teachonce": own, "python": platform.python_version(), **teacher.description.libraries}

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
    """Measures one piece of work, in the thread that does it."""

    def __init__(self) -> None:
        self.began_s = time.time()
        self.duration_s = 0.0

    def run(self, work: Callable[..., Result], *arguments: object) -> Result:
        """Do the work; what it raises is measured too."""
        self.began_s = time.time()
        began = time.perf_counter()
        try:
            return work(*arguments)
        finally:
            self.duration_s = time.perf_counter() - began

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

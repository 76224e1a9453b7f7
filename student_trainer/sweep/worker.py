"""What runs in the processes of a sweep: one task at a time, on one thread, for as long as the sweep lives.

Nothing here imports torch before a task needs it: its processes are told first which GPU they may see.
"""

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.queues import SimpleQueue
from typing import Any

from shared.errors import TeachonceError

MOST_CLEANUP_S = 90.0
"""How long a task may take to end, once the sweep is gone, before its process is ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that a task tells while it runs."""

    name: str
    """Of the task."""
    done: int
    """Student forwards, or answers, so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """An error between processes: pickle cannot rebuild those of `shared.errors` that take arguments of their own."""

    message: str
    exit_code: int


class TaskError(TeachonceError):
    """A task of the sweep failed."""

    code = "sweep_task_failed"


Tell = Callable[[Event], None]
_running = threading.Lock()
_events: "SimpleQueue[Event] | None" = None


def begin(lifeline: Connection, events: "SimpleQueue[Event]", gpus: "SimpleQueue[str] | None") -> None:
    """Make this process a worker: it ends with the sweep, however that ends, and leaves Ctrl-C to it."""
    global _events  # noqa: PLW0603 - the pool calls tasks as plain functions; this is where they find their queue
    _events = events
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    if gpus is not None:
        # CUDA reads it when it starts; there is no other way to give a library that takes "the" GPU another one.
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus.get()
    threading.Thread(target=_end_with, args=(lifeline, threading.get_ident()), daemon=True).start()


def tell(event: Event) -> None:
    """Send an event to the sweep."""
    if _events is not None:
        _events.put(event)


def perform(task: Callable[[Any], Any], argument: Any) -> Any:
    """Run one task; what it returns, or a `Failure`."""
    with _running:
        try:
            return task(argument)
        except TeachonceError as error:
            return Failure(message=str(error), exit_code=error.exit_code)
        except OSError as error:
            return Failure(message=str(error), exit_code=1)
        except RuntimeError as error:
            # torch's, by name: importing it here would be too early.
            if type(error).__name__ != "OutOfMemoryError":
                raise
            message = f"out of memory on the device ({error}); use a smaller train.batch, or fewer --jobs"
            return Failure(message=message, exit_code=1)


def _stop(_number: int, _frame: object) -> None:
    raise SystemExit(1)


def _end_with(lifeline: Connection, main_thread: int) -> None:
    """End this process when the sweep closes its end of the pipe, or dies: the kernel closes it then."""
    wait([lifeline])
    # A task that serves a teacher stops it on the way out; a training is safe to leave at any point.
    signal.pthread_kill(main_thread, signal.SIGTERM)
    _running.acquire(timeout=MOST_CLEANUP_S)
    os._exit(1)

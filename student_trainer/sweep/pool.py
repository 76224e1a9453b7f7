"""The processes of a sweep: started when first needed, used again for every task, ended with the sweep."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, SpawnContext
from types import TracebackType
from typing import Any, Self

from student_trainer.sweep.worker import Event, Failure, TaskError, begin, perform

POLL_S = 0.2
"""How often events are read while tasks run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A function of a module, with its argument; both cross to another process."""

    name: str
    function: Callable[[Any], Any]
    argument: Any


class Pool:
    """Runs tasks in ``jobs`` processes, one GPU of ``gpus`` for each where there are some; a context manager."""

    def __init__(self, *, jobs: int, gpus: Sequence[str] = ()) -> None:
        context = _context(gpus)
        # Closed by `close`, or by the kernel when this process dies: either way the workers end.
        self._lifeline_end, self._lifeline = context.Pipe(duplex=False)
        self._events = context.SimpleQueue()
        places = None
        if gpus:
            places = context.SimpleQueue()
            for number in range(jobs):
                places.put(gpus[number % len(gpus)])
        self._executor = ProcessPoolExecutor(
            jobs, mp_context=context, initializer=begin, initargs=(self._lifeline_end, self._events, places)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lifeline.close()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def run(self, tasks: Sequence[Task], *, hear: Callable[[Event], None]) -> Iterator[tuple[Task, Any]]:
        """Tasks as they finish, with what they returned; ``hear`` is given what they tell meanwhile.

        Raises TaskError with the task's name for an error of `shared.errors`, and where a process died.
        """
        waiting = {self._executor.submit(perform, task.function, task.argument): task for task in tasks}
        while waiting:
            done, _ = wait(waiting, timeout=POLL_S, return_when=FIRST_COMPLETED)
            while not self._events.empty():
                hear(self._events.get())
            for future in done:
                task = waiting.pop(future)
                yield task, _result(future, task=task)


def _context(gpus: Sequence[str]) -> SpawnContext | ForkServerContext:
    """Forked from a process that has imported all that a training needs and done nothing else, where there is no GPU.

    With GPUs every process starts from nothing: it must not meet CUDA before it is told which one it may see.
    """
    if gpus or "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["student_trainer.sweep.tasks"])
    return context


def _result(future: "Future[Any]", *, task: Task) -> Any:
    try:
        result = future.result()
    except BrokenProcessPool as error:
        raise TaskError(
            "a process of the sweep was killed (was there enough memory? fewer --jobs need less);"
            " the same command goes on where it stopped"
        ) from error
    if isinstance(result, Failure):
        problem = TaskError(f"{task.name}: {result.message}")
        problem.exit_code = result.exit_code
        raise problem
    return result

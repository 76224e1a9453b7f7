"""How much memory a computation takes: exact bytes, seen operation by operation, the same on every device."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from loss_cases import Case
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from student_trainer.losses.base import DistillLoss


class LiveMemory(TorchDispatchMode):
    """Follows every tensor that is made while it is entered; what existed before does not count.

    Blind to what one operation takes and gives back within itself.
    """

    def __init__(self, known: Sequence[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_bytes = 0
        """Most that was held at once."""
        self.numbers = 0
        """How many numbers the largest result of any operation held."""
        self.total = 0
        """How many numbers the results of all operations held, one after the other."""
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # Tensors freed since the last operation, before an address of theirs is found again.
        self._held = {key: held for key, held in self._held.items() if not held[0].expired()}  # type: ignore[no-untyped-call]
        given = {leaf.untyped_storage()._cdata for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_iter(result):
            if isinstance(leaf, Tensor):
                self._see(leaf, given=given)
        self.peak_bytes = max(self.peak_bytes, sum(size for _, size in self._held.values()))
        return result

    def _see(self, tensor: Tensor, *, given: set[int]) -> None:
        storage = tensor.untyped_storage()
        numbers = len(storage) // tensor.itemsize
        self.numbers = max(self.numbers, numbers)
        self.total += numbers
        # A view, or a change in place, of what was there before is no new memory.
        if storage._cdata not in given and storage._cdata not in self._known:
            self._held[storage._cdata] = (StorageWeakRef(storage), len(storage))  # type: ignore[no-untyped-call]


@contextmanager
def watched(known: Sequence[Tensor] = ()) -> Iterator[LiveMemory]:
    """What is made inside is followed; ``known`` tensors are not counted wherever they come up."""
    with LiveMemory(known) as memory:
        yield memory


def relative_memory(loss: DistillLoss, case: Case) -> float:
    """Most bytes that forward and backward hold at once beside the loss's inputs and state, over the inputs' bytes.

    Inputs are what the loss needs, and what of the student gets a gradient through it.
    """
    state = [value for value in loss.state_dict(keep_vars=True).values() if isinstance(value, Tensor)]
    with watched([*case.tensors, *state]) as memory:
        loss(case.batch).backward()
    student = dict(case.student)
    # A student's own weights and their gradient are not the loss's.
    own_bytes = sum(leaf.nbytes for leaf in [student.pop("head", None)] if leaf is not None)
    used = [leaf for name, leaf in student.items() if leaf.grad is not None or name in loss.needs]
    about = [one for one in (case.batch.labels, case.batch.rows) if one is not None]
    inputs = [*used, *case.teacher.values(), *about]
    return (memory.peak_bytes - own_bytes) / sum(tensor.nbytes for tensor in inputs)

"""What losses may cost: no tensor of all pairs, all angles or all negatives where the formula does not need it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from student_trainer.losses import DistillBatch, TrainingFacts, build_loss, rkd


class LargestTensor(TorchDispatchMode):
    """Remembers how many numbers the largest result of any operation held, and how many all held together."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0
        self.total = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [len(leaf.untyped_storage()) // leaf.itemsize for leaf in tree_iter(result) if isinstance(leaf, Tensor)]
        self.numbers = max([self.numbers, *sizes])
        self.total += sum(sizes)
        return result


@contextmanager
def watched() -> Iterator[LargestTensor]:
    with LargestTensor() as mode:
        yield mode


def batch_of(count: int, *, classes: int = 10, width: int = 16) -> DistillBatch:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(count, classes, generator=generator) for _ in range(2))
    student_features, teacher_features = (torch.randn(count, width, generator=generator) for _ in range(2))
    return DistillBatch(
        student_logits=student.requires_grad_(),
        teacher_logits=teacher,
        labels=torch.arange(count) % classes,
        rows=torch.arange(count),
        student_features=student_features.requires_grad_(),
        teacher_features=teacher_features,
    )


@pytest.mark.parametrize("weights", [{}, {"pos": 2}, {"w_cls": 0.0}])
def test_all_pairs_take_memory_and_work_by_samples_times_classes(weights: dict[str, float]) -> None:
    loss, totals = build_loss("ckd", **weights), []
    for count in (64, 128, 256):
        batch = batch_of(count)
        with watched() as largest:
            loss(batch).backward()
        assert largest.numbers <= count * 10
        totals.append(largest.total / count)
    assert max(totals) < 1.05 * min(totals)


def test_comparing_pairs_one_by_one_would_be_noticed() -> None:
    batch = batch_of(64)
    with watched() as largest:
        build_loss("ckd", w_kd=1.0)(batch).backward()
    assert largest.numbers >= 64 * 63 * 10


def test_no_tensor_of_the_angle_term_is_larger_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rkd, "NUMBERS_AT_ONCE", 40 * 40 * 6)
    with watched() as largest:
        build_loss("rkd")(batch_of(40)).backward()
    assert largest.numbers <= 40 * 40 * 6


def test_contrasting_never_gathers_an_embedding_per_negative() -> None:
    count, rows, negatives, width = 16, 200, 500, 32
    loss = build_loss("crd", negatives=negatives, width=width)
    loss.start(
        TrainingFacts(
            seed=0,
            classes=10,
            rows=torch.arange(rows),
            labels=torch.arange(rows) % 10,
            student_width=16,
            teacher_width=16,
        )
    )
    with watched() as largest:
        loss(batch_of(count)).backward()
    assert largest.numbers <= max(count * negatives, rows * width)

"""FSP: its stages, its forms, a few samples at a time, and what is refused."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from shared.errors import InputError
from student_trainer.losses import DistillBatch, TrainingFacts, build_loss, fsp
from student_trainer.losses.facts import MapShape


def maps_of(*shapes: MapShape, seed: int, count: int = 5) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, *shape, generator=generator, dtype=torch.float64) for shape in shapes)


def batch_of(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> DistillBatch:
    return DistillBatch(
        student_logits=torch.zeros(len(student[0]), 2),
        student_maps=tuple(one.clone().requires_grad_() for one in student),
        teacher_maps=teacher,
    )


def facts_of(student: tuple[MapShape, ...], teacher: tuple[MapShape, ...]) -> TrainingFacts:
    rows = torch.arange(5)
    return TrainingFacts(seed=0, classes=2, rows=rows, labels=rows % 2, student_maps=student, teacher_maps=teacher)


def factors(init_epochs: int, *, epochs: int) -> list[tuple[float, float]]:
    loss, found = build_loss("fsp", init_epochs=init_epochs), []
    for epoch in range(epochs):
        loss.begin_epoch(epoch)
        found.append((loss.ce_factor, loss.kd_factor))
    return found


def test_the_flows_come_first_and_cross_entropy_afterwards() -> None:
    assert factors(2, epochs=4) == [(0.0, 1.0), (0.0, 1.0), (1.0, 0.0), (1.0, 0.0)]
    assert build_loss("fsp").settings["init_epochs"] == 30


def test_a_training_resumed_in_its_second_stage_stays_there() -> None:
    loss = build_loss("fsp", init_epochs=2)
    loss.begin_epoch(7)
    assert (loss.ce_factor, loss.kd_factor) == (1.0, 0.0)


def test_without_a_first_stage_both_count_all_along() -> None:
    assert factors(0, epochs=2) == [(1.0, 1.0), (1.0, 1.0)]


def test_the_papers_form_by_hand() -> None:
    student = (torch.tensor([[[[1.0, 2.0], [0.0, -1.0]]]]), torch.tensor([[[[3.0]], [[1.0]]]]))
    teacher = (torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 1, 1))
    batch = batch_of(student, teacher)
    value = build_loss("fsp", form="paper")(batch)  # the largest of the first map is 2: matrix (6, 2)
    assert float(value.detach()) == pytest.approx(40)
    value = build_loss("fsp")(batch)  # their mean is 0.5: matrix (1.5, 0.5), mean of squares 1.25
    assert float(value.detach()) == pytest.approx(1.25)


@pytest.mark.parametrize("form", ["code", "paper", "torchdistill"])
def test_matrices_larger_than_the_maps_are_made_for_a_few_samples_at_a_time(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: tuple[MapShape, ...] = ((30, 2, 2), (40, 2, 1), (40, 1, 1))
    student, teacher = maps_of(*shapes, seed=1), maps_of(*shapes, seed=2)
    made: list[int] = []
    flow = fsp._flow

    def counted(first: Tensor, second: Tensor) -> Tensor:
        made.append(len(first))
        return flow(first, second)

    monkeypatch.setattr(fsp, "_flow", counted)
    batch = batch_of(student, teacher)
    value = build_loss("fsp", form=form)(batch)
    gradients = torch.autograd.grad(value, batch.student_maps)
    assert made
    assert max(made) < 5
    monkeypatch.undo()
    alone = [
        build_loss("fsp", form=form)(batch_of(tuple(one[:1] for one in mine), tuple(one[:1] for one in theirs)))
        for mine, theirs in (
            (tuple(one[row:] for one in student), tuple(one[row:] for one in teacher)) for row in range(5)
        )
    ]
    torch.testing.assert_close(value, torch.stack(alone).mean(), rtol=1e-12, atol=0)
    whole = batch_of(student, teacher)
    expected = torch.autograd.grad(reference(whole, form=form), whole.student_maps)
    torch.testing.assert_close(gradients, expected, rtol=1e-10, atol=1e-13)


def reference(batch: DistillBatch, *, form: str) -> Tensor:
    """Written as the formula is."""
    pool = functional.adaptive_avg_pool2d if form == "code" else functional.adaptive_max_pool2d
    total = torch.zeros((), dtype=torch.float64)
    for place in range(len(batch.student_maps) - 1):
        flows = []
        for maps in (batch.student_maps, batch.teacher_maps):
            first, second = maps[place], maps[place + 1]
            small = pool(first, (second.shape[2], second.shape[3]))
            flows.append(torch.einsum("bchw,bdhw->bcd", small, second) / (second.shape[2] * second.shape[3]))
        error = flows[0] - flows[1]
        by_form = {
            "code": error.square().mean(),
            "paper": error.square().sum() / len(error),
            "torchdistill": error.square().sum(dim=1).sqrt().sum() / len(error),
        }
        total = total + by_form[form]
    return total


def test_channels_that_differ_are_refused_with_their_map() -> None:
    student: tuple[MapShape, ...] = ((16, 8, 8), (32, 4, 4))
    teacher: tuple[MapShape, ...] = ((16, 8, 8), (64, 4, 4))
    message = r"equal channels.* number 1 .*\[32, 4, 4\] of the student and \[64, 4, 4\] of the teacher"
    with pytest.raises(InputError, match=message):
        build_loss("fsp").start(facts_of(student, teacher))
    with pytest.raises(InputError, match=message):
        build_loss("fsp")(batch_of(maps_of(*student, seed=1), maps_of(*teacher, seed=2)))


def test_one_map_has_no_flow() -> None:
    with pytest.raises(InputError, match="given 1 of the student and 1 of the teacher; name two or more"):
        build_loss("fsp", maps="last").start(facts_of(((16, 8, 8),), ((16, 8, 8),)))

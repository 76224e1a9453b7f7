"""AT: attention of the teacher's maps or of its cached attention, its forms, and what is refused."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from shared.errors import InputError
from shared.models.maps import attention_of
from student_trainer.losses import DistillBatch, TrainingFacts, build_loss
from student_trainer.losses.facts import MapShape

OUTPUTS = {kind: tuple(f"{kind}.{number}" for number in (1, 2)) for kind in ("maps", "attention")}


def maps_of(*shapes: MapShape, seed: int, count: int = 3) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, *shape, generator=generator) for shape in shapes)


def batch_of(student: tuple[Tensor, ...], **teacher: tuple[Tensor, ...]) -> DistillBatch:
    return DistillBatch(
        student_logits=torch.zeros(len(student[0]), 2),
        student_maps=tuple(one.clone().requires_grad_() for one in student),
        **teacher,  # type: ignore[arg-type]
    )


def facts_of(student: tuple[MapShape, ...], attention: tuple[tuple[int, int], ...]) -> TrainingFacts:
    rows = torch.arange(3)
    return TrainingFacts(
        seed=0, classes=2, rows=rows, labels=rows % 2, student_maps=student, teacher_attention=attention
    )


@pytest.mark.parametrize("form", ["code", "paper"])
@pytest.mark.parametrize("student_size", [(6, 4), (12, 8), (7, 9)])
def test_cached_attention_says_what_the_map_would(student_size: tuple[int, int], form: str) -> None:
    shapes: tuple[MapShape, ...] = ((5, *student_size), (2, 3, 3))
    student, teacher = maps_of(*shapes, seed=1), maps_of((8, 6, 4), (7, 3, 3), seed=2)
    attention = tuple(attention_of(one) for one in teacher)
    values, gradients = [], []
    for batch in (batch_of(student, teacher_maps=teacher), batch_of(student, teacher_attention=attention)):
        loss = build_loss("at", form=form)
        loss.start(facts_of(shapes, ((6, 4), (3, 3))))
        values.append(loss(batch))
        gradients.append(torch.autograd.grad(values[-1], batch.student_maps))
    assert values[0] > 0
    torch.testing.assert_close(values[1], values[0])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_attention_of_one_sample_by_hand() -> None:
    student = torch.tensor([[[[3.0, 0.0]], [[0.0, 2.0]]]])  # attention (9, 4) / |.|, or (81, 16) with p = 4
    teacher = torch.tensor([[[[0.0, -1.0]]]])  # attention (0, 1), whatever p
    batch = batch_of((student,), teacher_maps=(teacher,))
    for p, own in ((1, (3.0, 2.0)), (2, (9.0, 4.0)), (3, (27.0, 8.0)), (4, (81.0, 16.0))):
        squared = 2 - 2 * own[1] / (own[0] ** 2 + own[1] ** 2) ** 0.5
        assert float(build_loss("at", p=p)(batch).detach()) == pytest.approx(squared / 2, rel=1e-6)
        assert float(build_loss("at", p=p, form="paper")(batch).detach()) == pytest.approx(squared**0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("hyper", "offered", "chosen"),
    [
        ({}, ("attention", "maps"), "attention"),
        ({}, ("maps",), "maps"),
        ({}, (), "attention"),
        ({"reads": "attention"}, ("maps",), "attention"),
        ({"reads": "maps"}, ("attention",), "maps"),
        ({"p": 4}, ("attention",), "maps"),
    ],
)
def test_what_is_read_of_the_teacher_is_what_is_there(
    hyper: dict[str, object], offered: tuple[str, ...], chosen: str
) -> None:
    loss = build_loss("at", **hyper)
    names = {name for kind in offered for name in OUTPUTS[kind]}
    assert loss.teacher_outputs(student_maps=3, offered=names) == {f"teacher_{chosen}": OUTPUTS[chosen]}
    assert loss.needs == ("student_maps", f"teacher_{chosen}")


def test_half_of_the_attention_is_not_enough() -> None:
    names = {*OUTPUTS["maps"], "attention.1"}
    assert "teacher_maps" in build_loss("at").teacher_outputs(student_maps=3, offered=names)


def test_a_student_map_smaller_than_the_attention_is_refused_before_training_and_in_a_batch() -> None:
    student, attention = maps_of((5, 4, 4), seed=1), (torch.ones(3, 64) / 8,)
    loss = build_loss("at")
    with pytest.raises(InputError, match=r"4x4 of the student and 8x8 of the teacher.*use reads=maps"):
        loss(batch_of(student, teacher_attention=attention))
    with pytest.raises(InputError, match=r"4x4 of the student and 8x8 of the teacher.*use reads=maps"):
        loss.start(facts_of(((5, 4, 4),), ((8, 8),)))


def test_attention_of_another_power_is_refused() -> None:
    with pytest.raises(InputError, match="p=4 needs reads=maps"):
        build_loss("at", p=4, reads="attention")
    with pytest.raises(InputError, match="at needs teacher_maps"):
        build_loss("at", p=4)(batch_of(maps_of((5, 4, 4), seed=1), teacher_attention=(torch.ones(3, 16) / 4,)))


def test_in_a_sum_it_reads_attention_beside_a_loss_that_reads_maps() -> None:
    loss = build_loss("at+nst", **{"nst.maps": "2", "nst.weight": 1, "at.weight": 1})
    outputs = loss.teacher_outputs(student_maps=3, offered={"maps.2", *OUTPUTS["attention"]})
    assert outputs == {"teacher_attention": OUTPUTS["attention"], "teacher_maps": ("maps.2",)}
    student, teacher = maps_of((5, 4, 4), (2, 3, 3), seed=1), maps_of((8, 4, 4), (7, 3, 3), seed=2)
    attention = tuple(attention_of(one) for one in teacher)
    value = loss(batch_of(student, teacher_maps=teacher[1:], teacher_attention=attention))
    apart = build_loss("at")(batch_of(student, teacher_maps=teacher))
    apart = apart + build_loss("nst")(batch_of(student[1:], teacher_maps=teacher[1:]))
    torch.testing.assert_close(value, apart)


def test_in_a_sum_without_any_map_of_the_teacher_it_reads_attention() -> None:
    loss = build_loss("at+kl", **{"kl.weight": 0})
    loss.teacher_outputs(student_maps=3, offered={"logits", *OUTPUTS["attention"]})
    student, teacher = maps_of((5, 4, 4), seed=1), maps_of((8, 4, 4), seed=2)
    batch = batch_of(student, teacher_attention=(attention_of(teacher[0]),))
    value = loss(
        replace(
            batch,
            teacher_logits=batch.student_logits,
            student_maps=2 * student,
            teacher_attention=2 * batch.teacher_attention,
        )
    )
    torch.testing.assert_close(value, 2000 * build_loss("at")(batch_of(student, teacher_maps=teacher)))


@pytest.mark.parametrize("p", [2, 6])
def test_attention_does_not_depend_on_the_size_of_the_numbers(p: int) -> None:
    student, teacher = maps_of((5, 4, 4), seed=1), maps_of((8, 4, 4), seed=2)
    large = batch_of(tuple(1e4 * one for one in student), teacher_maps=tuple(1e4 * one for one in teacher))
    loss = build_loss("at", p=p)
    torch.testing.assert_close(loss(large), loss(batch_of(student, teacher_maps=teacher)))

"""OFD: whose margins it takes, and where it asks nothing of the student."""

from dataclasses import replace

import pytest
import torch
from map_batches import batch_of, started
from torch import nn

from shared.errors import InputError
from student_trainer.losses import DistillBatch, build_loss

SHAPES = [(4, 8, 8), (6, 4, 4), (8, 2, 2)]


@pytest.mark.parametrize(
    ("maps", "teacher_maps", "numbers"),
    [("1-", "same", (1, 2, 3)), ("2-", "same", (2, 3)), ("1,3", "same", (1, 3)), ("0,1", "2,3", (2, 3))],
)
def test_margins_are_those_of_the_teachers_maps_by_number(
    maps: str, teacher_maps: str, numbers: tuple[int, ...]
) -> None:
    batch = batch_of(SHAPES, SHAPES)
    chosen = tuple(batch.teacher_maps[number - 1] for number in numbers)
    cut = replace(batch, student_maps=chosen, teacher_maps=chosen)
    loss = started("ofd", cut, maps=maps, teacher_maps=teacher_maps)
    assert batch.teacher_constants is not None
    for place, number in enumerate(numbers, start=1):
        assert torch.equal(loss.get_buffer(f"margin{place}").flatten(), batch.teacher_constants[f"margins.{number}"])


def test_a_map_without_a_margin_of_its_width_is_refused() -> None:
    batch = batch_of(SHAPES[:2], SHAPES[:2])
    with pytest.raises(InputError, match=r"ofd needs margins.2 \[4\] .* have margins.1, margins.2"):
        started("ofd", replace(batch, teacher_maps=batch.student_maps), maps="2,3")
    with pytest.raises(InputError, match=r"ofd needs margins.1 \[4\] .* have no margins"):
        started("ofd", replace(batch, teacher_constants={}))


def test_the_last_map_is_to_be_named_by_its_number() -> None:
    with pytest.raises(InputError, match="choose maps by number, such as 3 or 1-, not last"):
        build_loss("ofd", maps="last")


def bare(student: float, teacher: float) -> tuple[float, float]:
    """(value, gradient) of one place with margin -1 and no connector."""
    own = torch.full((1, 1, 2, 2), student, requires_grad=True)
    other = torch.full((1, 1, 2, 2), teacher)
    batch = DistillBatch(
        student_logits=torch.zeros(1, 2),
        student_maps=(own,),
        teacher_maps=(other,),
        teacher_constants={"margins.1": torch.tensor([-1.0])},
    )
    loss = started("ofd", batch, maps="1", divisor=4)
    loss.Connectors = nn.ModuleList([nn.Identity()])
    value = loss(batch)
    value.backward()
    assert own.grad is not None
    return float(value.detach()), float(own.grad.sum())


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (-3.0, -2.0, (0.0, 0.0)),  # below the margin, as the teacher
        (-1.5, -0.5, (0.0, 0.0)),  # below what the teacher says under 0
        (0.5, -2.0, (2.25, 3.0)),  # down to the margin
        (0.5, -0.5, (1.0, 2.0)),  # down to the teacher
        (0.5, 2.0, (2.25, -3.0)),  # up to an active teacher
        (3.0, 2.0, (1.0, 2.0)),
    ],
)
def test_the_student_is_drawn_to_the_teacher_where_it_is_active_and_below_the_margin_elsewhere(
    student: float, teacher: float, expected: tuple[float, float]
) -> None:
    assert bare(student, teacher) == pytest.approx(expected)


def test_the_last_map_counts_most() -> None:
    batch = batch_of(SHAPES, SHAPES)
    loss = started("ofd", batch)
    value = loss(batch)
    parts = []
    for place in range(3):
        alone = replace(batch, student_maps=(batch.student_maps[place],), teacher_maps=(batch.teacher_maps[place],))
        one = started("ofd", alone, maps=str(place + 1))
        one.get_submodule("Connectors.0").load_state_dict(loss.get_submodule(f"Connectors.{place}").state_dict())
        parts.append(one(alone))
    torch.testing.assert_close(value, parts[0] / 4 + parts[1] / 2 + parts[2])


def test_both_sides_are_asked_for_before_the_activation() -> None:
    loss = build_loss("ofd", maps="2-", teacher_maps="1,2")
    assert loss.student_map_names(4) == ("preacts.2", "preacts.3")
    asked = loss.teacher_outputs(student_maps=4, offered=())
    assert asked == {"teacher_maps": ("preacts.1", "preacts.2"), "teacher_constants": ("constants",)}

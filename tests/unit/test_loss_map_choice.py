"""Which maps of student and teacher are compared, where the two have different numbers of them."""

from collections.abc import Collection

import pytest

from shared.errors import InputError
from student_trainer.losses import build_loss

FIVE = ("logits", "features", *(f"{kind}.{number}" for kind in ("maps", "preacts", "attention") for number in range(5)))
"""What a teacher with maps 0 to 4 gives."""


def asked(loss: str, *, offered: Collection[str], **hyper: object) -> tuple[str, ...]:
    """The teacher's maps beside a student with maps 0 to 3."""
    return build_loss(loss, **hyper).teacher_outputs(student_maps=4, offered=offered)["teacher_maps"]


@pytest.mark.parametrize("loss", ["sp", "ft"])
def test_the_last_maps_of_both_are_compared_where_the_teacher_has_more_or_fewer(loss: str) -> None:
    fewer = ("logits", "maps.0", "maps.1", "maps.2")
    assert asked(loss, offered=FIVE, teacher_maps="last") == ("maps.4",)
    assert asked(loss, offered=fewer, teacher_maps="last") == ("maps.2",)


def test_the_teachers_last_is_looked_for_among_all_kinds_of_maps() -> None:
    assert asked("sp", offered=("logits", "maps.1", "attention.3", "preacts.2"), teacher_maps="last") == ("maps.3",)
    assert asked("ab", offered=("logits", "maps.4"), maps="last", teacher_maps="last") == ("preacts.4",)


def test_where_no_map_is_kept_the_number_of_the_students_last_is_asked_for() -> None:
    assert asked("sp", offered=("logits",), teacher_maps="last") == ("maps.3",)
    assert asked("sp", offered=("logits",)) == ("maps.3",)


@pytest.mark.parametrize("loss", ["sp", "ft"])
def test_a_last_map_is_not_silently_compared_with_one_before_the_teachers_last(loss: str) -> None:
    with pytest.raises(InputError, match=r"map 3 of the student, and the teacher has a map 4: give teacher_maps=last"):
        asked(loss, offered=FIVE)
    assert asked(loss, offered=FIVE, maps="3") == ("maps.3",)


def test_numbers_are_those_of_the_student_whatever_else_the_teacher_has() -> None:
    assert asked("vid", offered=FIVE) == ("maps.1", "maps.2", "maps.3")
    assert asked("vid", offered=("logits",)) == ("maps.1", "maps.2", "maps.3")


def test_one_last_map_of_the_teacher_is_no_partner_of_several() -> None:
    with pytest.raises(InputError, match=r"teacher_maps=last are 1 maps, and the student's are 3 \(1, 2, 3\)"):
        asked("vid", offered=FIVE, teacher_maps="last")


@pytest.mark.parametrize("maps", ["last", "1-"])
def test_ofd_takes_no_last_map_of_the_teacher(maps: str) -> None:
    with pytest.raises(InputError, match="ofd takes margins by the maps' numbers"):
        build_loss("ofd", maps=maps, teacher_maps="last")

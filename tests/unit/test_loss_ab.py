"""AB: its two stages, its connectors, and which maps it asks for."""

import pytest
from map_batches import batch_of, started
from torch import nn

from shared.errors import InputError
from student_trainer.losses import build_loss


def test_the_first_epochs_are_of_this_loss_alone_and_the_others_of_cross_entropy_alone() -> None:
    loss, factors = build_loss("ab", init_epochs=2), []
    for epoch in range(4):
        loss.begin_epoch(epoch)
        factors.append((loss.kd_factor, loss.ce_factor))
    assert factors == [(1, 0), (1, 0), (0, 1), (0, 1)]


def test_without_a_first_stage_both_are_trained_all_along() -> None:
    loss = build_loss("ab", init_epochs=0)
    loss.begin_epoch(0)
    assert (loss.kd_factor, loss.ce_factor) == (1, 1)


@pytest.mark.parametrize(
    ("student", "teacher", "layer", "kernel"),
    [
        ((4, 8, 8), (6, 4, 4), nn.Conv2d, (3, 3)),
        ((4, 4, 4), (6, 8, 8), nn.ConvTranspose2d, (4, 4)),
        ((4, 8, 8), (6, 8, 8), nn.Conv2d, (1, 1)),
        ((4, 8, 6), (6, 5, 6), nn.Conv2d, (4, 1)),
    ],
)
def test_a_connector_meets_the_teachers_channels_and_size(
    student: tuple[int, int, int], teacher: tuple[int, int, int], layer: type[nn.Module], kernel: tuple[int, int]
) -> None:
    batch = batch_of([student], [teacher])
    loss = started("ab", batch)
    assert loss(batch) > 0
    conv = loss.get_submodule("connectors.0.conv")
    assert type(conv) is layer
    assert conv.kernel_size == kernel
    assert set(loss.state_dict()) >= {"connectors.0.conv.weight", "connectors.0.conv.bias", "connectors.0.bn.weight"}


def test_maps_that_are_alike_need_no_connector() -> None:
    batch = batch_of([(4, 8, 8)], [(4, 8, 8)])
    assert not started("ab", batch).state_dict()


def test_a_map_that_no_convolution_can_bring_to_the_teachers_size_is_refused() -> None:
    message = r"no convolution leads from a student map \[4, 4, 4\] to a teacher map \[4, 7, 7\]"
    with pytest.raises(InputError, match=message):
        started("ab", batch_of([(4, 4, 4)], [(4, 7, 7)]))


def test_both_sides_are_asked_for_before_the_activation() -> None:
    loss = build_loss("ab", maps="2-", teacher_maps="1,2")
    assert loss.student_map_names(4) == ("preacts.2", "preacts.3")
    assert loss.teacher_outputs(student_maps=4, offered=()) == {"teacher_maps": ("preacts.1", "preacts.2")}

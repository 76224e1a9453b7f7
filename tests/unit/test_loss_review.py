"""Review: its warm-up, its fusion written a second way, and which maps it asks for."""

import pytest
import torch
from map_batches import batch_of, started
from torch import Tensor
from torch.nn import functional

from shared.errors import InputError
from student_trainer.losses import build_loss
from student_trainer.losses.review import Fusing, hcl


def test_the_weight_grows_from_zero_over_the_warm_up() -> None:
    loss, factors = build_loss("review", warmup_epochs=4), []
    for epoch in range(6):
        loss.begin_epoch(epoch)
        factors.append(loss.kd_factor)
    assert factors == [0, 0.25, 0.5, 0.75, 1, 1]
    assert loss.ce_factor == 1


def test_without_a_warm_up_the_weight_is_whole_from_the_start() -> None:
    loss = build_loss("review", warmup_epochs=0)
    loss.begin_epoch(0)
    assert loss.kd_factor == 1


def fused_as_published(block: Fusing, x: Tensor, rest: Tensor, *, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Both side by side through the attention convolution."""
    x = block.conv1(x)
    rest = functional.interpolate(rest, x.shape[2:], mode="nearest")
    assert block.att_conv is not None
    scores = block.att_conv(torch.cat([x, rest], dim=1))
    x = functional.interpolate(x * scores[:, :1] + rest * scores[:, 1:], size, mode="nearest")
    return block.conv2(x), x


@pytest.mark.parametrize("size", [(6, 4), (3, 2), (12, 8)])
def test_weighing_before_growing_is_the_published_fusion(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(3)
    block = Fusing.drawn_as(5, middle=4, width_out=3, fuses=True, generator=generator).double()
    x, rest = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in [(3, 5, 6, 4), (3, 4, 2, 2)])
    found, expected = block(x, rest, size=size), fused_as_published(block, x, rest, size=size)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 7])
def test_levels_are_compared_at_their_own_size_and_at_smaller_ones(side: int) -> None:
    own, other = torch.randn(2, 3, 5, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(side))
    total, weights = functional.mse_loss(own, other), 1.0
    for number, small in enumerate(small for small in (4, 2, 1) if small < side):
        small_own, small_other = (functional.adaptive_avg_pool2d(one, small) for one in (own, other))
        total = total + functional.mse_loss(small_own, small_other) / 2 ** (number + 1)
        weights += 1 / 2 ** (number + 1)
    torch.testing.assert_close(hcl(own, other), total / weights)


def test_a_student_of_other_sizes_than_the_teachers_is_brought_to_them() -> None:
    batch = batch_of([(4, 8, 8), (6, 4, 4)], [(5, 6, 6), (8, 6, 6)])
    loss = started("review", batch)
    assert loss(batch) > 0
    assert loss.get_parameter("abfs.0.conv1.0.weight").shape == (7, 7, 1, 1)
    assert loss.get_parameter("abfs.2.conv2.0.weight").shape == (5, 7, 3, 3)
    assert loss.get_parameter("abfs.1.att_conv.0.weight").shape == (2, 14, 1, 1)


def test_without_fusion_maps_of_other_shapes_are_refused() -> None:
    batch = batch_of([(4, 8, 8)], [(5, 8, 8)])
    with pytest.raises(InputError, match="fusion=true makes them alike"):
        started("review", batch, fusion=False)(batch)


@pytest.mark.parametrize(("preact", "student"), [(False, "maps.1"), (True, "preacts.1")])
def test_the_teachers_maps_are_before_the_activation_whichever_the_students_are(preact: bool, student: str) -> None:
    loss = build_loss("review", student_preact=preact, maps="1", teacher_maps="2")
    assert loss.student_map_names(3) == (student,)
    assert loss.teacher_outputs(student_maps=3, offered=()) == {
        "teacher_maps": ("preacts.2",),
        "teacher_features": ("features",),
    }

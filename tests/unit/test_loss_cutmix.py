"""CutMix: the box, the exact share that it leaves, and what the student then sees."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from student_trainer.losses import DistillBatch, TrainingFacts, build_loss
from student_trainer.losses.base import DistillLoss
from student_trainer.losses.cutmix import drawn_box
from student_trainer.losses.mix import Mix


def started(*, seed: int = 0, **hyper: object) -> DistillLoss:
    loss = build_loss("cutmix", **hyper)
    loss.start(TrainingFacts(seed=seed, classes=5, rows=torch.arange(8), labels=torch.arange(8)))
    return loss


def mixes(loss: DistillLoss, times: int, *, count: int = 2, size: tuple[int, int] = (32, 32)) -> Iterator[Mix]:
    for _ in range(times):
        mix = loss.mix(count, size=size)
        assert mix is not None
        yield mix


def edges(mix: Mix) -> tuple[int, int, int, int]:
    assert mix.box is not None
    return mix.box


@pytest.mark.parametrize("size", [(32, 32), (7, 12), (1, 1)])
def test_the_student_sees_the_partner_on_exactly_the_share_that_the_weight_leaves(size: tuple[int, int]) -> None:
    own = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, *size)
    for mix in mixes(started(), 50, count=5, size=size):
        shown = mix.images(own)
        for image, (me, partner) in enumerate(enumerate(mix.partner.tolist())):
            assert set(shown[image].flatten().tolist()) <= {float(me), float(partner)}
            if partner != me:
                left = (shown[image] == me).float().mean()
                assert float(left) == pytest.approx(float(mix.weight[image]), abs=1e-6)


def test_a_box_is_one_rectangle_that_lies_in_the_image_for_all_images_of_the_batch() -> None:
    touched = set()
    for mix in mixes(started(), 300, count=3, size=(16, 24)):
        top, bottom, left, right = edges(mix)
        assert 0 <= top <= bottom <= 16
        assert 0 <= left <= right <= 24
        inside = torch.zeros(16, 24, dtype=torch.bool)
        inside[top:bottom, left:right] = True
        shown = mix.images(torch.arange(3.0).view(3, 1, 1, 1).expand(3, 3, 16, 24))
        for me, partner in enumerate(mix.partner.tolist()):
            assert torch.equal(shown[me], torch.where(inside, float(partner), float(me)).expand(3, 16, 24))
        touched |= {name for name, hit in {"top": top == 0, "left": left == 0, "right": right == 24}.items() if hit}
    assert touched == {"top", "left", "right"}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.75, 0.999, 1.0])
def test_a_box_around_any_pixel_has_the_authors_sides_where_no_border_cuts_it(share: float) -> None:
    generator, middles = np.random.default_rng(0), set()
    # As the paper has it, in whole and even pixels.
    halves = [math.floor(math.floor(side * math.sqrt(1 - share)) / 2) for side in (20, 30)]
    for _ in range(6000):
        top, bottom, left, right = drawn_box((20, 30), share=share, generator=generator)
        middle_y = bottom - halves[0] if bottom < 20 else top + halves[0]
        middle_x = right - halves[1] if right < 30 else left + halves[1]
        assert (top, bottom) == (max(0, middle_y - halves[0]), min(20, middle_y + halves[0]))
        assert (left, right) == (max(0, middle_x - halves[1]), min(30, middle_x + halves[1]))
        middles.add((middle_y, middle_x))
    if share == 1.0:
        assert middles == {(y, x) for y in range(20) for x in range(30)}


def test_a_large_alpha_cuts_out_half_of_every_image() -> None:
    """32 * sqrt(1/2) is 22.6: 22 pixels per side."""
    boxes = [edges(mix) for mix in mixes(started(alpha=1e6), 100)]
    assert {bottom - top for top, bottom, _, _ in boxes if top > 0 and bottom < 32} == {22}
    assert {right - left for _, _, left, right in boxes if left > 0 and right < 32} == {22}


def test_a_small_alpha_cuts_out_nothing_or_all() -> None:
    boxes = [edges(mix) for mix in mixes(started(alpha=1e-3), 100)]
    nothing = sum(bottom == top for top, bottom, _, _ in boxes)
    half_or_more = sum(bottom - top >= 16 for top, bottom, _, _ in boxes)
    assert nothing + half_or_more >= 97
    assert min(nothing, half_or_more) > 30


def test_another_seed_draws_other_boxes_and_a_restored_state_the_next_ones() -> None:
    first, other = started(seed=1), started(seed=2)
    assert [edges(mix) for mix in mixes(first, 5)] != [edges(mix) for mix in mixes(other, 5)]
    resumed = started(seed=1)
    resumed.load_state_dict(first.state_dict())
    again, went_on = ([(mix.box, mix.partner.tolist()) for mix in mixes(loss, 5)] for loss in (resumed, first))
    assert again == went_on


def test_mixing_keeps_the_memory_order_and_the_dtype_of_the_images() -> None:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    for name in ("cutmix", "mixup"):
        for dtype in (torch.float32, torch.float16):
            mix = build_loss(name).mix(4, size=(8, 8))
            assert mix is not None
            shown = mix.images(images.to(dtype))
            assert shown.dtype == dtype
            assert shown.is_contiguous(memory_format=torch.channels_last)


def test_the_images_given_are_left_as_they_are() -> None:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    Mix(partner=torch.tensor([1, 0, 3, 2]), weight=torch.full((4,), 0.5), box=(0, 8, 0, 4)).images(images)
    assert torch.equal(images, before)


def test_the_target_is_the_two_answers_by_area() -> None:
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64).unbind()
    mix = next(mixes(started(), 1, count=4))
    batch = DistillBatch(student_logits=student, teacher_logits=teacher, mix=mix.pair)
    answers, share = teacher.softmax(dim=1), mix.weight.double()[:, None]
    target = share * answers + (1 - share) * answers[mix.partner]
    torch.testing.assert_close(started()(batch), -(target * student.log_softmax(dim=1)).sum() / 4)

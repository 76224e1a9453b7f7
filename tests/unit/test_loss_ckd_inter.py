"""White-box CKD beyond its golden vectors: what is drawn, which shapes go together, and sums with ckd."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from shared.errors import InputError
from student_trainer.losses import DistillBatch, TrainingFacts, build_loss
from student_trainer.losses.base import DistillLoss
from student_trainer.losses.facts import MapShape

COUNT = 6
STUDENT: tuple[MapShape, ...] = ((3, 4, 4),)
TEACHER: tuple[MapShape, ...] = ((5, 4, 4),)
NAMES = ("ckd_cc", "ckd_hint", "ckd_vid")
every_name = pytest.mark.parametrize("name", NAMES)


def facts_of(*, seed: int = 0) -> TrainingFacts:
    rows = torch.arange(COUNT)
    return TrainingFacts(
        seed=seed,
        classes=2,
        rows=rows,
        labels=rows % 2,
        student_width=3,
        teacher_width=4,
        student_maps=STUDENT,
        teacher_maps=TEACHER,
    )


def batch_of() -> DistillBatch:
    generator = torch.Generator().manual_seed(0)
    student, teacher, features, maps, teacher_features, teacher_maps = (
        torch.randn(COUNT, *shape, generator=generator) for shape in ((2,), (2,), (3,), STUDENT[0], (4,), TEACHER[0])
    )
    return DistillBatch(
        student_logits=student,
        teacher_logits=teacher,
        labels=torch.arange(COUNT) % 2,
        student_features=features,
        teacher_features=teacher_features,
        student_maps=(maps,),
        teacher_maps=(teacher_maps,),
    )


def started(name: str, *, seed: int = 0, **hyper: Any) -> DistillLoss:
    loss = build_loss(name, **hyper)
    loss.start(facts_of(seed=seed))
    return loss


def parameters_of(loss: DistillLoss) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in loss.parameters()])


@every_name
def test_weights_and_comparisons_are_drawn_from_the_seed_alone(name: str) -> None:
    first, again, other = (started(name, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(parameters_of(first), parameters_of(again))
    assert not torch.equal(parameters_of(first), parameters_of(other))
    batch = batch_of()
    values = [first(batch).item() for _ in range(3)]
    assert [again(batch).item() for _ in range(3)] == values
    assert len(set(values)) == 3


@every_name
def test_a_constant_added_to_all_samples_of_either_side_changes_nothing(name: str) -> None:
    batch = batch_of()
    assert batch.student_features is not None
    assert batch.teacher_features is not None
    moved = replace(
        batch,
        student_features=batch.student_features + torch.randn(3),
        teacher_features=batch.teacher_features + torch.randn(4),
        student_maps=(batch.student_maps[0] + torch.randn(3, 4, 4),),
        teacher_maps=(batch.teacher_maps[0] + torch.randn(5, 4, 4),),
    )
    torch.testing.assert_close(started(name)(moved), started(name)(batch), rtol=1e-4, atol=1e-5)


@every_name
def test_groups_are_compared_by_their_means(name: str) -> None:
    """Samples that are the means of others, compared one by one, give what the groups give."""
    batch, groups = batch_of(), torch.tensor([[0, 1, 2], [3, 4, 5], [1, 5, 0]])

    def averaged(values: Tensor) -> Tensor:
        return torch.cat([values[groups[:, :2]].mean(dim=1), values[groups[:, 2]]])

    assert batch.student_features is not None
    assert batch.teacher_features is not None
    means = DistillBatch(
        student_logits=batch.student_logits,
        student_features=averaged(batch.student_features),
        teacher_features=averaged(batch.teacher_features),
        student_maps=(averaged(batch.student_maps[0]),),
        teacher_maps=(averaged(batch.teacher_maps[0]),),
    )
    one_by_one = started(name)(means, indices=torch.tensor([[0, 3], [1, 4], [2, 5]]))
    torch.testing.assert_close(started(name, pos=2)(batch, indices=groups), one_by_one)


@pytest.mark.parametrize("name", ["ckd_hint", "ckd_vid"])
def test_features_are_compared_as_maps_of_one_place(name: str) -> None:
    loss = started(name, on="features")
    assert loss.needs == ("student_features", "teacher_features")
    shapes = {name: tuple(parameter.shape) for name, parameter in loss.named_parameters()}
    assert (4, 3, 1, 1) in shapes.values()
    batch = batch_of()
    assert batch.student_features is not None
    loss(replace(batch, student_features=batch.student_features.requires_grad_())).backward()
    assert all(bool(parameter.grad.any()) for parameter in loss.parameters() if parameter.grad is not None)


def test_the_relu_of_the_authors_keeps_negative_differences_out_of_reach() -> None:
    batch = batch_of()
    falling = torch.arange(0.0, -COUNT, -1.0)[:, None, None, None].expand(COUNT, *TEACHER[0])
    still = replace(batch, student_maps=(torch.zeros(COUNT, *STUDENT[0]),), teacher_maps=(falling,))
    later_minus_earlier = torch.tensor([[1, 0], [2, 1]])
    found = {}
    for use_relu in (True, False):
        loss = started("ckd_hint", use_relu=use_relu)
        loss.get_parameter("heads.0.bn.bias").data.fill_(-1.0)
        found[use_relu] = loss(still, indices=later_minus_earlier).item()
    assert found == {True: pytest.approx(1.0), False: pytest.approx(0.0, abs=1e-6)}


@every_name
def test_a_loss_that_was_not_started_says_so(name: str) -> None:
    with pytest.raises(InputError, match=rf"{name} has no trainable parts yet: call loss.start\(TrainingFacts"):
        build_loss(name)(batch_of())
    bare = replace(facts_of(), student_width=None, student_maps=())
    with pytest.raises(
        InputError,
        match=r"give student_width and teacher_width in TrainingFacts|0 maps of the student and 1 of the teacher",
    ):
        build_loss(name).start(bare)


@every_name
def test_it_is_added_to_ckd_with_the_weights_of_its_authors(name: str) -> None:
    total = build_loss(f"ckd+{name}")
    total.start(facts_of())
    weights = {"ckd_hint": 100, "ckd_vid": 1, "ckd_cc": 0.02}
    assert total.default_ce_weight == 0
    alone = started(name, seed=1)  # the second of a sum has the next seed
    batch = batch_of()
    torch.testing.assert_close(total(batch), build_loss("ckd")(batch) + weights[name] * alone(batch))


def test_defaults_compare_the_maps_of_the_authors() -> None:
    assert build_loss("ckd_hint").student_map_names(4) == ("maps.2",)
    assert build_loss("ckd_vid").student_map_names(4) == ("maps.1", "maps.2", "maps.3")
    assert build_loss("ckd_cc").needs == ("student_features", "teacher_features")


@pytest.mark.parametrize("hyper", [{"maps": "1"}, {"teacher_maps": "2"}])
def test_a_choice_of_maps_that_changes_nothing_is_refused(hyper: dict[str, str]) -> None:
    assert build_loss("ckd_hint", **hyper).needs == ("student_maps", "teacher_maps")
    with pytest.raises(InputError, match=f"{next(iter(hyper))} has no effect with on=features; leave it out"):
        build_loss("ckd_hint", on="features", **hyper)

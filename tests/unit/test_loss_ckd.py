"""CKD beyond its golden vectors: what it leaves free, features, its first form, drawn comparisons, soft labels.

Shape key: B batch, D feature width.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from shared.errors import InputError
from student_trainer.losses import DistillBatch, TrainingFacts, build_loss, comparisons
from student_trainer.losses.base import DistillLoss

COUNT, CLASSES = 7, 5
WIDTHS = (3, 4)
DOUBLE: dict[str, Any] = {"dtype": torch.float64}


def batch_of(widths: tuple[int, int] = WIDTHS) -> DistillBatch:
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(COUNT, CLASSES, generator=generator, **DOUBLE) for _ in range(2))
    student_BD, teacher_BD = (torch.randn(COUNT, width, generator=generator, **DOUBLE) for width in widths)
    return DistillBatch(
        student_logits=student.requires_grad_(),
        teacher_logits=teacher,
        labels=torch.arange(COUNT) % CLASSES,
        student_features=student_BD.requires_grad_(),
        teacher_features=teacher_BD,
    )


def started(widths: tuple[int, int] = WIDTHS, *, seed: int = 0, **hyper: object) -> DistillLoss:
    loss = build_loss("ckd", **hyper)
    rows = torch.arange(COUNT)
    loss.start(
        TrainingFacts(
            seed=seed,
            classes=CLASSES,
            rows=rows,
            labels=rows % CLASSES,
            student_width=widths[0],
            teacher_width=widths[1],
        )
    )
    return loss.double()


def every_pair() -> Tensor:
    return torch.tensor([(i, j) for i in range(COUNT) for j in range(COUNT) if i != j])


@pytest.mark.parametrize(
    "hyper", [{}, {"pos": 2}, {"form": "kl"}, {"w_kd": 1.0}, {"pairs": "sampled"}, {"pairs": "sampled", "form": "kl"}]
)
def test_the_bias_of_the_last_layer_gets_no_gradient(hyper: dict[str, Any]) -> None:
    batch = batch_of()
    started(**hyper)(batch).backward()
    gradient = batch.student_logits.grad
    assert gradient is not None
    assert float(gradient.abs().max()) > 1e-3
    torch.testing.assert_close(gradient.sum(dim=0), torch.zeros(CLASSES, **DOUBLE), rtol=0, atol=1e-13)


def test_adding_groups_leaves_no_constant_free() -> None:
    batch = batch_of()
    build_loss("ckd", combine="add")(batch).backward()
    assert batch.student_logits.grad is not None
    assert float(batch.student_logits.grad.sum(dim=0).abs().min()) > 1e-3
    with pytest.raises(InputError, match="combine=add leaves no offset free"):
        build_loss("ckd", combine="add", offset="calibrate")


def test_features_are_compared_after_a_trained_map_of_their_differences() -> None:
    batch, loss = batch_of(), started(on="features", w_cls=0)
    weight = loss.get_parameter("regressor.weight")
    assert weight.shape == (WIDTHS[1], WIDTHS[0])
    assert len(list(loss.parameters())) == 1  # differences have no bias
    assert loss.needs == ("student_features", "teacher_features")
    pairs = every_pair()
    assert batch.student_features is not None
    assert batch.teacher_features is not None
    student, teacher = (one[pairs[:, 0]] - one[pairs[:, 1]] for one in (batch.student_features, batch.teacher_features))
    expected = functional.mse_loss(student @ weight.T, teacher)
    torch.testing.assert_close(loss(batch), expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss(batch), weight), torch.autograd.grad(expected, weight), rtol=1e-9, atol=1e-12
    )


def test_features_as_wide_as_the_teachers_are_compared_as_they_are() -> None:
    loss, batch = started((4, 4), on="features", w_cls=0), batch_of((4, 4))
    assert batch.student_features is not None
    assert not list(loss.parameters())
    as_logits = DistillBatch(student_logits=batch.student_features, teacher_logits=batch.teacher_features)
    torch.testing.assert_close(loss(batch), build_loss("ckd", w_cls=0)(as_logits))


def test_both_is_the_sum_of_logits_and_features() -> None:
    batch = batch_of()
    both, features = started(on="both")(batch), started(on="features", w_cls=0)(batch)
    torch.testing.assert_close(both, build_loss("ckd")(batch) + features)
    assert float(features.detach()) > 0


def test_features_without_a_map_are_refused_with_the_remedy() -> None:
    with pytest.raises(InputError, match=r"no map from 3 features to 4: call loss.start\(TrainingFacts"):
        build_loss("ckd", on="features")(batch_of())
    with pytest.raises(InputError, match="give student_width and teacher_width"):
        build_loss("ckd", on="both").start(
            TrainingFacts(seed=0, classes=2, rows=torch.arange(2), labels=torch.arange(2))
        )


def test_the_map_is_drawn_from_the_seed_alone() -> None:
    first, again, other = (started(seed=seed, on="both").get_parameter("regressor.weight") for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_first_form_is_the_divergence_of_softened_differences_labels_too() -> None:
    batch, pairs = batch_of(), every_pair()
    assert batch.teacher_logits is not None
    onehot = torch.eye(CLASSES, **DOUBLE)[torch.arange(COUNT) % CLASSES]

    def softened(logits: Tensor) -> Tensor:
        return functional.log_softmax((logits[pairs[:, 0]] - logits[pairs[:, 1]]) / 3, dim=1)

    def divergence(target: Tensor) -> Tensor:
        found = functional.kl_div(
            softened(batch.student_logits), softened(target), reduction="batchmean", log_target=True
        )
        return 9 * found

    expected = 0.5 * divergence(onehot) + 2 * divergence(batch.teacher_logits)
    value = build_loss("ckd", form="kl", w_cls=0.5, w_rel=2, kd_temperature=3)(batch)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(
        torch.autograd.grad(value, batch.student_logits), torch.autograd.grad(expected, batch.student_logits)
    )


@pytest.mark.parametrize("pairs", ["all", "sampled"])
def test_pairs_in_many_parts_give_what_one_part_gives(pairs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of()

    def found() -> tuple[Tensor, Tensor]:
        value = started(w_kd=2.0, pairs=pairs)(batch)
        return value.detach(), torch.autograd.grad(value, batch.student_logits)[0]

    whole = found()
    monkeypatch.setattr(comparisons, "NUMBERS_AT_ONCE", 4 * CLASSES)
    torch.testing.assert_close(found(), whole)


@pytest.mark.parametrize(("count", "at_once"), [(2, 1), (5, 3), (5, 20), (5, 100)])
def test_ordered_pairs_are_each_there_once(count: int, at_once: int) -> None:
    parts = list(comparisons.ordered_pairs(count, at_once=at_once))
    assert max(len(part) for part in parts) <= at_once
    expected = [[i, j] for i in range(count) for j in range(count) if i != j]
    assert torch.cat(parts).tolist() == expected


@pytest.mark.parametrize("groups", [{"pos": 1, "neg": 1}, {"pos": 2, "neg": 1}])
def test_sampled_comparisons_are_all_of_them_on_average(groups: dict[str, Any]) -> None:
    batch = batch_of()
    sampled = started(pairs="sampled", **groups)
    with torch.no_grad():
        values = torch.stack([sampled(batch) for _ in range(800)])
        exact = build_loss("ckd", **groups)(batch)
    assert float((values.mean() - exact).abs()) < 4 * float(values.std()) / 800**0.5
    assert float(values.std()) < 0.5 * float(exact)


def test_drawn_comparisons_hold_no_sample_twice() -> None:
    drawn = comparisons.Groups(pos=3, neg=2).draw(6, seed=4)
    assert drawn.shape == (6, 5)
    assert all(len(set(row)) == 5 for row in drawn.tolist())


def test_soft_labels_take_the_place_of_labels() -> None:
    batch = batch_of()
    onehot = torch.eye(CLASSES, **DOUBLE)[torch.arange(COUNT) % CLASSES]
    mixed = 0.7 * onehot + 0.3 * onehot.roll(1, dims=0)
    by_hand = DistillBatch(student_logits=batch.student_logits, teacher_logits=mixed)
    soft = replace(batch, soft_labels=mixed)
    torch.testing.assert_close(build_loss("ckd", w_rel=0)(soft), build_loss("ckd", w_cls=0)(by_hand))


def test_calibration_follows_the_labels_alone_where_only_features_are_the_teachers() -> None:
    batch, loss = batch_of(), started(on="features", offset="calibrate")
    head = torch.nn.Linear(2, CLASSES).double()
    before = head.bias.detach().clone()
    loss.finish(head, replace(batch, teacher_logits=None))
    onehot = torch.eye(CLASSES, **DOUBLE)[torch.arange(COUNT) % CLASSES]
    torch.testing.assert_close(head.bias.detach() - before, (onehot - batch.student_logits).mean(dim=0).detach())


def test_a_divergence_of_larger_groups_asks_for_sampled_pairs() -> None:
    with pytest.raises(InputError, match="form=kl have no closed form; use pairs=sampled"):
        build_loss("ckd", form="kl", pos=2)
    assert build_loss("ckd", form="kl", pos=2, pairs="sampled").min_rows == 3

"""Jacobian matching: against students whose input gradient is known, differences, and one short training.

Shape key: B batch, C classes, N numbers of an input.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import SGD

from shared.errors import InputError
from shared.models.build import build_model
from student_trainer.losses import DistillBatch, build_loss

CLASSES, SIDE = 5, 4
BATCH = 6


def images_of(count: int = BATCH, *, side: int = SIDE, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def batch_of(
    student: Callable[[Tensor], Tensor], *, images: Tensor, seed: int = 1, classes: int = CLASSES
) -> DistillBatch:
    """What ``student`` says of the images, and answers of no teacher in particular."""
    generator = torch.Generator().manual_seed(seed)
    inputs = images.detach().clone().requires_grad_()
    return DistillBatch(
        student_logits=student(inputs),
        teacher_logits=torch.randn(len(images), classes, generator=generator, dtype=images.dtype),
        student_inputs=inputs,
        teacher_input_grad=torch.randn(images.shape, generator=generator, dtype=images.dtype),
    )


def given(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def smooth_student(seed: int = 2) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = (nn.Flatten(), nn.Linear(3 * SIDE**2, 7), nn.Tanh(), nn.Linear(7, CLASSES))
        return nn.Sequential(*layers).double()


def linear_student() -> tuple[Callable[[Tensor], Tensor], Tensor]:
    weight_CN = torch.randn(CLASSES, 3 * SIDE**2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    weight_CN.requires_grad_()
    return (lambda images: images.flatten(1) @ weight_CN.T), weight_CN


def test_the_input_gradient_of_a_linear_student_is_its_row_of_the_teachers_largest_class() -> None:
    student, weight_CN = linear_student()
    batch = batch_of(student, images=images_of())
    rows_BN = weight_CN[given(batch.teacher_logits).argmax(dim=1)]
    teacher_BN = given(batch.teacher_input_grad).flatten(1)
    raw = sum((row - other) @ (row - other) for row, other in zip(rows_BN, teacher_BN, strict=True)) / BATCH
    cosines = nn.functional.cosine_similarity(rows_BN, teacher_BN, dim=1)
    torch.testing.assert_close(build_loss("jacobian", normalise=False)(batch), raw)
    torch.testing.assert_close(build_loss("jacobian")(batch), (2 - 2 * cosines).mean())
    (found,) = torch.autograd.grad(build_loss("jacobian")(batch), weight_CN)
    (expected,) = torch.autograd.grad((2 - 2 * cosines).mean(), weight_CN)
    torch.testing.assert_close(found, expected)


def test_the_input_gradient_is_that_of_small_steps() -> None:
    student = smooth_student()
    batch = batch_of(student, images=images_of())
    top_B1 = given(batch.teacher_logits).argmax(dim=1, keepdim=True)
    slopes_BN = torch.empty(BATCH, 3 * SIDE**2, dtype=torch.float64)
    for number in range(3 * SIDE**2):
        step = torch.zeros(3 * SIDE**2, dtype=torch.float64)
        step[number] = 1e-6
        ahead, behind = (student(images_of() + sign * step.view(3, SIDE, SIDE)).detach() for sign in (1, -1))
        slopes_BN[:, number] = ((ahead - behind).gather(1, top_B1) / 2e-6)[:, 0]
    teacher_BN = given(batch.teacher_input_grad).flatten(1)
    expected = (
        slopes_BN / slopes_BN.norm(dim=1, keepdim=True) - teacher_BN / teacher_BN.norm(dim=1, keepdim=True)
    ).square()
    torch.testing.assert_close(build_loss("jacobian")(batch), expected.sum(dim=1).mean(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("normalise", [True, False])
def test_the_gradient_of_the_weights_goes_through_the_input_gradient(normalise: bool) -> None:
    student, loss = smooth_student(), build_loss("jacobian", normalise=normalise)
    names = [name for name, _ in student.named_parameters() if name != "3.bias"]  # no slope depends on that one

    def value(*weights: Tensor) -> Tensor:
        changed = dict(zip(names, weights, strict=True))
        result: Tensor = loss(
            batch_of(lambda images: functional_call(student, changed, (images,)), images=images_of(3))
        )
        return result

    assert torch.autograd.gradcheck(value, [student.get_parameter(name) for name in names], atol=1e-6)


def test_a_student_that_changes_as_its_teacher_costs_nothing_and_one_that_changes_against_it_most() -> None:
    student, weight_CN = linear_student()
    batch = batch_of(student, images=images_of())
    rows = weight_CN.detach()[given(batch.teacher_logits).argmax(dim=1)].view(BATCH, 3, SIDE, SIDE)
    for factor, expected in ((1.0, 0.0), (250.0, 0.0), (-3.0, 4.0)):
        value = build_loss("jacobian")(replace(batch, teacher_input_grad=factor * rows))
        assert value.item() == pytest.approx(expected, abs=1e-12)
    value = build_loss("jacobian", normalise=False)(replace(batch, teacher_input_grad=rows))
    assert value.item() == 0.0


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("zero", ["student", "teacher", "both"])
def test_inputs_that_change_nothing_give_finite_values_and_gradients(zero: str, normalise: bool) -> None:
    student = smooth_student()
    if zero != "teacher":
        nn.init.zeros_(student.get_parameter("3.weight"))
    batch = batch_of(student, images=images_of())
    if zero != "student":
        batch = replace(batch, teacher_input_grad=torch.zeros_like(given(batch.teacher_input_grad)))
    value = build_loss("jacobian", normalise=normalise)(batch)
    value.backward()
    assert bool(value.isfinite())
    if normalise:
        assert value.item() == pytest.approx({"student": 1.0, "teacher": 1.0, "both": 0.0}[zero])
    for name, parameter in student.named_parameters():
        assert name == "3.bias" or bool(given(parameter.grad).isfinite().all())


@pytest.mark.parametrize(("length", "has_direction"), [(1e-7, True), (2e-8, True), (5e-9, False), (1e-12, False)])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_gradient_too_short_to_have_a_direction_is_none(side: str, length: float, has_direction: bool) -> None:
    """Half precision, in which a cache may hold the teacher's, ends at 6e-8: what is shorter is rounding."""
    student, weight_CN = linear_student()
    with torch.no_grad():
        weight_CN.mul_((length if side == "student" else 1.0) / weight_CN.norm(dim=1, keepdim=True))
    batch = batch_of(student, images=images_of())
    teacher = given(batch.teacher_input_grad)
    teacher = teacher / teacher.flatten(1).norm(dim=1).view(BATCH, 1, 1, 1)
    batch = replace(batch, teacher_input_grad=teacher * (length if side == "teacher" else 1.0))
    value = build_loss("jacobian")(batch)
    rows_BN = weight_CN.detach()[given(batch.teacher_logits).argmax(dim=1)]
    cosines = nn.functional.cosine_similarity(rows_BN / rows_BN.norm(dim=1, keepdim=True), teacher.flatten(1), dim=1)
    torch.testing.assert_close(value, (2 - 2 * cosines).mean() if has_direction else torch.ones_like(value))
    (gradient,) = torch.autograd.grad(value, weight_CN)
    assert bool(gradient.any()) == (has_direction or side == "teacher")


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_steep_and_flat_students_give_finite_values_and_gradients(factor: float) -> None:
    student = smooth_student().float()
    batch = batch_of(lambda images: factor * student(images), images=images_of(dtype=torch.float32))
    value = build_loss("jacobian")(replace(batch, teacher_input_grad=factor * given(batch.teacher_input_grad)))
    value.backward()
    assert 0 < value.item() < 4
    assert bool(given(student.get_parameter("1.weight").grad).isfinite().all())


def test_half_precision_is_compared_in_float32() -> None:
    student = smooth_student().float()
    batch = batch_of(lambda images: student(images).half(), images=images_of(dtype=torch.float32))
    narrow = replace(batch, teacher_input_grad=given(batch.teacher_input_grad).half())
    value = build_loss("jacobian")(narrow)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, build_loss("jacobian")(batch), rtol=1e-3, atol=0)


def test_batches_that_hold_no_input_gradient_are_refused_with_the_reason() -> None:
    loss, student = build_loss("jacobian"), smooth_student()
    batch = batch_of(student, images=images_of())
    inputs = given(batch.student_inputs)
    larger = replace(batch, teacher_input_grad=torch.zeros(BATCH, 3, 8, 8))
    with pytest.raises(InputError, match=r"\[6, 3, 4, 4\] and the teacher's input gradients \[6, 3, 8, 8\] differ"):
        loss(larger)
    with pytest.raises(InputError, match=r"call inputs.requires_grad_\(\) before the student's forward"):
        loss(replace(batch, student_inputs=inputs.detach()))
    with torch.no_grad():
        unrecorded = replace(batch, student_logits=student(inputs))
    with pytest.raises(InputError, match="run that with gradients enabled"):
        loss(unrecorded)
    with pytest.raises(InputError, match="the very tensor that the student saw"):
        loss(replace(batch, student_inputs=inputs[torch.arange(BATCH)]))


def test_batch_norm_moves_the_others_while_it_trains_and_not_in_evaluation() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, CLASSES))
    student.double()
    loss = build_loss("jacobian")

    def whole_and_single() -> tuple[Tensor, Tensor]:
        whole = batch_of(student, images=images_of())
        singles = []
        for row in range(BATCH):
            one = batch_of(student, images=images_of()[[row]])
            logits, slopes = (given(all_of)[[row]] for all_of in (whole.teacher_logits, whole.teacher_input_grad))
            singles.append(loss(replace(one, teacher_logits=logits, teacher_input_grad=slopes)))
        return loss(whole), torch.stack(singles).mean()

    assert not torch.allclose(*whole_and_single(), rtol=1e-3)
    student.eval()
    torch.testing.assert_close(*whole_and_single())


@pytest.mark.parametrize("autocast", [False, True])
def test_a_few_steps_bring_a_convolutional_student_nearer(autocast: bool) -> None:
    """As the trainer runs it: channels last, batch norm that trains, a fused optimizer, both terms in one backward."""
    images = images_of(16, side=8, dtype=torch.float32).to(memory_format=torch.channels_last)
    teacher = build_model("zoo:resnet8", classes=CLASSES, seed=1).eval()
    seen = images.clone().requires_grad_()
    answers = teacher(seen)
    (slopes,) = torch.autograd.grad(answers.gather(1, answers.argmax(dim=1, keepdim=True)).sum(), seen)
    student = build_model("zoo:resnet8", classes=CLASSES, seed=2).to(memory_format=torch.channels_last).train()
    optimizer = SGD(student.parameters(), lr=0.05, momentum=0.9, fused=True)
    loss, values = build_loss("jacobian"), []
    for _ in range(12):
        inputs = images.detach().clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            logits = student(inputs)
        matched = loss(
            DistillBatch(
                student_logits=logits,
                teacher_logits=answers.detach(),
                student_inputs=inputs,
                teacher_input_grad=slopes.half(),
            )
        )
        optimizer.zero_grad()
        (matched + nn.functional.cross_entropy(logits.float(), answers.argmax(dim=1))).backward()
        optimizer.step()
        values.append(matched.item())
    assert values[0] > 1.8  # two random networks have nothing to do with each other
    assert sum(values[-3:]) / 3 < values[0] - 0.15

"""RKD: what it ignores, coincident samples, and large batches in parts."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from student_trainer.losses import DistillBatch, build_loss, rkd

KINDS = pytest.mark.parametrize("hyper", [{"angle": 0.0}, {"distance": 0.0}, {}, {"normalise": True}])


def points(count: int, width: int, *, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def value(student: Tensor, teacher: Tensor, **hyper: object) -> Tensor:
    batch = DistillBatch(student_logits=student, student_features=student, teacher_features=teacher)
    result: Tensor = build_loss("rkd", **hyper)(batch)
    return result


def smooth(first: float, second: float) -> float:
    error = abs(first - second)
    return error**2 / 2 if error < 1 else error - 0.5


def written_out(student: Tensor, teacher: Tensor) -> tuple[float, float]:
    """(distance, angle) term by loops over pairs and triples, as the paper words them."""
    count = len(student)
    sides = []
    for side in (student, teacher):
        far = [[math.dist(first, second) for second in side.tolist()] for first in side.tolist()]
        mean = sum(map(sum, far)) / (count * (count - 1))
        cosine = {}
        for anchor, one, two in itertools.product(range(count), repeat=3):
            lengths = far[anchor][one] * far[anchor][two]
            product = float((side[one] - side[anchor]) @ (side[two] - side[anchor]))
            cosine[anchor, one, two] = product / lengths if lengths else 0.0
        sides.append((far, mean, cosine))
    (far_s, mean_s, cos_s), (far_t, mean_t, cos_t) = sides
    pairs = itertools.product(range(count), repeat=2)
    distance = sum(smooth(far_s[i][j] / mean_s, far_t[i][j] / mean_t) for i, j in pairs) / count**2
    return distance, sum(smooth(cos_s[key], cos_t[key]) for key in cos_s) / count**3


def test_both_terms_are_what_loops_over_pairs_and_triples_give() -> None:
    student, teacher = points(5, 3, seed=0), points(5, 4, seed=1)
    distance, angle = written_out(student, teacher)
    assert float(value(student, teacher, distance=1, angle=0)) == pytest.approx(distance, rel=1e-12)
    assert float(value(student, teacher, distance=0, angle=1)) == pytest.approx(angle, rel=1e-12)
    assert float(value(student, teacher)) == pytest.approx(25 * distance + 50 * angle, rel=1e-12)


@KINDS
def test_rotation_and_scale_of_a_side_change_nothing(hyper: dict[str, object]) -> None:
    student, teacher = points(6, 4, seed=2), points(6, 5, seed=3)
    rotation, _ = torch.linalg.qr(points(4, 4, seed=4))
    torch.testing.assert_close(value(3 * student @ rotation, teacher, **hyper), value(student, teacher, **hyper))


def test_a_shift_changes_nothing_unless_samples_are_normalised() -> None:
    student, teacher = points(6, 4, seed=2), points(6, 5, seed=3)
    torch.testing.assert_close(value(student + 2, teacher), value(student, teacher))
    assert float(value(student + 2, teacher, normalise=True)) != pytest.approx(
        float(value(student, teacher, normalise=True)), rel=1e-3
    )


@KINDS
def test_a_student_like_the_teacher_is_at_the_minimum(hyper: dict[str, object]) -> None:
    teacher = points(6, 4, seed=5)
    student = (2 * teacher).requires_grad_()
    loss = value(student, teacher, **hyper)
    (gradient,) = torch.autograd.grad(loss, student)
    assert float(loss.detach()) == pytest.approx(0, abs=1e-24)
    assert float(gradient.abs().max()) < 1e-12


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("collapse", ["pair", "all", "zeros"])
def test_coincident_samples_do_not_blow_up_the_gradient(
    hyper: dict[str, object], dtype: torch.dtype, collapse: str
) -> None:
    student, teacher = points(6, 4, seed=6).to(dtype), points(6, 5, seed=7).to(dtype)
    if collapse == "pair":
        student[1] = student[0]
    else:
        student[:] = student[0] if collapse == "all" else 0.0
    student.requires_grad_()
    loss = value(student, teacher, **hyper)
    (gradient,) = torch.autograd.grad(loss, student)
    assert bool(loss.isfinite())
    assert float(gradient.abs().max()) < 10


def test_a_batch_far_from_the_origin_keeps_its_digits_in_float32() -> None:
    student, teacher = points(8, 4, seed=8), points(8, 5, seed=9)
    far = (student + 1000).float()
    exact = value(far.double(), teacher)
    assert float(value(far, teacher.float())) == pytest.approx(float(exact), rel=1e-5)


def test_a_large_batch_in_parts_gives_the_same_loss_and_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = points(13, 4, seed=10).requires_grad_(), points(13, 5, seed=11)
    whole = value(student, teacher)
    (expected,) = torch.autograd.grad(whole, student)
    monkeypatch.setattr(rkd, "NUMBERS_AT_ONCE", 3 * 13 * 13)
    parts = value(student, teacher)
    (gradient,) = torch.autograd.grad(parts, student)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(gradient, expected)


def test_angles_need_three_samples_and_distances_two() -> None:
    assert build_loss("rkd").min_rows == 3
    assert build_loss("rkd", angle=0).min_rows == 2
    assert float(value(points(2, 3, seed=0), points(2, 3, seed=1), angle=0)) == 0


def test_squared_distances_are_compared_over_their_own_mean() -> None:
    student, teacher = points(5, 3, seed=12), points(5, 4, seed=13)
    squares = [
        [[math.dist(one, two) ** 2 for two in side] for one in side] for side in (student.tolist(), teacher.tolist())
    ]
    means = [sum(map(sum, square)) / 20 for square in squares]
    pairs = itertools.product(range(5), repeat=2)
    expected = sum(smooth(squares[0][i][j] / means[0], squares[1][i][j] / means[1]) for i, j in pairs) / 25
    assert float(value(student, teacher, distance=1, angle=0, squared=True)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("origin", [0.0, 1000.0])
def test_a_close_pair_far_from_the_origin_pulls_itself_apart_in_its_own_direction(origin: float) -> None:
    """In float32, where a^2 + b^2 - 2ab would have no digit left."""
    student, teacher = points(6, 4, seed=14) + origin, points(6, 5, seed=15)
    student[1] = student[0] + torch.tensor([3 / 256, 4 / 256, 0, 0], dtype=torch.float64)
    narrow = student.float().requires_grad_()
    exact = narrow.detach().double().requires_grad_()
    gradients = [
        torch.autograd.grad(value(side, teacher.to(side.dtype), distance=1, angle=0), side)[0]
        for side in (narrow, exact)
    ]
    torch.testing.assert_close(gradients[0].double(), gradients[1], rtol=1e-3, atol=1e-6)


def test_the_gradient_by_hand_is_the_one_of_all_differences() -> None:
    student, teacher = points(7, 3, seed=16).requires_grad_(), points(7, 5, seed=17)
    (found,) = torch.autograd.grad(value(student, teacher, distance=1, angle=0), student)
    other = student.detach().clone().requires_grad_()
    sides = [
        (one[:, None] - one).square().sum(dim=2)[~torch.eye(7, dtype=torch.bool)].sqrt() for one in (other, teacher)
    ]
    relative = [side / side.mean() for side in sides]
    written_out = functional.smooth_l1_loss(relative[0], relative[1], reduction="sum") / 49
    torch.testing.assert_close(found, torch.autograd.grad(written_out, other)[0], rtol=1e-10, atol=1e-14)


def test_per_class_asks_for_samples_of_each_class() -> None:
    assert build_loss("rkd").samples_per_class is None
    assert build_loss("rkd", per_class="5").samples_per_class == 5


def angles_written_out(student: Tensor, teacher: Tensor) -> Tensor:
    """The angle term by differences, [B, B, D] of them."""
    sides = [functional.normalize(one[None] - one[:, None], dim=2) for one in (student, teacher)]
    return functional.smooth_l1_loss(sides[0] @ sides[0].mT, sides[1] @ sides[1].mT)


@pytest.mark.parametrize(("origin", "dtype"), [(0, torch.float64), (1e8, torch.float64), (1e3, torch.float32)])
def test_angles_and_their_gradient_are_those_of_all_differences(origin: float, dtype: torch.dtype) -> None:
    student = points(7, 3, seed=18)
    student[1] = student[0] + 1 / 256  # two samples close together
    student = (student + origin).to(dtype).requires_grad_()
    teacher = (points(7, 5, seed=19) - origin).to(dtype)
    found = value(student, teacher, distance=0, angle=1)
    exact = student.detach().double().requires_grad_()
    expected = angles_written_out(exact, teacher.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-9)
    (gradient,), (expected_gradient,) = torch.autograd.grad(found, student), torch.autograd.grad(expected, exact)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("origin", [0.0, 100.0])
@pytest.mark.parametrize(("spread", "gap"), [(1.0, 1e-12), (1.0, 5e-7), (100.0, 1e-6), (1e4, 2e-6), (1e4, 1e-4)])
def test_samples_that_nearly_coincide_count_as_one_point(
    spread: float, gap: float, origin: float, dtype: torch.dtype
) -> None:
    """Three of them, by an absolute distance or by one that is tiny beside the spread of all."""
    student, teacher = spread * points(8, 4, seed=20) + origin, points(8, 5, seed=21)
    student[1:3] = student[0]
    same = student.clone().to(dtype).requires_grad_()
    student[1, 0] += gap
    student[2, 1] += gap
    near = student.to(dtype).requires_grad_()
    values = [value(side, teacher.to(dtype), distance=0, angle=1) for side in (near, same)]
    torch.testing.assert_close(values[0], values[1], rtol=1e-5, atol=0)
    gradients = [torch.autograd.grad(one, side)[0] for one, side in zip(values, (near, same), strict=True)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6 / spread)


@pytest.mark.parametrize("gap", [1e-12, 5e-7, 9e-7])
def test_distances_below_the_least_one_pull_nothing(gap: float) -> None:
    student, teacher = points(6, 4, seed=24), points(6, 5, seed=25)
    student[1] = student[0]
    gradients = []
    for apart in (0.0, gap):
        near = student.clone()
        near[1, 0] += apart
        (gradient,) = torch.autograd.grad(value(near.requires_grad_(), teacher, angle=0), near)
        gradients.append(gradient)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("spread", "gap"), [(1.0, 1e-5), (100.0, 1e-4), (1e4, 0.1)])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_close_pair_has_the_angles_of_its_own_direction(spread: float, gap: float, side: str) -> None:
    sides = {"student": points(8, 4, seed=22), "teacher": points(8, 5, seed=23)}
    sides[side] *= spread
    sides[side][1] = sides[side][0]
    sides[side][1, 0] += gap
    student = sides["student"].requires_grad_()
    found, expected = value(student, sides["teacher"], distance=0, angle=1), angles_written_out(*sides.values())
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)
    gradients = [torch.autograd.grad(one, student)[0] for one in (found, expected)]
    assert float((gradients[0] - gradients[1]).abs().max()) <= 1e-7 * float(gradients[1].abs().max())

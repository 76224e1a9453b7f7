"""PKT, SP and CC: what they compare, and what they ignore."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from shared.errors import InputError
from student_trainer.losses import DistillBatch, TrainingFacts, build_loss
from student_trainer.losses.base import DistillLoss


def points(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def features_batch(student: Tensor, teacher: Tensor) -> DistillBatch:
    return DistillBatch(student_logits=student, student_features=student, teacher_features=teacher)


def maps_batch(student: list[Tensor], teacher: list[Tensor]) -> DistillBatch:
    return DistillBatch(student_logits=student[0][:, :, 0, 0], student_maps=tuple(student), teacher_maps=tuple(teacher))


def test_pkt_is_the_divergence_of_neighbourhoods() -> None:
    student, teacher = points(5, 3, seed=0), points(5, 4, seed=1)
    sides = []
    for side in (student.tolist(), teacher.tolist()):
        cosines = [
            [sum(a * b for a, b in zip(one, two, strict=True)) / (math.hypot(*one) * math.hypot(*two)) for two in side]
            for one in side
        ]
        sides.append([[(1 + cosine) / 2 / sum((1 + each) / 2 for each in row) for cosine in row] for row in cosines])
    own, other = sides
    expected = (
        sum(t * math.log(t / s) for rows in zip(own, other, strict=True) for s, t in zip(*rows, strict=True)) / 25
    )
    assert float(build_loss("pkt")(features_batch(student, teacher))) == pytest.approx(expected, rel=1e-5)


def test_pkt_of_close_sides_keeps_its_digits_in_float32() -> None:
    teacher = points(64, 16, seed=2)
    student = teacher + 1e-3 * points(64, 16, seed=3)
    exact = float(build_loss("pkt")(features_batch(student, teacher)))
    narrow = float(build_loss("pkt")(features_batch(student.float(), teacher.float())))
    assert narrow == pytest.approx(exact, rel=1e-3)


def test_sp_compares_the_last_maps_laid_out_in_a_row() -> None:
    student, teacher = points(4, 3, 2, 2, seed=0), points(4, 5, 3, 3, seed=1)
    rows = []
    for side in (student, teacher):
        products = torch.tensor([[float((one * two).sum()) for two in side] for one in side], dtype=torch.float64)
        rows.append(products / products.square().sum(dim=1, keepdim=True).sqrt())
    found = build_loss("sp")(maps_batch([student], [teacher]))
    assert build_loss("sp").needs == ("student_maps", "teacher_maps")
    torch.testing.assert_close(found, (rows[0] - rows[1]).square().sum() / 16)
    flat = build_loss("sp", on="features")(features_batch(student.flatten(1), teacher.flatten(1)))
    torch.testing.assert_close(found, flat)


def test_sp_of_several_maps_adds_them_up() -> None:
    pairs = [(points(4, 3, 2, 2, seed=seed), points(4, 2, 2, 2, seed=10 + seed)) for seed in range(3)]
    single = [float(build_loss("sp")(maps_batch([student], [teacher]))) for student, teacher in pairs]
    found = build_loss("sp", maps="0-")(maps_batch([pair[0] for pair in pairs], [pair[1] for pair in pairs]))
    assert float(found) == pytest.approx(sum(single), rel=1e-12)


@pytest.mark.parametrize("name", ["pkt", "sp"])
def test_a_sample_that_is_zero_keeps_the_gradient_small(name: str) -> None:
    student, teacher = points(5, 3, seed=0), points(5, 4, seed=1)
    student[2] = 0
    student.requires_grad_()
    loss = build_loss(name, on="features")
    (gradient,) = torch.autograd.grad(loss(features_batch(student, teacher)), student)
    assert float(gradient.abs().max()) < 10


def cc(seed: int = 0, **hyper: Any) -> DistillLoss:
    loss = build_loss("cc", **hyper)
    facts = TrainingFacts(
        seed=seed, classes=3, rows=torch.arange(5), labels=torch.arange(5), student_width=3, teacher_width=4
    )
    loss.start(facts)
    return loss.double()


def test_ccs_code_multiplies_errors_of_neighbours_in_the_batch() -> None:
    student, teacher = points(5, 3, seed=0), points(5, 3, seed=1)
    error = (student - teacher).abs()
    expected = sum(float(error[i] @ error[i + 1]) for i in range(4)) / 4
    assert float(cc(width=0)(features_batch(student, teacher))) == pytest.approx(expected, rel=1e-12)


KERNELS: dict[str, tuple[dict[str, Any], Callable[[float], float]]] = {
    "bilinear": ({"form": "bilinear"}, lambda product: product),
    "second order": ({"form": "gaussian"}, lambda product: math.exp(-0.8) * (1 + 0.8 * product + 0.32 * product**2)),
    "gaussian": ({"form": "gaussian", "order": 30, "gamma": 0.7}, lambda product: math.exp(-0.7 * (2 - 2 * product))),
}


@pytest.mark.parametrize("kind", sorted(KERNELS))
def test_ccs_paper_compares_kernels_of_all_pairs(kind: str) -> None:
    hyper, kernel = KERNELS[kind]
    student, teacher = points(5, 3, seed=0), points(5, 4, seed=1)
    sides = [side / side.square().sum(dim=1, keepdim=True).sqrt() for side in (student, teacher)]
    errors = [
        kernel(float(sides[0][i] @ sides[0][j])) - kernel(float(sides[1][i] @ sides[1][j]))
        for i in range(5)
        for j in range(5)
    ]
    found = cc(width=0, **hyper)(features_batch(student, teacher))
    assert float(found) == pytest.approx(sum(error**2 for error in errors) / 25, rel=1e-12)
    norm = cc(width=0, squared=False, **hyper)(features_batch(student, teacher))
    assert float(norm) == pytest.approx(math.hypot(*errors) / 25, rel=1e-12)


def test_cc_trains_an_embedding_of_each_side_drawn_from_the_seed() -> None:
    first, again, other = cc(), cc(), cc(seed=1)
    assert {name: list(part.shape) for name, part in first.named_parameters()} == {
        "embed_s.linear.weight": [128, 3],
        "embed_s.linear.bias": [128],
        "embed_t.linear.weight": [128, 4],
        "embed_t.linear.bias": [128],
    }
    batch = features_batch(points(5, 3, seed=0), points(5, 4, seed=1))
    assert torch.equal(first(batch), again(batch))
    assert not torch.equal(first(batch), other(batch))
    first(batch).backward()
    assert all(part.grad is not None and bool(part.grad.any()) for part in first.parameters())


def test_what_cc_cannot_compare_is_refused() -> None:
    batch = features_batch(points(5, 3, seed=0), points(5, 4, seed=1))
    with pytest.raises(InputError, match=r"call loss\.start"):
        build_loss("cc")(batch)
    with pytest.raises(InputError, match="3 and 4 numbers cannot be subtracted; give width=128"):
        cc(width=0)(batch)
    with pytest.raises(InputError, match="student features are 2 wide; start\\(\\) was told 3"):
        cc()(features_batch(points(5, 2, seed=0), points(5, 4, seed=1)))
    with pytest.raises(InputError, match="at least 2 samples; this one has 1"):
        cc()(features_batch(points(1, 3, seed=0), points(1, 4, seed=1)))

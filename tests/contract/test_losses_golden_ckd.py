"""CKD against numbers of its authors' own code: each recorded term, and what all comparisons come to in closed form."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from golden_vectors import as_tensors, beside, beside_zeros, check_output, grad
from torch import Tensor

from student_trainer.losses import DistillBatch, build_loss

HYPER = {"pos": "pos", "neg": "neg", "kd_T": "kd_temperature"}
COMBINE = {"ckd": "subtract", "ckd_add": "add"}
"""The authors' ``relational`` -> our ``combine``."""
TERMS = ("w_cls", "w_rel", "w_kd")
every_dtype = pytest.mark.parametrize("dtype", ["float64", "float32"])


def hyper_of(case: dict[str, Any]) -> dict[str, Any]:
    given = dict(case["hyperparams"])
    combine = {"combine": COMBINE[given.pop("relational", "ckd")]}
    return combine | {HYPER.get(theirs) or theirs: value for theirs, value in given.items()}


def term_of(case: dict[str, Any], name: str, batch: DistillBatch, indices: Tensor) -> Tensor:
    """One weighted term of the total alone."""
    hyper = hyper_of(case)
    if hyper[name] == 0:
        return torch.zeros(())
    alone = {other: hyper[other] if other == name else 0.0 for other in TERMS}
    value: Tensor = build_loss("ckd", **hyper | alone)(batch, indices=indices)
    return value


@every_dtype
def test_every_term_and_gradient_agree_with_the_authors_code(dtype: str, golden: Any) -> None:
    cases = list(golden.cases(spec="ckd.ckd", dtype=dtype))
    assert len(cases) >= 19
    for case in cases:
        inputs, expected = as_tensors(golden.inputs(case)), golden.outputs(case)
        student, indices = inputs["student_logits"].requires_grad_(), inputs["indices"]
        batch = DistillBatch(student_logits=student, teacher_logits=inputs["teacher_logits"], labels=inputs["labels"])
        value = build_loss("ckd", **hyper_of(case))(batch, indices=indices)
        value.backward()
        found = {"loss": value, "grad_student_logits": grad(student)}
        found |= {f"loss_{name[2:]}": term_of(case, name, batch, indices) for name in TERMS}
        assert found.keys() == expected.keys()
        for output, tensor in found.items():
            check_output(case, output, tensor.detach().numpy(), expected[output])


def comparisons(count: int, *, pos: int, neg: int) -> Iterator[tuple[int, ...]]:
    for positive in itertools.combinations(range(count), pos):
        rest = [index for index in range(count) if index not in positive]
        for negative in itertools.combinations(rest, neg):
            yield positive + negative


def random_batch(count: int, *, classes: int = 10) -> DistillBatch:
    generator = torch.Generator().manual_seed(count)
    student, teacher = (torch.randn(count, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    return DistillBatch(student_logits=student, teacher_logits=teacher, labels=torch.arange(count) % classes)


@pytest.mark.parametrize(("count", "pos", "neg"), [(2, 1, 1), (5, 1, 1), (6, 2, 1), (6, 2, 2), (7, 3, 2)])
@pytest.mark.parametrize("weights", [{"w_cls": 0.0}, {"w_rel": 0.0}, {"w_cls": 0.7, "w_rel": 1.9}])
@pytest.mark.parametrize("combine", ["subtract", "add"])
def test_all_pairs_are_the_mean_over_every_comparison(
    count: int, pos: int, neg: int, weights: dict[str, float], combine: str
) -> None:
    batch = random_batch(count)
    loss = build_loss("ckd", pos=pos, neg=neg, combine=combine, **weights)
    brute = loss(batch, indices=torch.tensor(list(comparisons(count, pos=pos, neg=neg))))
    torch.testing.assert_close(loss(batch), brute, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("hyper", [{"w_cls": 0, "w_rel": 0, "w_kd": 2.0}, {"form": "kl", "w_cls": 0.3}])
@pytest.mark.parametrize("combine", ["subtract", "add"])
def test_all_pairs_of_a_divergence_are_its_mean_over_every_pair(hyper: dict[str, Any], combine: str) -> None:
    batch = random_batch(6, classes=7)
    loss = build_loss("ckd", combine=combine, **hyper)
    brute = loss(batch, indices=torch.tensor(list(comparisons(6, pos=1, neg=1))))
    torch.testing.assert_close(loss(batch), brute, rtol=1e-12, atol=1e-12)


def test_all_pairs_agree_with_the_recorded_means(facts: Any) -> None:
    for entry in facts["F10_ckd"]["table"]:
        generator = np.random.default_rng(entry["seed"])
        student, teacher = (torch.tensor(generator.standard_normal((entry["n"], 10))) for _ in range(2))
        loss = build_loss("ckd", pos=entry["pos"], neg=entry["neg"], w_cls=0.0)
        value = loss(DistillBatch(student_logits=student, teacher_logits=teacher))
        assert float(value) == pytest.approx(entry["mean_ckd_over_all"], rel=1e-12)


@every_dtype
def test_the_first_versions_terms_are_the_authors_kl_of_comparisons(dtype: str, golden: Any) -> None:
    """Each sample compared with zeros: the comparisons are the logits that were recorded of their KL."""
    for case in golden.cases(spec="repdistiller.kd", dtype=dtype, shape_tag="B4_K10"):
        inputs, expected = as_tensors(golden.inputs(case)), golden.outputs(case)
        student = inputs["student_logits"].requires_grad_()
        batch = DistillBatch(
            student_logits=beside_zeros(student), teacher_logits=beside_zeros(inputs["teacher_logits"])
        )
        loss = build_loss("ckd", form="kl", w_cls=0, kd_temperature=case["hyperparams"]["T"])
        value = loss(batch, indices=beside(len(student)))
        value.backward()
        for output, tensor in {"loss": value, "grad_student_logits": grad(student)}.items():
            check_output(case, output, tensor.detach().numpy(), expected[output])

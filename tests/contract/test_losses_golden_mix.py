"""Losses on mixed images against numbers of their authors' own code, in float64 and float32.

CutMix has no vectors of its own: its authors' code weighs the same two errors by the area of its box.
"""

from typing import Any

import numpy as np
import pytest
import torch
from golden_vectors import as_tensors, check_output, grad
from torch import Tensor

from student_trainer.distilling import Step, cross_entropy_of
from student_trainer.losses import DistillBatch, build_loss
from student_trainer.student_outputs import StudentAnswer

DTYPES = ("float64", "float32")


def mirrored(
    inputs: dict[str, Tensor], student: Tensor, *, lam: float
) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
    """(tensors of both halves by name, mix): recorded pairs are of two batches, here two halves that mix each other."""
    count = len(student)
    both = {name: torch.cat([inputs[name], inputs[f"{name}_neg"]]) for name in ("teacher_logits", "labels")} | {
        "student_logits": torch.cat([student, student])
    }
    weight = torch.tensor([lam] * count + [1 - lam] * count, dtype=student.dtype)
    return both, (torch.arange(2 * count).roll(count), weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixed_answers_and_labels_agree_with_the_authors_code(name: str, dtype: str, golden: Any) -> None:
    cases = list(golden.cases(spec="ckd.mixup", dtype=dtype))
    assert len(cases) == 6
    for case in cases:
        hyper, expected = case["hyperparams"], golden.outputs(case)
        inputs = as_tensors(golden.inputs(case))
        student = inputs["student_logits"].requires_grad_()
        both, mix = mirrored(inputs, student, lam=hyper["lam"])
        more = {"target": "kl", "temperature": hyper["kd_T"]} if hyper["loss_fn"] == 1 else {"target": "ce"}
        answers = build_loss(name, **more)(
            DistillBatch(student_logits=both["student_logits"], teacher_logits=both["teacher_logits"], mix=mix)
        )
        nothing, said = np.empty(0, np.int64), StudentAnswer(both["student_logits"])
        labelled = cross_entropy_of(Step(nothing, nothing, said, torch.empty(0), both["labels"], mix))
        parts = {"loss_cls": hyper["w_cls"] * labelled, "loss_rel": hyper["w_rel"] * answers}
        # Their own third term is the kl form of `answers`, which they leave out.
        parts["loss_kd"] = torch.tensor(float(hyper["w_kd"]))
        total = parts["loss_cls"] + parts["loss_rel"] + parts["loss_kd"]
        total.backward()
        found = parts | {"loss": total, "grad_student_logits": grad(student)}
        assert found.keys() == expected.keys()
        for output, tensor in found.items():
            check_output(case, output, tensor.detach().numpy(), expected[output])

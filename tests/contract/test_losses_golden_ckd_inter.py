"""White-box CKD against numbers of its authors' own losses: each is what they recorded, applied to differences."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from golden_vectors import Outputs, as_tensors, beside, beside_zeros, check_output, grad
from torch import Tensor

from student_trainer.losses import DistillBatch, TrainingFacts, build_loss
from student_trainer.losses.base import DistillLoss

WHITE_BOX = {
    "repdistiller.fitnet": "ckd_hint",
    "repdistiller.vid": "ckd_vid",
    "repdistiller.cc_embed": "ckd_cc",
}
"""Spec -> the loss that applies the same to differences."""


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("spec", sorted(WHITE_BOX))
def test_white_box_terms_are_the_authors_losses_of_differences(spec: str, dtype: str, golden: Any) -> None:
    """Each recorded feature becomes a sample beside a zero, so that its difference is what the authors recorded."""
    cases = list(golden.cases(spec=spec, dtype=dtype))
    assert cases
    for case in cases:
        inputs, expected = as_tensors(golden.inputs(case)), golden.outputs(case)
        loss, names = white_box(case, inputs)
        kind = "student_map0" if "student_map0" in inputs else "student_feat"
        student, teacher = inputs[kind].requires_grad_(), inputs[kind.replace("student", "teacher")]
        value = loss(white_box_batch(student, teacher), indices=beside(len(student)))
        value.backward()
        found: Outputs = {"loss": value, f"grad_{kind}": grad(student)}
        found |= {f"grad_{theirs}": grad(loss.get_parameter(ours)) for ours, theirs in names.items()}
        assert found.keys() == expected.keys()
        for output, tensor in found.items():
            check_output(case, output, tensor.detach().numpy(), expected[output])


def white_box(case: dict[str, Any], inputs: dict[str, Tensor]) -> tuple[DistillLoss, dict[str, str]]:
    """The loss with the recorded parameters, and our names of them -> theirs."""
    hyper = {"use_relu": case["hyperparams"]["use_relu"]} if "use_relu" in case["hyperparams"] else {}
    if "param.s.linear.weight" in inputs:
        hyper["width"] = len(inputs["param.s.linear.weight"])
    loss = build_loss(WHITE_BOX[case["spec"]], **hyper)
    sides = {side: inputs.get(f"{side}_map0", inputs.get(f"{side}_feat")) for side in ("student", "teacher")}
    shapes: dict[str, Any] = {side: tuple(tensor.shape[1:]) for side, tensor in sides.items() if tensor is not None}
    rows = torch.arange(4)
    facts = TrainingFacts(seed=0, classes=2, rows=rows, labels=rows % 2)
    if len(shapes["student"]) == 1:
        facts = replace(facts, student_width=shapes["student"][0], teacher_width=shapes["teacher"][0])
    else:
        facts = replace(facts, student_maps=(shapes["student"],), teacher_maps=(shapes["teacher"],))
    loss.start(facts)
    loss.to(inputs["student_map0" if "student_map0" in inputs else "student_feat"].dtype)
    theirs = {name for name in inputs if name.startswith("param.")}
    embedded = "embed_" if case["spec"] == "repdistiller.cc_embed" else ""
    names = {f"heads.0.{embedded}{name.removeprefix('param.')}": name for name in theirs}
    assert names.keys() == dict(loss.named_parameters()).keys()
    loss.load_state_dict({ours: inputs[name].clone() for ours, name in names.items()}, strict=False)
    return loss, names


def white_box_batch(student: Tensor, teacher: Tensor) -> DistillBatch:
    both = beside_zeros(student), beside_zeros(teacher)
    logits = torch.zeros(2 * len(student), 2, dtype=student.dtype)
    if student.ndim == 2:
        return DistillBatch(student_logits=logits, student_features=both[0], teacher_features=both[1])
    return DistillBatch(student_logits=logits, student_maps=(both[0],), teacher_maps=(both[1],))

"""Every loss against numbers of its authors' own code, in float64 and float32, and the identities of facts.json."""

from typing import Any

import pytest
import torch
from golden_vectors import Outputs, as_tensors, check_output, grad
from torch import Tensor

from shared.errors import InputError
from student_trainer.losses import DistillBatch, TrainingFacts, build_loss
from student_trainer.losses.base import DistillLoss

RKD_WEIGHTS = {"w_d": "distance", "w_a": "angle", "distance_weight": "distance", "angle_weight": "angle"}
CRD_HYPER = {"nce_k": "negatives", "nce_t": "temperature", "nce_m": "momentum"}
SPECS: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "repdistiller.rkd": ("rkd", {}, RKD_WEIGHTS),
    "mdistiller.rkd": ("rkd", {}, RKD_WEIGHTS),
    "rkd.distance": ("rkd", {"distance": 1.0, "angle": 0.0}, {}),
    "rkd.angle": ("rkd", {"distance": 0.0, "angle": 1.0}, {}),
    "rkd_cls.rkd": ("rkd", {"normalise": True}, {"dist_ratio": "distance", "angle_ratio": "angle"}),
    "repdistiller.crd": ("crd", {"width": 8}, CRD_HYPER),
    "mdistiller.crd": ("crd", {"width": 8}, CRD_HYPER),
}
"""Golden spec -> (our loss, what the spec fixes, the authors' hyper-parameter names -> ours)."""
NOT_OURS = {"eps", "squared"}
"""The authors' hyper-parameters that a test reads itself, or that have one value here."""


def is_exception(case: dict[str, Any]) -> bool:
    """No option of ours: squared distances."""
    return case["hyperparams"].get("squared") is True


def built(case: dict[str, Any], **more: object) -> DistillLoss:
    name, fixed, names = SPECS[case["spec"]]
    mapped = {key: names.get(key) for key in case["hyperparams"]}
    hyper = {ours: case["hyperparams"][theirs] for theirs, ours in mapped.items() if ours is not None}
    assert {key for key, ours in mapped.items() if ours is None} <= NOT_OURS
    return build_loss(name, **fixed, **hyper, **more)


def computed(case: dict[str, Any], inputs: dict[str, Tensor]) -> Outputs:
    """What the authors recorded of a case, computed by our loss."""
    kinds = {"crd": crd_outputs, "rkd": rkd_outputs}
    return kinds.get(SPECS[case["spec"]][0], logits_outputs)(case, inputs)


def logits_outputs(case: dict[str, Any], inputs: dict[str, Tensor]) -> Outputs:
    student = inputs["student_logits"].requires_grad_()
    batch = DistillBatch(student_logits=student, teacher_logits=inputs["teacher_logits"], labels=inputs.get("labels"))
    value = built(case)(batch)
    value.backward()
    return {"loss": value, "grad_student_logits": grad(student)}


def rkd_outputs(case: dict[str, Any], inputs: dict[str, Tensor]) -> Outputs:
    student = inputs["student_feat"].requires_grad_()
    batch = DistillBatch(student_logits=student, student_features=student, teacher_features=inputs["teacher_feat"])
    loss = built(case)
    if len(student) < loss.min_rows:
        with pytest.raises(InputError, match=f"at least {loss.min_rows} samples"):
            loss(batch)
        return {}
    value = loss(batch)
    value.backward()
    return {"loss": value, "grad_student_feat": grad(student)}


def crd_outputs(case: dict[str, Any], inputs: dict[str, Tensor]) -> Outputs:
    student, teacher = inputs["student_feat"].requires_grad_(), inputs["teacher_feat"]
    loss = built(case)
    rows = 1000 + torch.arange(len(inputs["memory_v1"]))
    loss.start(
        TrainingFacts(
            seed=0,
            classes=2,
            rows=rows,
            labels=rows % 2,
            student_width=student.shape[1],
            teacher_width=teacher.shape[1],
        )
    )
    loss.to(student.dtype)
    names = {f"embed_{side}.{kind}": f"param.embed_{side[0]}.linear.{kind}" for side in SIDES for kind in KINDS}
    memories = {"memory_student": "memory_v1", "memory_teacher": "memory_v2"}
    loss.load_state_dict({ours: inputs[theirs].clone() for ours, theirs in (names | memories).items()}, strict=False)
    batch = DistillBatch(
        student_logits=student, student_features=student, teacher_features=teacher, rows=rows[inputs["idx"]]
    )
    value = loss(batch, contrast=inputs["contrast_idx"])
    value.backward()
    state = loss.state_dict()
    found = {"loss": value, "grad_student_feat": grad(student)}
    found |= {f"grad_{theirs}": grad(loss.get_parameter(ours)) for ours, theirs in names.items()}
    found |= {f"{theirs}_after": state[ours].clone() for ours, theirs in memories.items()}
    for side, theirs in zip(SIDES, ("Z_v1", "Z_v2"), strict=True):
        found[theirs] = torch.tensor(state["_extra_state"]["log_z"][side], dtype=torch.float64).exp()
    return found | {"loss_second_call": loss(batch, contrast=inputs["contrast_idx"])}


SIDES = ("student", "teacher")
KINDS = ("weight", "bias")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("spec", sorted(SPECS))
def test_loss_and_gradient_agree_with_the_authors_code(spec: str, dtype: str, golden: Any) -> None:
    cases = [case for case in golden.cases(spec=spec, dtype=dtype) if not is_exception(case)]
    assert len(cases) >= 2
    compared = 0
    for case in cases:
        expected = golden.outputs(case)
        found = computed(case, as_tensors(golden.inputs(case)))
        compared += len(found)
        for output, tensor in found.items():
            check_output(case, output, tensor.detach().numpy(), expected[output])
    assert compared >= 2 * (len(cases) - 2)

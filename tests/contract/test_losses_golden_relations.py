"""RKD, DarkRank, PKT, SP, CC and CRD against numbers of their authors' own code, in float64 and float32."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from golden_vectors import Outputs, as_tensors, check, check_output, grad
from torch import Tensor

from shared.errors import InputError
from student_trainer.losses import DistillBatch, TrainingFacts, build_loss
from student_trainer.losses.base import DistillLoss

RKD = {"w_d": "distance", "w_a": "angle", "distance_weight": "distance", "angle_weight": "angle", "squared": "squared"}
RKD |= {"dist_ratio": "distance", "angle_ratio": "angle", "dist_factor": "distance", "angle_factor": "angle"}
CRD = {"nce_k": "negatives", "nce_t": "temperature", "nce_m": "momentum"}
DARKRANK = {"alpha": "alpha", "beta": "beta", "permute_len": "neighbours"}
SPECS: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "repdistiller.rkd": ("rkd", {}, RKD),
    "mdistiller.rkd": ("rkd", {}, RKD),
    "torchdistill.rkd": ("rkd", {}, RKD),
    "rkd.distance": ("rkd", {"distance": 1.0, "angle": 0.0}, {}),
    "rkd.angle": ("rkd", {"distance": 0.0, "angle": 1.0}, {}),
    "rkd_cls.rkd": ("rkd", {"normalise": True}, RKD),
    "rkd.hard_darkrank": ("darkrank", {"normalise": False}, DARKRANK),
    "repdistiller.pkt": ("pkt", {}, {}),
    "mdistiller.pkt": ("pkt", {}, {}),
    "repdistiller.sp": ("sp", {"on": "features"}, {}),
    "mdistiller.sp": ("sp", {"on": "features"}, {}),
    "repdistiller.cc": ("cc", {"width": 0}, {}),
    "repdistiller.cc_embed": ("cc", {"width": 6}, {}),
    "torchdistill.cckd": ("cc", {"width": 0, "normalise": False, "squared": False}, {}),
    "repdistiller.crd": ("crd", {"width": 8}, CRD),
    "mdistiller.crd": ("crd", {"width": 8}, CRD),
}
"""Golden spec -> (our loss, what the spec fixes, the authors' hyper-parameter names -> ours).

``torchdistill.spkd`` is left out: its rows have sum 1 (``normalize(m, 1)``) where the paper's have length 1.
"""
NOT_OURS = {"eps", "reduction", "kernel_config"}
"""The authors' hyper-parameters that have one value, or that `built` reads itself."""
COINCIDING = ("dup_student", "dup_both", "zero_row_student")
"""Scenarios where the authors divide by a length of zero."""
SIDES = ("student", "teacher")
KINDS = ("weight", "bias")


def built(case: dict[str, Any]) -> DistillLoss:
    name, fixed, names = SPECS[case["spec"]]
    given = case["hyperparams"]
    assert set(given) <= set(names) | NOT_OURS
    hyper = {names[theirs]: value for theirs, value in given.items() if theirs in names}
    kernel = dict(given.get("kernel_config", {}))
    for theirs, ours in (("type", "form"), ("gamma", "gamma"), ("max_p", "order")):
        hyper |= {ours: kernel[theirs]} if theirs in kernel else {}
    return build_loss(name, **fixed, **hyper)


def started(case: dict[str, Any], inputs: dict[str, Tensor], *, rows: Tensor) -> DistillLoss:
    loss = built(case)
    widths = [inputs[f"{side}_feat"].shape[1] for side in SIDES]
    facts = TrainingFacts(
        seed=0, classes=2, rows=rows, labels=rows % 2, student_width=widths[0], teacher_width=widths[1]
    )
    loss.start(facts)
    return loss.to(inputs["student_feat"].dtype)


def features_outputs(case: dict[str, Any], inputs: dict[str, Tensor]) -> Outputs:
    student = inputs["student_feat"].requires_grad_()
    batch = DistillBatch(student_logits=student, student_features=student, teacher_features=inputs["teacher_feat"])
    loss = started(case, inputs, rows=torch.arange(len(student)))
    theirs = {name: name.replace("embed_", "param.") for name, _ in loss.named_parameters()}
    loss.load_state_dict({name: inputs[golden_name].clone() for name, golden_name in theirs.items()})
    if len(student) < loss.min_rows:
        with pytest.raises(InputError, match=f"at least {loss.min_rows} samples"):
            loss(batch)
        return {}
    value = loss(batch)
    value.backward()
    gradients = {f"grad_{theirs[name]}": grad(parameter) for name, parameter in loss.named_parameters()}
    return gradients | {"loss": value, "grad_student_feat": grad(student)}


def crd_outputs(case: dict[str, Any], inputs: dict[str, Tensor]) -> Outputs:
    student = inputs["student_feat"].requires_grad_()
    rows = 1000 + torch.arange(len(inputs["memory_v1"]))
    loss = started(case, inputs, rows=rows)
    names = {f"embed_{side}.{kind}": f"param.embed_{side[0]}.linear.{kind}" for side in SIDES for kind in KINDS}
    memories = {"memory_student": "memory_v1", "memory_teacher": "memory_v2"}
    loss.load_state_dict({ours: inputs[theirs].clone() for ours, theirs in (names | memories).items()}, strict=False)
    batch = DistillBatch(
        student_logits=student,
        student_features=student,
        teacher_features=inputs["teacher_feat"],
        rows=rows[inputs["idx"]],
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


COMPUTED: dict[str, Callable[[dict[str, Any], dict[str, Tensor]], Outputs]] = {"crd": crd_outputs}
"""What the authors recorded of a case, computed by our loss of that name; `features_outputs` for the others."""


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("spec", sorted(SPECS))
def test_loss_and_gradient_agree_with_the_authors_code(spec: str, dtype: str, golden: Any) -> None:
    computed = COMPUTED.get(SPECS[spec][0], features_outputs)
    refused = []
    for case in golden.cases(spec=spec, dtype=dtype):
        expected = golden.outputs(case)
        found = computed(case, as_tensors(golden.inputs(case)))
        refused += [] if found else [case]
        for output in set(expected) & set(found) if found else ():
            result = found[output].detach().numpy()
            if output in case.get("nonfinite_outputs", ()):
                assert abs(result).max() < 10, case["id"]
            elif case["scenario"] in COINCIDING:
                check_output(case, output, result, expected[output])
            else:
                check(case, output, result, expected[output])
        assert not found or {name for name in expected if name.startswith("grad_")} | {"loss"} <= set(found), case["id"]
    # Batches that hold nothing to compare: one sample, or two for angles.
    assert {len(golden.inputs(case)["student_feat"]) for case in refused} <= {1, 2}
    assert len(refused) <= 2

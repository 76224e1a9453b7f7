"""AB, FT, OFD, Review and SRRL against numbers of their authors' own code, in float64 and float32."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from golden_vectors import Outputs, as_tensors, check_output, grad
from map_batches import started
from torch import Tensor, nn

from shared.models.maps import ofd_margin
from student_trainer.losses import DistillBatch
from student_trainer.losses.base import DistillLoss

SPECS: dict[str, tuple[str, dict[str, Any]]] = {
    "repdistiller.ab": ("ab", {}),
    "torchdistill.dab": ("ab", {"scale": 1.0, "layers": "equal"}),
    "repdistiller.ft": ("ft", {}),
    "torchdistill.ft": ("ft", {"factor": "whole"}),
    "ofd.distillation_loss": ("ofd", {"divisor": 1.0, "maps": "1"}),
    "mdistiller.ofd_feat_loss": ("ofd", {"divisor": 1.0, "maps": "1", "form": "mdistiller"}),
    "ofd.full": ("ofd", {"divisor": 1000.0}),
    "reviewkd.hcl": ("review", {"fusion": False}),
    "mdistiller.hcl": ("review", {"fusion": False}),
    "reviewkd.full": ("review", {}),
    "srrl.srrl": ("srrl", {}),
}
"""Golden spec -> (our loss, what the spec fixes)."""
NAMES = {"margin": "margin", "p1": "p1", "p2": "p2", "p": "p2", "weight": "regression"}
"""The authors' hyper-parameter -> ours; the others of these specs are fixed above, or are shapes."""
FIXED = {"reduction", "trainer_div", "shapes"}
PARTS = {"loss_layer0", "loss_layer1", "loss_layer2", "loss_stat", "loss_sr"}
"""What a test of its own compares."""


def maps_in(inputs: Mapping[str, Tensor], side: str) -> list[Tensor]:
    return [inputs[name] for name in sorted(inputs) if name.startswith(f"{side}_map")]


def batch_of(case: dict[str, Any], inputs: dict[str, Tensor]) -> DistillBatch:
    """Of the maps recorded; the pooled features of Review are its last ones, those of SRRL the means of the last."""
    student, teacher = maps_in(inputs, "student"), maps_in(inputs, "teacher")
    logits = student[0].new_zeros(len(student[0]), 10)
    if case["spec"] == "srrl.srrl":
        features = teacher[0].mean(dim=(2, 3))
        weight, bias = inputs["teacher_fc_weight"], inputs["teacher_fc_bias"]
        return DistillBatch(
            student_logits=logits,
            teacher_logits=features @ weight.T + bias,
            teacher_features=features,
            student_maps=(student[0],),
            teacher_constants={"classifier.weight": weight, "classifier.bias": bias},
        )
    pooled: dict[str, Any] = {}
    if case["spec"] == "reviewkd.full":
        pooled = {"student_features": student.pop().flatten(1), "teacher_features": teacher.pop().flatten(1)}
    return DistillBatch(
        student_logits=logits,
        student_maps=tuple(student),
        teacher_maps=tuple(teacher),
        teacher_constants=margins_of(inputs),
        **pooled,
    )


def parameters_in(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("param."): value for name, value in inputs.items() if name.startswith("param.")}


def margins_of(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if "margin" in inputs:
        return {"margins.1": inputs["margin"].flatten()}
    norms = [(inputs[f"bn{number}_weight"], inputs[f"bn{number}_bias"]) for number in (0, 1) if "bn0_bias" in inputs]
    margins = {}
    for number, (weight, bias) in enumerate(norms, start=1):
        norm = nn.BatchNorm2d(len(weight), dtype=weight.dtype)
        norm.weight.data, norm.bias.data = weight, bias
        margins[f"margins.{number}"] = ofd_margin(norm)
    return margins


def loss_of(case: dict[str, Any], batch: DistillBatch) -> DistillLoss:
    name, fixed = SPECS[case["spec"]]
    assert set(case["hyperparams"]) <= set(NAMES) | FIXED
    hyper = {NAMES[theirs]: value for theirs, value in case["hyperparams"].items() if theirs in NAMES}
    return started(name, batch, **fixed, **hyper)


def leave_out_networks(case: dict[str, Any], loss: DistillLoss) -> None:
    """The specs of the bare distances were recorded without what stands between maps and loss."""
    if case["spec"] in {"ofd.distillation_loss", "mdistiller.ofd_feat_loss"}:
        loss.Connectors = nn.ModuleList([nn.Identity()])
    if case["spec"].endswith(".ft"):
        loss.translator, loss.paraphraser = nn.Identity(), nn.Module()
        loss.paraphraser.encoder = nn.Identity()


def computed(case: dict[str, Any], inputs: dict[str, Tensor]) -> Outputs:
    """What the authors recorded of a case, computed by our loss."""
    student = {name: value.requires_grad_() for name, value in inputs.items() if name.startswith("student_")}
    batch = batch_of(case, inputs)
    loss = loss_of(case, batch)
    leave_out_networks(case, loss)
    recorded = parameters_in(inputs)
    lacking = loss.load_state_dict(recorded, strict=False)
    assert not lacking.unexpected_keys
    assert not set(lacking.missing_keys) & {name for name, _ in loss.named_parameters()}
    value = loss(batch)
    # The sum over the batch, before the trainer divides it.
    sums = {"ofd.distillation_loss": len(batch.student_logits), "ofd.full": 1000 * len(batch.student_logits)}
    total = value * sums.get(case["spec"], 1)
    total.backward()
    found = {"loss": total}
    if case["spec"] == "ofd.full":
        found["loss_trainer_scaled"] = value
    found |= {f"grad_{name}": grad(value) for name, value in student.items()}
    return found | {f"grad_param.{name}": grad(loss.get_parameter(name)) for name in recorded}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("spec", sorted(SPECS))
def test_loss_and_gradients_agree_with_the_authors_code(spec: str, dtype: str, golden: Any) -> None:
    cases = list(golden.cases(spec=spec, dtype=dtype))
    assert cases
    for case in cases:
        expected = golden.outputs(case)
        found = computed(case, as_tensors(golden.inputs(case)))
        assert {name for name in expected if name not in PARTS} == set(found), case["id"]
        for output, tensor in found.items():
            if output not in case.get("nonfinite_outputs", ()):
                check_output(case, output, tensor.detach().numpy(), expected[output])
            else:  # torchdistill divides a zero factor by its length
                assert spec == "torchdistill.ft"
                assert float(tensor.detach().abs().max()) < 10


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_terms_of_srrl_agree_with_the_authors_code(dtype: str, golden: Any) -> None:
    for case in golden.cases(spec="srrl.srrl", dtype=dtype):
        expected, inputs = golden.outputs(case), as_tensors(golden.inputs(case))
        terms = {"loss_stat": {"regression": 0}, "loss_sr": {"feature": 0, "regression": case["hyperparams"]["weight"]}}
        for output, hyper in terms.items():
            batch = batch_of(case, inputs)
            loss = started("srrl", batch, **hyper)
            loss.load_state_dict(parameters_in(inputs), strict=False)
            check_output(case, output, loss(batch).detach().numpy(), expected[output])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_layers_of_ab_agree_with_the_authors_code(dtype: str, golden: Any) -> None:
    for case in golden.cases(spec="repdistiller.ab", dtype=dtype):
        batch = batch_of(case, as_tensors(golden.inputs(case)))
        expected = golden.outputs(case)
        for place, (own, other) in enumerate(zip(batch.student_maps, batch.teacher_maps, strict=True)):
            alone = replace(batch, student_maps=(own,), teacher_maps=(other,))
            value = loss_of(case, alone)(alone) * 2.0 ** (place - 2)
            check_output(case, f"loss_layer{place}", value.detach().numpy(), expected[f"loss_layer{place}"])

"""Losses on feature maps against numbers of their authors' own code, in float64 and float32."""

from typing import Any

import pytest
import torch
from golden_vectors import Outputs, as_tensors, check_output, grad
from torch import Tensor

from student_trainer.losses import DistillBatch, TrainingFacts, build_loss
from student_trainer.losses.facts import MapShape

SPECS: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "repdistiller.hint": ("fitnets", {"on": "features"}, {}),
    "repdistiller.fitnet": ("fitnets", {}, {"use_relu": "use_relu"}),
    "repdistiller.at": ("at", {}, {"p": "p"}),
    "mdistiller.at": ("at", {}, {"p": "p"}),
    "rkd.attention_transfer": ("at", {}, {}),
    "torchdistill.at": ("at", {}, {"mode": "form"}),
    "repdistiller.vid": ("vid", {}, {"init_pred_var": "init_pred_var", "eps": "eps"}),
    "mdistiller.vid": ("vid", {}, {"eps": "eps"}),
    "repdistiller.nst": ("nst", {}, {}),
    "mdistiller.nst": ("nst", {}, {}),
    "repdistiller.fsp": ("fsp", {}, {}),
    "torchdistill.fsp": ("fsp", {"form": "torchdistill"}, {}),
}
"""Golden spec -> (our loss, what the spec fixes, the authors' hyper-parameter names -> ours).

`repdistiller.kdsvd` has no loss of ours: its value depends on the signs that an SVD happens to give.
"""


def numbered(inputs: dict[str, Tensor], side: str) -> tuple[Tensor, ...]:
    """The maps of one side, in their order."""
    return tuple(inputs[name] for name in sorted(inputs) if name.startswith(f"{side}_map"))


def shapes_of(maps: tuple[Tensor, ...]) -> tuple[MapShape, ...]:
    return tuple((one.shape[1], one.shape[2], one.shape[3]) for one in maps)


def computed(case: dict[str, Any], inputs: dict[str, Tensor], **more: object) -> Outputs:
    """What the authors recorded of a case, computed by our loss."""
    name, fixed, names = SPECS[case["spec"]]
    loss = build_loss(name, **fixed, **{names[key]: value for key, value in case["hyperparams"].items()}, **more)
    own = {key: value.requires_grad_() for key, value in inputs.items() if key.startswith("student_")}
    student, teacher = numbered(inputs, "student"), numbered(inputs, "teacher")
    features = inputs.get("student_feat"), inputs.get("teacher_feat")
    loss.start(
        TrainingFacts(
            seed=0,
            classes=2,
            rows=torch.arange(2),
            labels=torch.arange(2),
            student_width=None if features[0] is None else features[0].shape[1],
            teacher_width=None if features[1] is None else features[1].shape[1],
            student_maps=shapes_of(student),
            teacher_maps=shapes_of(teacher),
        )
    )
    loss.to(next(iter(own.values())).dtype)
    params = {key: f"parts.0.{key.removeprefix('param.')}" for key in inputs if key.startswith("param.")}
    loaded = loss.load_state_dict({ours: inputs[theirs] for theirs, ours in params.items()}, strict=False)
    assert not loaded.unexpected_keys
    assert not set(loaded.missing_keys) & set(dict(loss.named_parameters()))
    value = loss(
        DistillBatch(
            student_logits=next(iter(own.values())),
            student_features=features[0],
            teacher_features=features[1],
            student_maps=student,
            teacher_maps=teacher,
        )
    )
    value.backward()
    found = {"loss": value} | {f"grad_{key}": grad(tensor) for key, tensor in own.items()}
    return found | {f"grad_{theirs}": grad(loss.get_parameter(ours)) for theirs, ours in params.items()}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("spec", sorted(SPECS))
def test_loss_and_gradients_agree_with_the_authors_code(spec: str, dtype: str, golden: Any) -> None:
    cases = list(golden.cases(spec=spec, dtype=dtype))
    assert cases
    for case in cases:
        expected = golden.outputs(case)
        found = computed(case, as_tensors(golden.inputs(case)))
        assert {key for key in expected if not key.startswith("loss_layer")} == set(found)
        for output, tensor in found.items():
            check_output(case, output, tensor.detach().numpy(), expected[output])


@pytest.mark.parametrize("spec", ["repdistiller.at", "repdistiller.nst", "repdistiller.fsp"])
def test_one_pair_or_flow_alone_agrees_with_what_is_recorded_of_it(spec: str, golden: Any) -> None:
    wide = 2 if spec.endswith("fsp") else 1
    for case in golden.cases(spec=spec, dtype="float64"):
        inputs, expected = as_tensors(golden.inputs(case)), golden.outputs(case)
        for layer in range(len(numbered(inputs, "student")) - wide + 1):
            kept = {f"{side}_map{layer + place}" for side in ("student", "teacher") for place in range(wide)}
            found = computed(case, {key: inputs[key].detach() for key in kept})["loss"]
            check_output(case, f"loss_layer{layer}", found.detach().numpy(), expected[f"loss_layer{layer}"])

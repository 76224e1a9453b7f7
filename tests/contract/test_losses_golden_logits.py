"""Losses on logits against numbers of their authors' own code, in float64 and float32."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from golden_vectors import TEMPERATURES, Outputs, as_tensors, check_output, grad
from torch import Tensor
from torch.nn import functional

from student_trainer.losses import DistillBatch, build_loss

Compose = Callable[[dict[str, Any], Any, Tensor], Any]
"""(case, our loss, cross-entropy) -> the authors' total."""


def alone(case: dict[str, Any], soft: Any, labelled: Tensor) -> Any:
    return soft


def without_tau2(case: dict[str, Any], soft: Any, labelled: Tensor) -> Any:
    return soft / temperature_of(case) ** 2


def reduced(case: dict[str, Any], soft: Any, labelled: Tensor) -> Any:
    """Sum over classes and mean over the batch, as ours; or one of the two over both."""
    batch, classes = (int(part[1:]) for part in case["shape_tag"].split("_"))
    return soft * {"batchmean": 1.0, "mean": 1 / classes, "sum": float(batch)}[case["hyperparams"]["reduction"]]


def alpha_on_kd(case: dict[str, Any], soft: Any, labelled: Tensor) -> Any:
    alpha = case["hyperparams"]["alpha"]
    return alpha * soft + (1 - alpha) * labelled


def alpha_on_ce(case: dict[str, Any], soft: Any, labelled: Tensor) -> Any:
    """torchdistill: without alpha, there is neither beta nor T^2."""
    hyper = case["hyperparams"]
    if not hyper["alpha"]:
        return without_tau2(case, soft, labelled)
    return hyper["alpha"] * labelled + hyper.get("beta", 1 - hyper["alpha"]) * soft


KL_LIMIT: dict[str, object] = {"temperature": "inf"}
SPECS: dict[str, tuple[str, dict[str, object], Compose]] = {
    "repdistiller.kd": ("kl", {}, alone),
    "mdistiller.kd": ("kl", {}, alone),
    "kd_data.kd_loss": ("kl", {}, alpha_on_kd),
    "kd_data.inf_grad": ("kl", KL_LIMIT, alone),
    "kd_data.inf_step": ("kl", KL_LIMIT, alpha_on_kd),
    "kd_data.mse_logit": ("mse", {}, alone),
    "kd_data.smooth_logit": ("smooth_l1", {}, alone),
    "icsota.kldiv": ("kl", {}, reduced),
    "icsota.dist": ("dist", {}, alone),
    "dist_kd_seg.dist": ("dist", {}, alone),
    "dist_kd_seg.dist4d": ("dist", {}, alone),
    "ckd.dist": ("dist", {}, alone),
    "torchdistill.kd": ("kl", {}, alpha_on_ce),
    "torchdistill.logit_std_kd": ("logit_std", {}, alpha_on_ce),
    "torchdistill.dist": ("dist", {}, alone),
    "rkd_cls.dark_knowledge": ("kl", {}, without_tau2),
    "mdistiller.dkd": ("dkd", {}, alone),
}
"""Golden spec -> (our loss, what the spec fixes, how the authors' total is made of it)."""
OURS = dict.fromkeys(TEMPERATURES, "temperature") | {name: name for name in ("alpha", "beta", "gamma")}
NO_EPS = 1e-30
CLAMPED = {("const_student_rows", "B4_K10", 1.0), ("const_student_rows", "B4_K10", 4.0), ("x10", "B4_K10", 1.0)}
"""Cases of torchdistill.dist with a row or column of the student that is constant to 1e-8, so that it is clamped."""


def temperature_of(case: dict[str, Any]) -> float:
    return next(float(value) for name, value in case["hyperparams"].items() if name in TEMPERATURES)


def hyper_of(case: dict[str, Any]) -> dict[str, object]:
    name, fixed, _ = SPECS[case["spec"]]
    limits = type(build_loss(name)).limits
    renamed = {OURS[theirs]: value for theirs, value in case["hyperparams"].items() if theirs in OURS}
    hyper = fixed | {ours: value for ours, value in renamed.items() if ours in limits}
    if case["spec"] == "torchdistill.dist":
        # It divides by norms that are at least eps, and adds nothing to them.
        hyper["eps"] = NO_EPS
    return hyper


def is_exception(case: dict[str, Any]) -> bool:
    if case["spec"] != "torchdistill.dist":
        return False
    return (case["scenario"], case["shape_tag"], temperature_of(case)) in CLAMPED


def batch_of(inputs: dict[str, Tensor]) -> DistillBatch:
    """Of pixels, each is a sample."""
    logits = [inputs[f"{side}_logits"] for side in ("student", "teacher")]
    student, teacher = (one if one.ndim == 2 else one.transpose(1, 3).reshape(-1, one.shape[1]) for one in logits)
    return DistillBatch(student_logits=student, teacher_logits=teacher, labels=inputs.get("labels"))


def computed(case: dict[str, Any], inputs: dict[str, Tensor]) -> Outputs:
    """What the authors recorded of a case, computed by our loss."""
    student = inputs["student_logits"].requires_grad_()
    batch = batch_of(inputs)
    name, _, compose = SPECS[case["spec"]]
    hyper = hyper_of(case)
    labelled = torch.zeros(()) if batch.labels is None else functional.cross_entropy(student, batch.labels)
    total = compose(case, build_loss(name, **hyper)(batch), labelled)
    total.backward()
    parts = {part: build_loss(name, **hyper | changed)(batch) for part, changed in PARTS.get(case["spec"], {}).items()}
    if case["spec"] == "kd_data.inf_step":
        parts["loss_ce_part"] = (1 - case["hyperparams"]["alpha"]) * labelled
    return {"loss": total, "grad_student_logits": grad(student)} | parts


PARTS: dict[str, dict[str, dict[str, object]]] = {
    "icsota.dist": {
        "inter_unscaled": {"beta": 1, "gamma": 0, "tau2": False},
        "intra_unscaled": {"beta": 0, "gamma": 1, "tau2": False},
    },
    "mdistiller.dkd": {"tckd": {"alpha": 1, "beta": 0}, "nckd": {"alpha": 0, "beta": 1}},
}
"""Recorded parts of a loss -> the hyper-parameters that leave the rest out."""


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("spec", sorted(SPECS))
def test_loss_and_gradient_agree_with_the_authors_code(spec: str, dtype: str, golden: Any) -> None:
    cases = [case for case in golden.cases(spec=spec, dtype=dtype) if not is_exception(case)]
    assert len(cases) >= 4
    for case in cases:
        expected = golden.outputs(case)
        found = computed(case, as_tensors(golden.inputs(case)))
        assert expected.keys() <= found.keys()
        for output, recorded in expected.items():
            ours = found[output].detach().numpy()
            assert np.isfinite(ours).all()
            if output not in case.get("nonfinite_outputs", ()):
                check_output(case, output, ours, recorded)


def test_the_gradients_of_large_cases_agree_beyond_the_stored_rows(golden: Any) -> None:
    large = [case for spec in SPECS for case in golden.cases(spec=spec) if "grad_full_l2" in case]
    assert len(large) >= 2
    for case in large:
        gradient = computed(case, as_tensors(golden.inputs(case)))["grad_student_logits"]
        expected = case["grad_full_l2"]
        expected = expected["grad_student_logits"] if isinstance(expected, dict) else expected
        assert float(gradient.norm()) == pytest.approx(float(expected), rel=1e-5), case["id"]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_cold_limit_matches_the_largest_logits(dtype: str, golden: Any) -> None:
    """kd_data.ze_grad, which divides by no batch size and names the first of equal logits; ours shares among them."""
    untied = 0
    for case in golden.cases(spec="kd_data.ze_grad", dtype=dtype):
        inputs = as_tensors(golden.inputs(case))
        student = inputs["student_logits"].requires_grad_()
        build_loss("kl", temperature=1e-12, scale="max")(batch_of(inputs)).backward()
        largest = [one.detach() == one.detach().amax(dim=1, keepdim=True) for one in inputs.values()]
        shares = [one / one.sum(dim=1, keepdim=True) for one in largest]
        torch.testing.assert_close(len(student) * grad(student), (shares[0] - shares[1]).to(student.dtype))
        if all(bool((one.sum(dim=1) == 1).all()) for one in largest):
            untied += 1
            check_output(
                case,
                "grad_student_logits",
                (len(student) * grad(student)).numpy(),
                golden.outputs(case)["grad_student_logits"],
            )
    assert untied >= 10

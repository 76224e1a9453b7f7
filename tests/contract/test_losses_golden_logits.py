"""Losses on logits against numbers of their authors' own code, in float64 and float32, and their identities."""

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


def fact_batch(facts: Any, *, gradient: bool = False) -> DistillBatch:
    student = torch.tensor(facts["inputs"]["student_logits"], dtype=torch.float64, requires_grad=gradient)
    return DistillBatch(
        student_logits=student, teacher_logits=torch.tensor(facts["inputs"]["teacher_logits"], dtype=torch.float64)
    )


def gradient_of(name: str, facts: Any, **hyper: object) -> tuple[float, Tensor]:
    batch = fact_batch(facts, gradient=True)
    value = build_loss(name, **hyper)(batch)
    return float(value.detach()), torch.autograd.grad(value, batch.student_logits)[0]


def centred(batch: DistillBatch) -> DistillBatch:
    """Every sample's logits shifted to mean zero."""
    student, teacher = batch.student_logits, batch.teacher_logits
    assert teacher is not None
    return DistillBatch(
        student_logits=student - student.mean(dim=1, keepdim=True),
        teacher_logits=teacher - teacher.mean(dim=1, keepdim=True),
    )


def test_kl_approaches_its_limit_for_large_temperatures(facts: Any) -> None:
    fact = facts["F1_tau_to_infinity_gradient"]
    limit = torch.tensor(fact["limit_gradient"], dtype=torch.float64)
    for entry in fact["table"]:
        value, gradient = gradient_of("kl", facts, temperature=entry["tau"])
        assert value == pytest.approx(entry["loss"], rel=1e-9)
        assert float((gradient - limit).abs().max()) == pytest.approx(entry["max_abs_diff_to_limit"], rel=1e-7)
    value, gradient = gradient_of("kl", facts, temperature="inf")
    assert value == pytest.approx(facts["F2_tau_to_infinity_loss"]["limit"], rel=1e-12)
    torch.testing.assert_close(gradient, limit, rtol=1e-12, atol=1e-14)


def test_lm_is_the_limit_of_kl_for_centred_logits_and_only_for_them(facts: Any) -> None:
    fact = facts["F2_tau_to_infinity_loss"]
    batch = fact_batch(facts)
    assert float(build_loss("lm")(batch)) == pytest.approx(fact["LM_half_over_K"], rel=1e-12)
    assert float(build_loss("lm")(centred(batch))) == pytest.approx(fact["LM_of_centred_logits"], rel=1e-12)
    assert float(build_loss("lm")(centred(batch))) == pytest.approx(fact["limit"], rel=1e-12)
    for tau, value in fact["kd_loss_tau"].items():
        assert float(build_loss("kl", temperature=float(tau))(batch)) == pytest.approx(value, rel=1e-8)


def test_the_gradient_of_lm_on_centred_logits_is_the_limit_of_kls(facts: Any) -> None:
    batch = fact_batch(facts, gradient=True)
    (gradient,) = torch.autograd.grad(build_loss("lm")(centred(batch)), batch.student_logits)
    limit = torch.tensor(facts["F1_tau_to_infinity_gradient"]["limit_gradient"], dtype=torch.float64)
    torch.testing.assert_close(gradient, limit, rtol=1e-12, atol=1e-14)


def test_mse_by_mean_and_by_sum_differ_by_the_number_of_classes(facts: Any) -> None:
    fact = facts["F2_tau_to_infinity_loss"]
    assert float(build_loss("mse")(fact_batch(facts))) == pytest.approx(fact["code_mse_logit"], rel=1e-12)
    assert float(build_loss("mse", reduction="sum")(fact_batch(facts))) == pytest.approx(
        fact["paper_mse_sum_over_classes"], rel=1e-12
    )


def test_the_gradient_of_mse_is_twice_the_limits_and_the_mean_difference(facts: Any) -> None:
    batch = fact_batch(facts)
    assert batch.teacher_logits is not None
    difference = batch.student_logits - batch.teacher_logits
    limit = torch.tensor(facts["F1_tau_to_infinity_gradient"]["limit_gradient"], dtype=torch.float64)
    expected = 2 * limit + 2 * difference.mean(dim=1, keepdim=True) / difference.numel()
    torch.testing.assert_close(gradient_of("mse", facts)[1], expected, rtol=1e-12, atol=1e-14)


def test_the_gradient_of_kl_is_the_difference_of_probabilities_and_sums_to_zero(facts: Any) -> None:
    batch = fact_batch(facts)
    for entry in facts["F3_gradient_formula_and_zero_sum"]["table"]:
        tau = entry["tau"]
        _, gradient = gradient_of("kl", facts, temperature=tau)
        logits = (batch.student_logits, batch.teacher_logits)
        student, teacher = ((one / tau).softmax(dim=1) for one in logits if one is not None)
        torch.testing.assert_close(gradient, tau * (student - teacher) / len(student), rtol=1e-10, atol=1e-14)
        assert float(gradient.sum(dim=1).abs().max()) <= 1e-15 * max(tau, 1)


def test_kl_approaches_its_limit_for_small_temperatures(facts: Any) -> None:
    fact = facts["F4_tau_to_zero_gradient"]
    limit = torch.tensor(fact["ze_grad"], dtype=torch.float64) / 4
    for entry in fact["table"]:
        scaled = gradient_of("kl", facts, temperature=entry["tau"], scale="max")[1]
        assert float((scaled - limit).abs().max()) == pytest.approx(entry["max_abs_diff"], rel=1e-6, abs=1e-16)
        vanishing = gradient_of("kl", facts, temperature=entry["tau"])[1]
        torch.testing.assert_close(vanishing, entry["tau"] * scaled, rtol=1e-12, atol=1e-18)


def test_the_max_scale_is_the_papers_and_tau2_the_codes(facts: Any) -> None:
    for entry in facts["F5_tau_scaling"]["table"]:
        values = {
            scale: float(build_loss("kl", temperature=entry["tau"], scale=scale)(fact_batch(facts)))
            for scale in ("tau2", "max")
        }
        assert values == {
            "tau2": pytest.approx(entry["code_tau2"], rel=1e-9),
            "max": pytest.approx(entry["max_tau_tau2"], rel=1e-9),
        }


def test_dkd_takes_kl_apart(facts: Any) -> None:
    whole = fact_batch(facts)
    for entry in facts["F6_dkd_decomposition"]["table"]:
        batch = whole.select(torch.tensor([entry["sample"]]))
        labelled = DistillBatch(
            student_logits=batch.student_logits,
            teacher_logits=batch.teacher_logits,
            labels=torch.tensor([entry["label"]]),
        )
        label, rest = (
            float(build_loss("dkd", temperature=entry["T"], alpha=alpha, beta=1 - alpha)(labelled)) for alpha in (1, 0)
        )
        assert label == pytest.approx(entry["tckd"], rel=1e-9, abs=1e-15)
        assert rest == pytest.approx(entry["nckd"], rel=1e-9)
        together = float(build_loss("kl", temperature=entry["T"])(labelled))
        assert together == pytest.approx(entry["kd"], rel=1e-9)
        assert together == pytest.approx(label + (1 - entry["p_t_target"]) * rest, rel=1e-9)


def test_dist_of_identical_inputs_is_what_its_epsilon_makes_it(facts: Any) -> None:
    for entry in facts["F7_dist_identical_inputs"]["table"]:
        logits = torch.tensor(np.random.default_rng(7 * entry["K"]).standard_normal((64, entry["K"])))
        batch, tau = DistillBatch(student_logits=logits, teacher_logits=logits), entry["tau"]
        parts = {"loss": {}, "inter": {"gamma": 0, "tau2": False}, "intra": {"beta": 0, "tau2": False}}
        for part, hyper in parts.items():
            value = float(build_loss("dist", temperature=tau, **hyper)(batch))
            assert value == pytest.approx(entry[part], rel=1e-6, abs=1e-14 * tau**2), part


def test_dist_ignores_a_constant_added_to_a_row_but_not_a_scale_of_logits(facts: Any) -> None:
    fact, batch = facts["F8_dist_invariance"], fact_batch(facts)
    shift = torch.tensor([[3.0], [-1.0], [0.5], [100.0]], dtype=torch.float64)
    shifted = DistillBatch(student_logits=batch.student_logits + shift, teacher_logits=batch.teacher_logits)
    assert float(build_loss("dist")(batch)) == pytest.approx(fact["loss"], rel=1e-9)
    assert float(build_loss("dist")(shifted)) == pytest.approx(fact["loss"], rel=1e-9)
    doubled = DistillBatch(student_logits=2 * batch.student_logits, teacher_logits=batch.teacher_logits)
    assert float(build_loss("dist")(doubled)) == pytest.approx(fact["scale_logits_x2_loss"], rel=1e-9)


def test_dist_between_rows_ignores_scale_and_shift_of_their_probabilities(facts: Any) -> None:
    batch = fact_batch(facts)
    share = torch.tensor([[0.2], [0.5], [0.9], [1.0]], dtype=torch.float64)
    flatter = (share * batch.student_logits.softmax(dim=1) + (1 - share) / 10).log()
    loss = build_loss("dist", gamma=0, eps=1e-20)
    torch.testing.assert_close(
        loss(DistillBatch(student_logits=flatter, teacher_logits=batch.teacher_logits)), loss(batch), rtol=1e-9, atol=0
    )

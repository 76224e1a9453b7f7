"""The identities of facts.json that concern losses on logits: limits of KL, DKD's parts, what DIST ignores."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from student_trainer.losses import DistillBatch, build_loss


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

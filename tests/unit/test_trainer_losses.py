"""What every loss promises: names, ranges, needs, half precision, no NaN, and CKD's offset."""

import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shared.errors import InputError, UnknownNameError
from student_trainer.losses import LOSSES, DistillBatch, TrainingFacts, build_loss
from student_trainer.losses.base import DistillLoss

WIDTHS = (7, 9)
FACTS = TrainingFacts(
    seed=3,
    classes=10,
    rows=torch.arange(64),
    labels=torch.arange(64) % 10,
    student_width=WIDTHS[0],
    teacher_width=WIDTHS[1],
)
VARIANTS: list[tuple[str, dict[str, object]]] = [
    # Its student is a function of images: see test_loss_jacobian.py.
    *((name, {}) for name in sorted(LOSSES) if name != "jacobian"),
    ("ckd", {"pairs": "sampled"}),
    ("ckd", {"w_kd": 1.0}),
    ("crd", {"on": "logits", "negatives": 5}),
    ("cutmix", {"target": "kl"}),
    ("mixup", {"target": "kl"}),
    ("dist", {"relation": "kl"}),
    ("kl", {"temperature": "inf"}),
    ("mse", {"target": "midpoint"}),
    ("mse", {"target": "labels"}),
    ("mse", {"target": "both", "reduction": "sum"}),
    ("rkd", {"on": "logits", "normalise": True}),
    ("rkd", {"angle": 0.0}),
]
"""Every loss with its defaults, and what else computes something else."""
every_loss = pytest.mark.parametrize(("name", "hyper"), VARIANTS)
ASKING = [
    variant
    for variant in VARIANTS
    if {"teacher_logits", "teacher_features"} & set(build_loss(variant[0], **variant[1]).needs)
]
every_asking_loss = pytest.mark.parametrize(("name", "hyper"), ASKING)


def ready(name: str, hyper: dict[str, object]) -> DistillLoss:
    loss = build_loss(name, **hyper)
    loss.start(FACTS)
    return loss


def batch_of(
    count: int, classes: int = 10, *, scale: float = 1.0, dtype: torch.dtype = torch.float32, seed: int = 0
) -> DistillBatch:
    """A batch with everything that any loss needs."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(count, classes, generator=generator) for _ in range(2))
    labels = torch.randint(classes, (count,), generator=generator)
    student_features, teacher_features = (scale * torch.randn(count, width, generator=generator) for width in WIDTHS)
    return DistillBatch(
        student_logits=student.to(dtype).requires_grad_(),
        teacher_logits=teacher.to(dtype),
        labels=labels,
        rows=torch.arange(count),
        student_features=student_features.to(dtype).requires_grad_(),
        teacher_features=teacher_features.to(dtype),
        mix=(torch.arange(count).roll(1), torch.full((count,), 0.3)),
    )


FLOATS = ("student_logits", "teacher_logits", "student_features", "teacher_features")
"""Fields of `batch_of` that hold numbers of student or teacher."""


def gradient_of(loss: nn.Module, batch: DistillBatch) -> tuple[Tensor, Tensor]:
    """(value, gradient with respect to what the loss takes of the student)."""
    value = loss(batch)
    return value.detach(), student_gradient(value, batch)


def student_gradient(value: Tensor, batch: DistillBatch) -> Tensor:
    inputs = [tensor for tensor in (batch.student_logits, batch.student_features) if tensor is not None]
    gradients = [item for item in torch.autograd.grad(value, inputs, allow_unused=True) if item is not None]
    assert len(gradients) == 1
    return gradients[0]


def test_the_losses_that_the_recipes_name_exist() -> None:
    assert {"ce", "kl", "mse", "lm", "dist", "ckd", "rkd", "crd", "mixup"} <= set(LOSSES)


def test_default_weights_are_the_authors() -> None:
    weights = {name: (LOSSES[name].default_ce_weight, LOSSES[name].default_kd_weight) for name in set(LOSSES) - {"ce"}}
    assert weights == {
        "kl": (0.1, 0.9),
        "mse": (0.0, 1.0),
        "lm": (0.0, 1.0),
        "dist": (1.0, 2.0),
        "ckd": (0.0, 1.0),
        "rkd": (1.0, 1.0),
        "crd": (1.0, 0.8),
        "mixup": (1.0, 1.0),
        "cutmix": (1.0, 1.0),
        "jacobian": (1.0, 1.0),
        "smooth_l1": (0.0, 1.0),
        "dkd": (1.0, 1.0),
        "logit_std": (0.1, 9.0),
    }


def test_an_unknown_loss_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=f"unknown loss 'kd'; known: {', '.join(sorted(LOSSES))}"):
        build_loss("kd")


@pytest.mark.parametrize(
    ("name", "hyper", "message"),
    [
        (
            "kl",
            {"tau": 4},
            r"kl has no hyper-parameter 'tau'; it has temperature \(float > 0, or inf; default 4.0\), scale",
        ),
        ("kl", {"temperature": 0}, r"temperature=0 is not valid"),
        ("kl", {"temperature": "nan"}, r"temperature='nan' is not valid"),
        ("kl", {"temperature": float("-inf")}, r"temperature=-inf is not valid"),
        ("dist", {"temperature": float("inf")}, r"temperature=inf is not valid"),
        ("kl", {"temperature": "warm"}, r"temperature='warm' is not valid"),
        ("kl", {"scale": "tau"}, r"tau2 or max"),
        ("mse", {"reduction": "none"}, r"mean or sum"),
        ("dist", {"tau2": "maybe"}, r"true or false"),
        ("dist", {"eps": 0.0}, r"eps \(float > 0"),
        ("ckd", {"pos": 0}, r"pos \(int >= 1"),
        ("ckd", {"pos": 1.5}, r"pos \(int >= 1"),
        ("ckd", {"offset": True}, r"none or calibrate"),
        ("ckd", {"w_cls": 0, "w_rel": 0}, r"at least one must be above 0"),
        ("ckd", {"w_cls": 0, "w_rel": 0, "w_kd": 1, "offset": "calibrate"}, r"needs a target"),
        ("ckd", {"w_kd": 1, "pos": 2}, r"pairs=sampled"),
        ("mse", {"target": "middle"}, r"teacher or midpoint or labels or both"),
        ("lm", {"temperature": 4}, r"lm has no hyper-parameter 'temperature'; it has none"),
        ("rkd", {"distance": -1}, r"distance \(float >= 0; default 25.0\)"),
        ("rkd", {"distance": 0, "angle": 0}, r"at least one must be above 0"),
        ("rkd", {"on": "maps"}, r"features or logits"),
        ("crd", {"negatives": 0}, r"negatives \(int >= 1; default 16384\)"),
        ("crd", {"momentum": 1.5}, r"momentum \(float >= 0, <= 1"),
        ("crd", {"width": 0}, r"width \(int >= 1"),
        ("mixup", {"alpha": 0}, r"alpha \(float > 0; default 1.0\)"),
        ("mixup", {"temperature": 2}, r"temperature has no effect with target=ce; leave it out, or use target=kl"),
        ("ce", {"label_smoothing": 1.5}, r"label_smoothing \(float >= 0, <= 1"),
        ("ce", {"temperature": 4}, r"ce has no hyper-parameter 'temperature'"),
    ],
)
def test_a_wrong_hyper_parameter_names_the_valid_ones(name: str, hyper: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_loss(name, **hyper)


def test_the_texts_of_options_are_read_as_values() -> None:
    given = batch_of(4)
    as_text, as_value = (
        build_loss("dist", tau2="false", temperature="4"),
        build_loss("dist", tau2=False, temperature=4.0),
    )
    assert torch.equal(as_text(given), as_value(given))


@every_loss
def test_a_missing_input_is_named(name: str, hyper: dict[str, object]) -> None:
    loss = ready(name, hyper)
    assert loss.needs
    for need in loss.needs:
        with pytest.raises(InputError, match=f"loss {name} needs {need}, which this batch does not have"):
            loss(replace(batch_of(4), **{need: None}))


def test_a_missing_mix_says_how_to_mix() -> None:
    with pytest.raises(InputError, match=r"call mix = loss.mix\(count, size=\(H, W\)\), show the student mix.images"):
        build_loss("mixup")(replace(batch_of(4), mix=None))


@every_asking_loss
def test_student_and_teacher_that_do_not_fit_are_refused(name: str, hyper: dict[str, object]) -> None:
    batch = batch_of(4)
    wide = replace(batch, teacher_logits=torch.zeros(4, 11), teacher_features=torch.zeros(3, WIDTHS[1]))
    with pytest.raises(InputError, match=r"differ in shape|not \[B, D\] of the same samples"):
        ready(name, hyper)(wide)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_loss
def test_half_precision_inputs_are_computed_in_float32(name: str, hyper: dict[str, object], dtype: torch.dtype) -> None:
    half = batch_of(6, dtype=dtype)
    full = replace(half, **{field: getattr(half, field).detach().float() for field in FLOATS})
    value, gradient = gradient_of(ready(name, hyper), half)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    assert torch.equal(value, ready(name, hyper)(full))


@every_loss
def test_a_users_autocast_does_not_reach_the_loss(name: str, hyper: dict[str, object]) -> None:
    batch = batch_of(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = ready(name, hyper)(batch)
    expected, expected_gradient = gradient_of(ready(name, hyper), batch_of(6))
    assert torch.equal(value, expected)
    assert torch.equal(student_gradient(value, batch), expected_gradient)


@every_asking_loss
def test_half_precision_answers_suit_a_float32_student(name: str, hyper: dict[str, object]) -> None:
    batch = batch_of(6)
    narrow = {field: getattr(batch, field).half() for field in FLOATS if field.startswith("teacher_")}
    assert ready(name, hyper)(replace(batch, **narrow)).dtype == torch.float32


@every_loss
@pytest.mark.parametrize("kind", ["huge", "constant", "same", "single"])
def test_extreme_batches_give_finite_values_or_a_refusal(name: str, hyper: dict[str, object], kind: str) -> None:
    batch = batch_of(1 if kind == "single" else 4, scale=1e4 if kind == "huge" else 1.0)
    student, features = batch.student_logits.detach().clone(), batch.student_features.detach().clone()
    if kind == "constant":
        student[:] = features[:] = 2.0
    if kind == "same":
        student, features = batch.teacher_logits.clone(), batch.teacher_features[:, : WIDTHS[0]].clone()
    given = replace(batch, student_logits=student.requires_grad_(), student_features=features.requires_grad_())
    loss = ready(name, hyper)
    if kind == "single" and name in ("ckd", "rkd"):
        with pytest.raises(InputError, match=f"at least {loss.min_rows} samples; this one has 1"):
            loss(given)
        return
    value, gradient = gradient_of(loss, given)
    assert bool(value.isfinite())
    assert bool(gradient.isfinite().all())


@every_loss
def test_the_gradient_is_the_derivative_of_the_value(name: str, hyper: dict[str, object]) -> None:
    batch = batch_of(4, dtype=torch.float64)
    loss = ready(name, hyper).double()
    loss(batch)  # what the first batch sets is a constant afterwards

    def value(logits: Tensor, features: Tensor) -> Tensor:
        result: Tensor = deepcopy(loss)(replace(batch, student_logits=logits, student_features=features))
        return result

    inputs = (batch.student_logits, batch.student_features)
    assert bool(student_gradient(value(*inputs), batch).any())
    assert torch.autograd.gradcheck(value, inputs, atol=1e-6)


@every_asking_loss
def test_no_gradient_reaches_the_teacher(name: str, hyper: dict[str, object]) -> None:
    batch = batch_of(4)
    answers = {field: getattr(batch, field).requires_grad_() for field in ("teacher_logits", "teacher_features")}
    ready(name, hyper)(replace(batch, **answers)).backward()
    assert [tensor.grad for tensor in answers.values()] == [None, None]


@every_loss
def test_a_loss_leaves_the_global_random_numbers_alone(name: str, hyper: dict[str, object]) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    loss = ready(name, hyper)
    loss.mix(4, size=(8, 8))
    loss(batch_of(4))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


def three_steps(loss: DistillLoss) -> list[float]:
    """Values of three steps in which all that is trained in the loss moves."""
    values = []
    for seed in range(3):
        mix = loss.mix(6, size=(8, 8))
        batch = batch_of(6, seed=seed)
        value = loss(batch if mix is None else replace(batch, mix=mix.pair))
        loss.zero_grad()
        value.backward()
        with torch.no_grad():
            for parameter in loss.parameters():
                parameter.sub_(parameter.grad, alpha=0.1)
        values.append(value.item())
    return values


@every_loss
def test_a_restored_state_goes_on_as_if_never_stopped(name: str, hyper: dict[str, object]) -> None:
    first, second = ready(name, hyper), ready(name, hyper)
    assert three_steps(first) == three_steps(second)
    kept = BytesIO()
    torch.save(first.state_dict(), kept)
    kept.seek(0)
    resumed = ready(name, hyper)
    resumed.load_state_dict(torch.load(kept, weights_only=True))
    assert three_steps(resumed) == three_steps(first)


def test_sampled_comparisons_repeat_for_a_seed_and_go_on_after_a_restored_state() -> None:
    batch = batch_of(8)
    first, second = build_loss("ckd", pairs="sampled", pos=2), build_loss("ckd", pairs="sampled", pos=2)
    for loss in (first, second):
        loss.start(FACTS)
    values = [first(batch).item() for _ in range(4)]
    assert [second(batch).item() for _ in range(4)] == values
    assert len(set(values)) == 4
    resumed = build_loss("ckd", pairs="sampled", pos=2)
    resumed.start(FACTS)
    resumed.load_state_dict(first.state_dict())
    assert resumed(batch).item() == first(batch).item()


def test_ckd_without_a_side_does_not_ask_for_it() -> None:
    batch = batch_of(4)
    labels_only = DistillBatch(student_logits=batch.student_logits, labels=batch.labels)
    teacher_only = DistillBatch(student_logits=batch.student_logits, teacher_logits=batch.teacher_logits)
    both = build_loss("ckd")(batch)
    torch.testing.assert_close(build_loss("ckd", w_rel=0)(labels_only) + build_loss("ckd", w_cls=0)(teacher_only), both)


def test_calibration_moves_the_bias_to_the_mean_of_the_weighted_target() -> None:
    batch = batch_of(20, 5)
    head = nn.Linear(3, 5)
    before = head.bias.detach().clone()
    loss = build_loss("ckd", offset="calibrate", w_cls=1.0, w_rel=3.0)
    assert loss.finishes
    loss.finish(head, batch)
    onehot = torch.eye(5)[batch.labels]
    expected = ((onehot + 3 * batch.teacher_logits) / 4 - batch.student_logits).mean(dim=0)
    torch.testing.assert_close(head.bias.detach() - before, expected.detach())
    assert not build_loss("ckd").finishes


def test_calibration_of_a_head_without_bias_says_so() -> None:
    with pytest.raises(InputError, match="last layer with a bias"):
        build_loss("ckd", offset="calibrate").finish(nn.Linear(3, 10, bias=False), batch_of(4))


def test_all_pairs_leave_one_constant_vector_free() -> None:
    batch = batch_of(6)
    shifted = DistillBatch(
        student_logits=batch.student_logits + torch.randn(10), teacher_logits=batch.teacher_logits, labels=batch.labels
    )
    torch.testing.assert_close(build_loss("ckd")(shifted), build_loss("ckd")(batch))


def test_a_batch_is_cut_in_every_field() -> None:
    batch = DistillBatch(student_logits=torch.eye(3), labels=torch.arange(3), student_maps=(torch.zeros(3, 2, 2, 2),))
    cut = batch.select(torch.tensor([2, 0]))
    assert cut.labels is not None
    assert cut.labels.tolist() == [2, 0]
    assert cut.student_maps[0].shape[0] == 2
    assert cut.teacher_logits is None


def test_losses_import_without_lightning_or_the_web_framework() -> None:
    code = (
        "import sys; from student_trainer.losses import LOSSES;"
        "bad = {'lightning_fabric', 'fastapi', 'zarr'} & set(sys.modules);"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

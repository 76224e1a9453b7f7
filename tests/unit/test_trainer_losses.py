"""What every loss promises: names, ranges, needs, half precision, no NaN, and CKD's offset."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from shared.errors import InputError, UnknownNameError
from student_trainer.losses import LOSSES, DistillBatch, TrainingFacts, build_loss

DISTILLING = sorted(set(LOSSES) - {"ce"})
FACTS = TrainingFacts(seed=3, classes=10, rows=torch.arange(8), labels=torch.arange(8))


def batch_of(
    count: int, classes: int = 10, *, scale: float = 1.0, dtype: torch.dtype = torch.float32, seed: int = 0
) -> DistillBatch:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(count, classes, generator=generator) for _ in range(2))
    labels = torch.randint(classes, (count,), generator=generator)
    return DistillBatch(
        student_logits=student.to(dtype).requires_grad_(), teacher_logits=teacher.to(dtype), labels=labels
    )


def gradient_of(loss: nn.Module, batch: DistillBatch) -> tuple[Tensor, Tensor]:
    value = loss(batch)
    (gradient,) = torch.autograd.grad(value, batch.student_logits)
    return value.detach(), gradient


def test_the_losses_of_the_first_release_exist() -> None:
    assert {"ce", "kl", "mse", "dist", "ckd"} <= set(LOSSES)


def test_default_weights_are_the_authors() -> None:
    weights = {
        name: (LOSSES[name].default_ce_weight, LOSSES[name].default_kd_weight) for name in ("kl", "mse", "dist", "ckd")
    }
    assert weights == {"kl": (0.1, 0.9), "mse": (0.0, 1.0), "dist": (1.0, 2.0), "ckd": (0.0, 1.0)}


def test_an_unknown_loss_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown loss 'kd'; known: ce, ckd, dist, kl, mse"):
        build_loss("kd")


@pytest.mark.parametrize(
    ("name", "hyper", "message"),
    [
        ("kl", {"tau": 4}, r"kl has no hyper-parameter 'tau'; it has temperature \(float > 0; default 4.0\), scale"),
        ("kl", {"temperature": 0}, r"temperature=0 is not valid"),
        ("kl", {"temperature": "nan"}, r"temperature='nan' is not valid"),
        ("kl", {"temperature": float("inf")}, r"temperature=inf is not valid"),
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


@pytest.mark.parametrize("name", DISTILLING)
def test_a_missing_input_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"loss {name} needs teacher_logits"):
        build_loss(name)(DistillBatch(student_logits=torch.zeros(3, 5), labels=torch.zeros(3, dtype=torch.int64)))


@pytest.mark.parametrize("name", DISTILLING)
def test_student_and_teacher_of_different_widths_are_refused(name: str) -> None:
    batch = DistillBatch(
        student_logits=torch.zeros(3, 5), teacher_logits=torch.zeros(3, 6), labels=torch.zeros(3, dtype=torch.int64)
    )
    with pytest.raises(InputError, match="differ in shape"):
        build_loss(name)(batch)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_half_precision_logits_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    half = batch_of(6, dtype=dtype)
    full = DistillBatch(
        student_logits=half.student_logits.detach().float(),
        teacher_logits=half.teacher_logits.float(),
        labels=half.labels,
    )
    value, gradient = gradient_of(build_loss(name), half)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    assert torch.equal(value, build_loss(name)(full))


@pytest.mark.parametrize("name", DISTILLING)
def test_half_precision_answers_suit_a_float32_student(name: str) -> None:
    batch = batch_of(6)
    narrow = DistillBatch(
        student_logits=batch.student_logits, teacher_logits=batch.teacher_logits.half(), labels=batch.labels
    )
    assert build_loss(name)(narrow).dtype == torch.float32


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("kind", ["huge", "constant", "same", "single"])
def test_extreme_batches_give_finite_values_or_a_refusal(name: str, kind: str) -> None:
    batch = batch_of(1 if kind == "single" else 4, scale=1e4 if kind == "huge" else 1.0)
    student = batch.student_logits.detach().clone()
    if kind == "constant":
        student[:] = 2.0
    if kind == "same":
        student = batch.teacher_logits.clone()
    given = DistillBatch(
        student_logits=student.requires_grad_(), teacher_logits=batch.teacher_logits, labels=batch.labels
    )
    if (name, kind) == ("ckd", "single"):
        with pytest.raises(InputError, match="at least 2 samples; this one has 1"):
            build_loss(name)(given)
        return
    value, gradient = gradient_of(build_loss(name), given)
    assert bool(value.isfinite())
    assert bool(gradient.isfinite().all())


def test_no_gradient_reaches_the_teacher() -> None:
    for name in DISTILLING:
        teacher = torch.randn(4, 5, requires_grad=True)
        batch = DistillBatch(
            student_logits=torch.randn(4, 5, requires_grad=True), teacher_logits=teacher, labels=torch.arange(4)
        )
        build_loss(name)(batch).backward()
        assert teacher.grad is None


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

"""Losses by name, what they say of wrong hyper-parameters, and CKD's sampled pairs and offset."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from shared.errors import InputError, UnknownNameError
from student_trainer.losses import LOSSES, DistillBatch, TrainingFacts, build_loss

FACTS = TrainingFacts(seed=3, classes=10, rows=torch.arange(64), labels=torch.arange(64) % 10)


def batch_of(count: int, classes: int = 10) -> DistillBatch:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(count, classes, generator=generator) for _ in range(2))
    return DistillBatch(
        student_logits=student.requires_grad_(),
        teacher_logits=teacher,
        labels=torch.randint(classes, (count,), generator=generator),
    )


def test_the_losses_that_the_recipes_name_exist() -> None:
    assert {"ce", "kl", "mse", "lm", "dist", "ckd", "rkd", "crd", "mixup"} <= set(LOSSES)


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


def test_a_missing_mix_says_how_to_mix() -> None:
    with pytest.raises(InputError, match=r"call mix = loss.mix\(count, size=\(H, W\)\), show the student mix.images"):
        build_loss("mixup")(replace(batch_of(4), mix=None))


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

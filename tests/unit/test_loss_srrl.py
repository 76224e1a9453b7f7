"""SRRL: the teacher's classifier reads the student's map, and stays as it is."""

from dataclasses import replace

import pytest
import torch
from map_batches import batch_of, started

from shared.errors import InputError
from student_trainer.losses import DistillBatch

BATCH = batch_of([(9, 4, 4)], [])


def classified(batch: DistillBatch) -> DistillBatch:
    """What the teacher would have said, had its last map been the student's after ReLU."""
    (own,) = batch.student_maps
    features = own.detach().relu().mean(dim=(2, 3))
    assert batch.teacher_constants is not None
    logits = features @ batch.teacher_constants["classifier.weight"].T + batch.teacher_constants["classifier.bias"]
    return replace(batch, teacher_features=features, teacher_logits=logits)


def test_a_student_with_the_teachers_features_has_no_loss() -> None:
    loss = started("srrl", BATCH).eval()
    with torch.no_grad():
        loss.get_parameter("Connectors.0.weight").copy_(torch.eye(9)[:, :, None, None])
        loss.get_buffer("Connectors.1.running_var").fill_(1 - 1e-5)  # and its eps
    assert float(loss(classified(BATCH)).detach()) < 1e-20
    assert float(loss(BATCH).detach()) > 1


def test_neither_answers_nor_classifier_of_the_teacher_get_a_gradient() -> None:
    assert BATCH.teacher_constants is not None
    constants = {name: value.clone().requires_grad_() for name, value in BATCH.teacher_constants.items()}
    started("srrl", BATCH)(replace(BATCH, teacher_constants=constants)).backward()
    assert [value.grad for value in constants.values()] == [None, None]
    (own,) = BATCH.student_maps
    assert own.grad is not None


def test_a_teacher_without_a_classifier_is_refused() -> None:
    loss = started("srrl", BATCH)
    with pytest.raises(InputError, match=r"srrl needs the teacher's classifier.weight; its constants are none"):
        loss(replace(BATCH, teacher_constants={}))
    with pytest.raises(InputError, match=r"classifier.weight is \[3, 9\], not \[10, 9\]"):
        loss(replace(BATCH, teacher_constants={"classifier.weight": torch.zeros(3, 9)}))


def test_features_of_another_width_than_announced_are_refused() -> None:
    with pytest.raises(InputError, match=r"features are not \[6, 9\], as start\(\) was told"):
        started("srrl", BATCH)(replace(BATCH, teacher_features=torch.zeros(6, 8)))


def test_two_maps_are_refused() -> None:
    with pytest.raises(InputError, match="srrl compares one map"):
        started("srrl", batch_of([(4, 4, 4), (9, 4, 4)], []))

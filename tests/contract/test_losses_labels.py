"""Labels of losses: distributions stand in their place, and rows without a label are refused."""

from dataclasses import replace

import pytest
import torch
from loss_cases import SMALL, Hyper, case_of, fitting, ready, variants

from shared.errors import InputError
from student_trainer.losses import build_loss

LABELLED = [(name, hyper) for name, hyper in variants() if "labels" in build_loss(name, **hyper).needs]
HARD = {"dkd"}
"""Losses that single one class out."""
every_labelled = pytest.mark.parametrize(("name", "hyper"), LABELLED)


def test_the_losses_of_labels_are_among_these() -> None:
    assert {name for name, _ in LABELLED} >= {"ce", "ckd", "dkd", "mse", "fitnets+ckd"}


@every_labelled
def test_soft_labels_stand_in_the_place_of_labels(name: str, hyper: Hyper) -> None:
    loss = ready(name, hyper)
    batch = case_of(loss, count=8, sizes=fitting(name, **hyper)).batch
    assert batch.labels is not None
    soft_BC = torch.eye(SMALL.classes)[batch.labels]
    soft = replace(batch, labels=None, soft_labels=soft_BC)
    if name in HARD:
        with pytest.raises(InputError, match=f"loss {name} needs one label per sample"):
            loss(soft)
        return
    expected = ready(name, hyper)(batch)
    torch.testing.assert_close(loss(soft), expected)
    both = ready(name, hyper)(replace(soft, labels=torch.full_like(batch.labels, -1)))
    torch.testing.assert_close(both, expected)


@every_labelled
def test_a_row_without_a_label_is_named(name: str, hyper: Hyper) -> None:
    loss = ready(name, hyper)
    batch = case_of(loss, sizes=fitting(name, **hyper)).batch
    labels = torch.tensor([0, 1, 2, -1, 4, -1])
    with pytest.raises(InputError, match=r"needs labels, and 2 of 6 samples have none \(-1\): leave those"):
        loss(replace(batch, labels=labels))

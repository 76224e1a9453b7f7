"""Cross-entropy with smoothed labels of both kinds."""

import pytest
import torch
from torch.nn import functional

from shared.errors import InputError
from student_trainer.losses import DistillBatch, build_loss

LOGITS = 3 * torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 3, 1, 1, 2])


@pytest.mark.parametrize("beta", [0.1, 0.75, 0.9, 1.0])
def test_the_wrong_classes_share_what_is_taken_from_the_label(beta: float) -> None:
    """Kim et al., Eq. 1."""
    targets = torch.full((5, 4), beta / 3, dtype=torch.float64)
    targets[torch.arange(5), LABELS] = 1 - beta
    loss = build_loss("ce", label_smoothing=beta, smoothing="others")
    torch.testing.assert_close(
        loss(DistillBatch(student_logits=LOGITS, labels=LABELS)), functional.cross_entropy(LOGITS, targets)
    )


def test_the_label_itself_has_a_part_of_what_is_spread_uniformly() -> None:
    targets = torch.full((5, 4), 0.3 / 4, dtype=torch.float64)
    targets[torch.arange(5), LABELS] += 0.7
    value = build_loss("ce", label_smoothing=0.3)(DistillBatch(student_logits=LOGITS, labels=LABELS))
    torch.testing.assert_close(value, functional.cross_entropy(LOGITS, targets))


@pytest.mark.parametrize("smoothing", ["uniform", "others"])
def test_labels_of_mixed_images_are_smoothed_as_the_mix_of_smoothed_labels(smoothing: str) -> None:
    loss = build_loss("ce", label_smoothing=0.2, smoothing=smoothing)
    other = LABELS.roll(1)
    onehot = torch.eye(4, dtype=torch.float64)
    mixed = DistillBatch(student_logits=LOGITS, labels=LABELS, soft_labels=0.7 * onehot[LABELS] + 0.3 * onehot[other])
    own, partners = (loss(DistillBatch(student_logits=LOGITS, labels=labels)) for labels in (LABELS, other))
    torch.testing.assert_close(loss(mixed), 0.7 * own + 0.3 * partners)


def test_a_kind_of_smoothing_without_smoothing_is_refused() -> None:
    with pytest.raises(InputError, match="no effect with label_smoothing=0"):
        build_loss("ce", smoothing="others")

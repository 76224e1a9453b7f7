"""Decoupled distillation: the label's class against the rest, and the rest among themselves.

Shape key: B batch, C classes, R the C - 1 classes that are not the label.
"""

from collections.abc import Mapping
from typing import ClassVar, cast

import torch
from torch import Tensor

from shared.errors import InputError
from student_trainer.losses.base import DistillLoss, logits_of
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.hyper import Limit
from student_trainer.losses.kl import divergence


class DKD(DistillLoss):
    """Zhao et al. 2022: ``T^2 * (alpha * TCKD + beta * NCKD)``, mean over the batch.

    TCKD is the divergence of two outcomes, label and not label; NCKD that of the other classes' distribution, the label
    left out. ``T^2 KL = T^2 (TCKD + (1 - p_t[label]) NCKD)``. T^2 is in the authors' code and not in their equation, as
    is the warm-up, which multiplies the loss by ``min((epoch + 1)/warmup_epochs, 1)`` (0: none). Their code hides the
    label by -1000 on its softened logit; here it is left out, so |logits| of 1e4 are fine. Default weights 1 and 1 and
    beta 8 are those of their CIFAR-100 configurations (beta differs by pair there).
    """

    name = "dkd"
    needs = ("teacher_logits", "labels")
    default_ce_weight = 1.0
    default_kd_weight = 1.0
    limits: ClassVar[Mapping[str, Limit]] = {
        "alpha": Limit(kind=float, low=0.0),
        "beta": Limit(kind=float, low=0.0),
        "temperature": Limit(kind=float, low=1e-6, high=100.0),
        "warmup_epochs": Limit(kind=int, low=0),
    }

    def __init__(
        self, *, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, warmup_epochs: int = 20
    ) -> None:
        super().__init__()
        given = {"alpha": alpha, "beta": beta, "temperature": temperature, "warmup_epochs": warmup_epochs}
        hyper = self.read_hyper(given)
        self.alpha: float = hyper["alpha"]
        self.beta: float = hyper["beta"]
        self.temperature: float = hyper["temperature"]
        self.warmup_epochs: int = hyper["warmup_epochs"]
        if self.alpha == 0 and self.beta == 0:
            raise InputError("dkd: alpha and beta are 0; at least one must be above 0")

    def begin_epoch(self, epoch: int) -> None:
        """Warm up."""
        self.kd_factor = min((epoch + 1) / max(self.warmup_epochs, 1), 1.0)

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        if batch.soft_labels is not None:
            raise InputError("loss dkd needs one label per sample: it cannot be trained on views that mix two images")
        logits, labels_B = logits_of(batch), cast(Tensor, batch.labels)
        if logits[0].shape[1] < 2:
            raise InputError("loss dkd needs at least 2 classes")
        (student_B2, student_BR), (teacher_B2, teacher_BR) = (
            decoupled(logits_BC / self.temperature, labels_B=labels_B) for logits_BC in logits
        )
        label = divergence(student_B2, teacher_B2, dim=1).mean()
        others = divergence(student_BR, teacher_BR, dim=1).mean()
        return self.temperature**2 * (self.alpha * label + self.beta * others)


def decoupled(logits_BC: Tensor, *, labels_B: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of the probabilities of (label, not label) [B, 2], and of the other classes among themselves."""
    last = logits_BC.shape[1] - 1
    # The last class takes the label's place, and without the last column all others are there, in whatever order.
    label_B1 = labels_B[:, None]
    at_end_B1 = label_B1 == last
    moved_B1 = logits_BC.gather(1, (~at_end_B1) * last)
    others_BR = logits_BC[:, :last].scatter(1, label_B1.masked_fill(at_end_B1, 0), moved_B1)
    log_others_BR = others_BR.log_softmax(dim=1)
    best_B1 = others_BR.argmax(dim=1, keepdim=True)
    total_B1 = others_BR.gather(1, best_B1) - log_others_BR.gather(1, best_B1)
    return torch.cat([logits_BC.gather(1, label_B1), total_B1], dim=1).log_softmax(dim=1), log_others_BR

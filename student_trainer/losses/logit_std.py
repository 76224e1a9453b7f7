"""Logit standardisation: Kullback-Leibler divergence where every row has its own temperature.

Shape key: B batch, C classes.
"""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from shared.errors import InputError
from student_trainer.losses.base import DistillLoss, logits_of
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.hyper import Limit
from student_trainer.losses.kl import divergence, softened

EPS = 1e-7
"""Added to the standard deviation, as the authors do: a constant row becomes zeros."""


class LogitStd(DistillLoss):
    """Sun et al. 2024: ``T^2 * KL(softmax(Z(t)/T) || softmax(Z(s)/T))``, sum over classes, mean over the batch.

    ``Z(z) = (z - mean)/(std + 1e-7)`` of each row, std by C - 1: what is compared is the relative distances of a
    sample's logits. Base temperature 2 (3 for some pairs) and the weights, ``--kd-weight 9`` beside mdistiller's 0.1,
    are their code's. A constant row of the student has a gradient near 1e7 times that of ``kl``, as theirs has.
    """

    name = "logit_std"
    default_ce_weight = 0.1
    default_kd_weight = 9.0
    limits: ClassVar[Mapping[str, Limit]] = {"temperature": Limit(kind=float, low=1e-6, high=100.0)}

    def __init__(self, *, temperature: float = 2.0) -> None:
        super().__init__()
        self.temperature: float = self.read_hyper({"temperature": temperature})["temperature"]

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        log_student_BC, log_teacher_BC = (
            softened(standardised(logits_BC), temperature=self.temperature) for logits_BC in logits_of(batch)
        )
        return self.temperature**2 * divergence(log_student_BC, log_teacher_BC, dim=1).mean()


def standardised(logits_BC: Tensor) -> Tensor:
    """Each row at mean 0 and standard deviation 1; a constant row at 0."""
    if logits_BC.shape[1] < 2:
        raise InputError("loss logit_std needs at least 2 classes: one logit has no standard deviation")
    for _ in range(2):  # the first mean of a constant row may be rounded, which EPS would make large
        logits_BC = logits_BC - logits_BC.mean(dim=1, keepdim=True)
    norm_B1: Tensor = torch.linalg.vector_norm(logits_BC, dim=1, keepdim=True)
    return logits_BC / (norm_B1 / math.sqrt(logits_BC.shape[1] - 1) + EPS)

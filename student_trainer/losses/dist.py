"""DIST: correlation instead of equality."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from student_trainer.losses.base import DistillLoss, logits_of
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.hyper import Limit


class DIST(DistillLoss):
    """Huang et al. 2022: ``beta * inter + gamma * intra``, each 1 - the mean Pearson correlation of softened outputs.

    inter compares rows (one sample over the classes), intra columns (one class over the batch); softmax(z/T) comes
    before Pearson. ``tau2`` multiplies by T^2, as the authors' CIFAR code does. ``eps`` is added to the product of
    norms, as theirs is: identical inputs therefore give a loss above 0 where variances are tiny (many classes, large
    T). With B = 1 intra is the constant 1. Default weights 1 and 2 with beta = gamma = 1 are the paper's beta = gamma =
    2.
    """

    name = "dist"
    default_ce_weight = 1.0
    default_kd_weight = 2.0
    limits: ClassVar[Mapping[str, Limit]] = {
        "beta": Limit(kind=float, low=0.0),
        "gamma": Limit(kind=float, low=0.0),
        "temperature": Limit(kind=float, low=0.0, above=True),
        "tau2": Limit(kind=bool),
        "eps": Limit(kind=float, low=0.0, above=True),
    }

    def __init__(
        self,
        *,
        beta: float = 1.0,
        gamma: float = 1.0,
        temperature: float = 1.0,
        tau2: bool = True,
        eps: float = 1e-8,
    ) -> None:
        super().__init__()
        given = {"beta": beta, "gamma": gamma, "temperature": temperature, "tau2": tau2, "eps": eps}
        hyper = self.read_hyper(given)
        self.beta: float = hyper["beta"]
        self.gamma: float = hyper["gamma"]
        self.temperature: float = hyper["temperature"]
        self.eps: float = hyper["eps"]
        self.factor: float = self.temperature**2 if hyper["tau2"] else 1.0

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        student_BC, teacher_BC = logits_of(batch)
        student_BC = (student_BC / self.temperature).softmax(dim=1)
        teacher_BC = (teacher_BC / self.temperature).softmax(dim=1)
        inter = 1 - pearson(student_BC, teacher_BC, dim=1, eps=self.eps).mean()
        intra = 1 - pearson(student_BC, teacher_BC, dim=0, eps=self.eps).mean()
        return self.factor * (self.beta * inter + self.gamma * intra)


def pearson(first: Tensor, second: Tensor, *, dim: int, eps: float) -> Tensor:
    """Correlation along ``dim``: ``a.b / (|a| |b| + eps)`` of the centred values."""
    first = first - first.mean(dim=dim, keepdim=True)
    second = second - second.mean(dim=dim, keepdim=True)
    norms: Tensor = torch.linalg.vector_norm(first, dim=dim) * torch.linalg.vector_norm(second, dim=dim)
    return (first * second).sum(dim=dim) / (norms + eps)

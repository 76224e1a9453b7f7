"""DIST: correlation instead of equality.

Shape key: B batch, C classes.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from shared.errors import InputError
from student_trainer.losses.base import DistillLoss, logits_of
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.hyper import Limit
from student_trainer.losses.kl import TEMPERATURES, WARM, divergence, softened


class DIST(DistillLoss):
    """Huang et al. 2022: ``beta * inter + gamma * intra``, each 1 - the mean Pearson correlation of softened outputs.

    inter compares rows (one sample over the classes), intra columns (one class over the batch); softmax(z/T) comes
    before Pearson. A weight of 0 leaves its part out. ``tau2`` multiplies by T^2, as the authors' CIFAR code does.
    ``eps`` is added to the product of norms, as theirs is: identical inputs therefore give a loss above 0 where
    variances are tiny (many classes, large T), and a constant row of the student a gradient near 1/eps. With B = 1
    intra is the constant 1. Default weights 1 and 2 with beta = gamma = 1 are the paper's beta = gamma = 2.

    ``relation="kl"`` is the other relation of the paper's ablation. Inter is the divergence of ``kl``. The paper does
    not define intra; here each column of the softened outputs, divided by its sum, is a distribution over the samples,
    and intra the mean over the classes of ``KL(teacher's || student's)``.
    """

    name = "dist"
    default_ce_weight = 1.0
    default_kd_weight = 2.0
    limits: ClassVar[Mapping[str, Limit]] = {
        "beta": Limit(kind=float, low=0.0),
        "gamma": Limit(kind=float, low=0.0),
        "temperature": TEMPERATURES,
        "tau2": Limit(kind=bool),
        "eps": Limit(kind=float, low=0.0, above=True),
        "relation": Limit(kind=str, choices=("pearson", "kl")),
    }

    def __init__(
        self,
        *,
        beta: float = 1.0,
        gamma: float = 1.0,
        temperature: float = 1.0,
        tau2: bool = True,
        eps: float = 1e-8,
        relation: Literal["pearson", "kl"] = "pearson",
    ) -> None:
        super().__init__()
        given = {"beta": beta, "gamma": gamma, "temperature": temperature, "tau2": tau2, "eps": eps}
        hyper = self.read_hyper(given | {"relation": relation})
        self.beta: float = hyper["beta"]
        self.gamma: float = hyper["gamma"]
        self.temperature: float = hyper["temperature"]
        self.eps: float = hyper["eps"]
        self.factor: float = self.temperature**2 if hyper["tau2"] else 1.0
        self.relation: str = hyper["relation"]
        if self.beta == 0 and self.gamma == 0:
            raise InputError("dist: beta and gamma are 0; at least one must be above 0")
        if self.relation == "kl":
            self.refuse_unused(hyper, "eps", where="relation=kl", remedy="relation=pearson")

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        logits = logits_of(batch)
        soften, distance = RELATIONS[self.relation]
        student_BC, teacher_BC = (soften(logits_BC, temperature=self.temperature) for logits_BC in logits)
        weights = {dim: weight for dim, weight in ((1, self.beta), (0, self.gamma)) if weight > 0}
        return self.factor * distance(student_BC, teacher_BC, weights=weights, eps=self.eps).to(logits[0].dtype)


def probabilities(logits_BC: Tensor, *, temperature: float) -> Tensor:
    """``softmax(z/T)``, in float64 for large T as `softened`."""
    if temperature >= WARM:
        logits_BC = logits_BC.double()
    # The default temperature is 1: two passes over [B, C] less.
    return (logits_BC if temperature == 1 else logits_BC / temperature).softmax(dim=1)


def uncorrelated(student_BC: Tensor, teacher_BC: Tensor, *, weights: Mapping[int, float], eps: float) -> Tensor:
    """The sum over ``weights`` {dim: weight} of 1 - the mean Pearson correlation along dim, a scalar."""
    total: Tensor = Uncorrelated.apply(student_BC, teacher_BC, weights, eps)
    return total


def diverged(log_student_BC: Tensor, log_teacher_BC: Tensor, *, weights: Mapping[int, float], eps: float) -> Tensor:
    """The same of the mean divergence of outputs that sum to 1 along dim; there is no ``eps`` in it."""
    total = log_student_BC.new_zeros(())
    for dim, weight in weights.items():
        logarithms = (log_student_BC, log_teacher_BC)
        own, other = logarithms if dim == 1 else (one.log_softmax(dim=0) for one in logarithms)
        total = total + weight * divergence(own, other, dim=dim).mean()
    return total


Soften = Callable[..., Tensor]
Distance = Callable[..., Tensor]
RELATIONS: Mapping[str, tuple[Soften, Distance]] = {
    "pearson": (probabilities, uncorrelated),
    "kl": (softened, diverged),
}
"""Relation -> how logits are softened, and how far apart two such outputs are along a dimension."""


def pearson(student: Tensor, teacher: Tensor, *, dim: int, eps: float) -> tuple[Tensor, Tensor]:
    """(``r = a.b / (|a| |b| + eps)`` of the centred values along ``dim``, d r/d student).

    With n the denominator the derivative is ``b/n - r |b|/(|a| n) a``: sums along ``dim`` of it are 0.
    """
    first = student - student.mean(dim=dim, keepdim=True)
    second = teacher - teacher.mean(dim=dim, keepdim=True)
    first_norm, second_norm = (torch.linalg.vector_norm(one, dim=dim, keepdim=True) for one in (first, second))
    denominator: Tensor = first_norm * second_norm + eps
    correlation: Tensor = (first * second).sum(dim=dim, keepdim=True) / denominator
    # Where the student is constant the second term is 0/0; its limit depends on the direction, torch says 0.
    own = (correlation / first_norm * (second_norm / denominator)).masked_fill_(first_norm == 0, 0.0)
    return correlation.squeeze(dim), second.div_(denominator).sub_(first.mul_(own))


class Uncorrelated(torch.autograd.Function):
    """`uncorrelated` with its derivative in closed form: fewer passes over [B, C], and one tensor kept instead of
    twelve.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, weights: Mapping[int, float], eps: float) -> Tensor:
        """The sum, a scalar; the derivative is kept for `backward`."""
        total, derivative = student.new_zeros(()), None
        for dim, weight in weights.items():
            correlation, own = pearson(student, teacher, dim=dim, eps=eps)
            total += weight * (1 - correlation.mean())
            share = -weight / correlation.numel()
            derivative = own.mul_(share) if derivative is None else derivative.add_(own, alpha=share)
        ctx.save_for_backward(derivative)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient of the student's values."""
        (derivative,) = ctx.saved_tensors
        return gradient * derivative, None, None, None

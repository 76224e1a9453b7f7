"""Kullback-Leibler divergence of softened outputs: the classic.

Shape key: B batch, C classes.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from student_trainer.losses.base import DistillLoss, logits_of
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.hyper import Limit

ENDLESS = 1e9
"""From this temperature on the limit is as near to ``T^2 KL`` as float64 arithmetic comes, about 1e-7 of it."""
WARM = 1e3
"""From this temperature on, the rounding of float32 probabilities, times T, would show in the gradient (over 1e-4)."""
COLDEST = 1e-30
"""Below this temperature float32 has no ``s/T``; the softened outputs are one-hot long before."""

TEMPERATURES = Limit(kind=float, low=1e-6, high=1e6)
"""Of other losses that soften outputs as `softened` does: ``T^2`` and ``s/T`` are far from the ends of float32."""


class KL(DistillLoss):
    """Hinton et al. 2015: ``T^2 * KL(softmax(t/T) || softmax(s/T))``, sum over classes, mean over the batch.

    ``scale="tau2"`` multiplies by T^2 for every T, as all public code does; ``"max"`` by max(T, T^2), which Kim et al.
    2021 state in their text only: for T to 0 its gradient tends to ``(onehot(argmax s) - onehot(argmax t))/B``, where
    that of ``tau2`` vanishes. ``temperature=inf`` is the limit (their Eq. 5), the same by either scale: half the
    variance over the classes of ``d = s - t``, that is ``lm`` on centred logits, with the gradient ``(C d - sum
    d)/C^2/B``; their code writes that gradient by hand, for T above 150. Default weights: RepDistiller's 0.1 and 0.9.
    """

    name = "kl"
    default_ce_weight = 0.1
    default_kd_weight = 0.9
    limits: ClassVar[Mapping[str, Limit]] = {
        "temperature": Limit(kind=float, low=0.0, above=True, endless=True),
        "scale": Limit(kind=str, choices=("tau2", "max")),
    }

    def __init__(self, *, temperature: float = 4.0, scale: Literal["tau2", "max"] = "tau2") -> None:
        super().__init__()
        hyper = self.read_hyper({"temperature": temperature, "scale": scale})
        self.temperature: float = max(hyper["temperature"], COLDEST)
        # T^2 keeps the gradient's scale independent of T above 1; below 1 it makes the gradient vanish with T.
        squared = self.temperature * self.temperature
        self.factor: float = squared if hyper["scale"] == "tau2" else max(self.temperature, squared)

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        student_BC, teacher_BC = logits_of(batch)
        if self.temperature >= ENDLESS:
            return (student_BC - teacher_BC).var(dim=1, correction=0).mean() / 2
        return self.factor * softened_kl(student_BC, teacher_BC, temperature=self.temperature)


def softened_kl(student_BC: Tensor, teacher_BC: Tensor, *, temperature: float) -> Tensor:
    """``KL(softmax(t/T) || softmax(s/T))``, sum over classes, mean over the batch, without the factor T^2."""
    return softened_kl_per_sample(student_BC, teacher_BC, temperature=temperature).mean()


def softened_kl_per_sample(student_BC: Tensor, teacher_BC: Tensor, *, temperature: float) -> Tensor:
    """`softened_kl` before the mean, [B]."""
    log_student_BC, log_teacher_BC = (softened(one, temperature=temperature) for one in (student_BC, teacher_BC))
    between = divergence if temperature < WARM else close_divergence
    return between(log_student_BC, log_teacher_BC, dim=1).to(student_BC.dtype)


def softened(logits_BC: Tensor, *, temperature: float) -> Tensor:
    """``log softmax(z/T)`` over the classes, in float64 for large T."""
    if temperature >= WARM:
        logits_BC = logits_BC.double()
    if temperature < 1:
        # Rounded before it is divided, the distance to the largest logit is exact where it matters: close to it.
        logits_BC = logits_BC - logits_BC.detach().amax(dim=1, keepdim=True)
    return functional.log_softmax(logits_BC / temperature, dim=1)


def divergence(log_student: Tensor, log_teacher: Tensor, *, dim: int) -> Tensor:
    """``KL(teacher || student)`` of distributions along ``dim``, given as logarithms; no gradient to the teacher."""
    found: Tensor = Divergence.apply(log_student, log_teacher, dim, False)
    return found


def close_divergence(log_student: Tensor, log_teacher: Tensor, *, dim: int) -> Tensor:
    """`divergence` where the distributions are close: the same sum, without the difference of equal probabilities."""
    found: Tensor = Divergence.apply(log_student, log_teacher, dim, True)
    return found


class Divergence(torch.autograd.Function):
    """`divergence` with its derivative in closed form, ``p_s - p_t``: one tensor is kept instead of five."""

    @staticmethod
    def forward(ctx: Any, log_student: Tensor, log_teacher: Tensor, dim: int, close: bool) -> Tensor:
        """The sums along ``dim``."""
        ratio, teacher_prob = log_student - log_teacher, log_teacher.exp()
        # p_s and p_t both sum to 1, so their difference adds nothing; in float32 it cancels the rounding of the
        # logarithms to first order, which for large temperatures (close distributions) is most of the error.
        if close:
            # From the larger one: its share of the smaller is below 1, where the other way round may overflow.
            size = ratio.abs().neg_().expm1_().neg_().mul_(torch.maximum(log_student, log_teacher).exp_())
            derivative = size.copysign_(ratio)
        else:
            derivative = log_student.exp().sub_(teacher_prob)
        ctx.dim = dim
        ctx.save_for_backward(derivative)
        return ratio.mul_(teacher_prob).sub_(derivative).sum(dim=dim).neg_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient of the student's logarithms."""
        (derivative,) = ctx.saved_tensors
        return gradient.unsqueeze(ctx.dim) * derivative, None, None, None

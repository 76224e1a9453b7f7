"""Kullback-Leibler divergence of softened outputs: the classic."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional

from student_trainer.losses.base import DistillLoss, logits_of
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.hyper import Limit


class KL(DistillLoss):
    """Hinton et al. 2015: ``T^2 * KL(softmax(t/T) || softmax(s/T))``, sum over classes, mean over the batch.

    ``scale="tau2"`` multiplies by T^2 for every T, as all public code does; ``"max"`` by max(T, T^2), which Kim et al.
    2021 state in their text only. Default weights: RepDistiller's 0.1 and 0.9.
    """

    name = "kl"
    default_ce_weight = 0.1
    default_kd_weight = 0.9
    limits: ClassVar[Mapping[str, Limit]] = {
        "temperature": Limit(kind=float, low=0.0, above=True),
        "scale": Limit(kind=str, choices=("tau2", "max")),
    }

    def __init__(self, *, temperature: float = 4.0, scale: Literal["tau2", "max"] = "tau2") -> None:
        super().__init__()
        hyper = self.read_hyper({"temperature": temperature, "scale": scale})
        self.temperature: float = hyper["temperature"]
        # T^2 keeps the gradient's scale independent of T above 1; below 1 it makes the gradient vanish with T.
        squared = self.temperature**2
        self.factor: float = squared if hyper["scale"] == "tau2" else max(self.temperature, squared)

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        student_BC, teacher_BC = logits_of(batch)
        return self.factor * softened_kl(student_BC, teacher_BC, temperature=self.temperature)


def softened_kl(student_BC: Tensor, teacher_BC: Tensor, *, temperature: float) -> Tensor:
    """``KL(softmax(t/T) || softmax(s/T))``, sum over classes, mean over the batch, without the factor T^2."""
    return softened_kl_per_sample(student_BC, teacher_BC, temperature=temperature).mean()


def softened_kl_per_sample(student_BC: Tensor, teacher_BC: Tensor, *, temperature: float) -> Tensor:
    """`softened_kl` before the mean, [B]."""
    log_student_BC = functional.log_softmax(student_BC / temperature, dim=1)
    log_teacher_BC = functional.log_softmax(teacher_BC / temperature, dim=1)
    student_prob_BC, teacher_prob_BC = log_student_BC.exp(), log_teacher_BC.exp()
    # Both sum to 1, so their difference adds nothing; in float32 it cancels the rounding of the logarithms to first
    # order, which for large temperatures (close distributions) is most of the error.
    terms_BC = teacher_prob_BC * (log_teacher_BC - log_student_BC) - (teacher_prob_BC - student_prob_BC)
    return terms_BC.sum(dim=1)

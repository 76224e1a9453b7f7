"""Logit matching: what KL becomes for infinite temperature."""

from torch import Tensor

from student_trainer.losses.base import DistillLoss, logits_of
from student_trainer.losses.batch import DistillBatch


class LogitMatching(DistillLoss):
    """Hinton et al. 2015 (section 2.1), Chen: ``|s - t|^2 / (2 C)``, mean over the batch.

    ``T^2 KL`` tends to this for T to infinity where each sample's logits have mean zero, of student and teacher alike;
    with other logits KL ignores the difference of their means and this does not. Half of ``mse`` by mean, so the same
    training at twice the weight: it is here by its name in the literature. Its authors use it without cross-entropy.
    """

    name = "lm"

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        student_BC, teacher_BC = logits_of(batch)
        return (student_BC - teacher_BC).square().mean() / 2

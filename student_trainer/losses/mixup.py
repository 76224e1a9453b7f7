"""Mixup of cached answers: the student sees a mix of two images, its target is the mix of two answers."""

import torch

from student_trainer.losses.mix import Mix
from student_trainer.losses.mixed_answers import MixedAnswers


class Mixup(MixedAnswers):
    """Xu et al. 2025 (baseline), Zhang et al. 2018: ``w L(s, t_i) + (1 - w) L(s, t_j)``, mean over the batch.

    s are the student's logits of ``w * image i + (1 - w) * image j``; t_i and t_j are the teacher's cached answers to
    the two images themselves, so that mixing costs no teacher call. L is cross-entropy against softmax(t)
    (``target="ce"``, as the authors train) or ``T^2 KL`` with ``temperature`` (``target="kl"``). One weight w per batch
    from Beta(alpha, alpha), in every step. Partners are a permutation of the batch, as Zhang's code draws them; Xu's
    draws 100,000 pairs of rows before training and keeps to them.
    """

    name = "mixup"

    def mix(self, count: int, *, size: tuple[int, int]) -> Mix:
        """One weight for all."""
        generator, weight = self.drawn()
        return Mix(partner=torch.from_numpy(generator.permutation(count)), weight=torch.full((count,), weight))

"""CutMix of cached answers: the student sees an image with a box of another, its target is the two answers by area."""

import math

import numpy as np
import torch

from student_trainer.losses.mix import Mix
from student_trainer.losses.mixed_answers import MixedAnswers


class Cutmix(MixedAnswers):
    """Xu et al. 2025 (baseline), Yun et al. 2019: ``w L(s, t_i) + (1 - w) L(s, t_j)``, mean over the batch.

    s are the student's logits of image i with a box of image j in it; w is the share of pixels outside of the box. One
    box per batch, in every step (Yun trains CIFAR with half of the batches unmixed; Xu's code mixes all): its middle is
    any pixel, its sides are ``2 * floor(floor(side * sqrt(1 - v)) / 2)`` with v from Beta(alpha, alpha), cut off at the
    borders. That is the code of both, which loses a pixel of odd sides; the paper has ``side * sqrt(1 - v)``. Answers,
    L, partners and labels are those of `mixup`.
    """

    name = "cutmix"

    def mix(self, count: int, *, size: tuple[int, int]) -> Mix:
        """One box for all."""
        generator, asked = self.drawn()
        partner = torch.from_numpy(generator.permutation(count))
        top, bottom, left, right = box = drawn_box(size, share=asked, generator=generator)
        weight = 1 - (bottom - top) * (right - left) / math.prod(size)
        return Mix(partner=partner, weight=torch.full((count,), weight), box=box)


def drawn_box(size: tuple[int, int], *, share: float, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of a box of about ``1 - share`` of ``size`` (H, W) around a drawn pixel."""
    edges: list[int] = []
    for side in size:
        middle, half = int(generator.integers(side)), int(side * math.sqrt(1 - share)) // 2
        edges += [max(0, middle - half), min(side, middle + half)]
    top, bottom, left, right = edges
    return top, bottom, left, right

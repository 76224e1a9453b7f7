"""Jacobian matching: the student's logit should change with the input as the teacher's does.

Shape key: B batch, C classes, N numbers of an input (3 H W).
"""

from collections.abc import Mapping
from typing import ClassVar, cast

import torch
from torch import Tensor

from shared.errors import InputError
from student_trainer.losses.base import DistillLoss, logits_of
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.hyper import Limit

SHORTEST = 1e-8
"""Gradients of this length or less have no direction: they count as 0, and nothing is learned from them."""


class Jacobian(DistillLoss):
    """Srinivas and Fleuret 2018: ``|| g_s / |g_s| - g_t / |g_t| ||^2``, sum over the input, mean over the batch.

    g_s is the gradient of the student's logit of the teacher's largest class with respect to the student's normalised
    input; g_t is the teacher's ``input_grad``, kept in the cache. One class instead of all is the paper's own
    shortening of the Jacobian. ``normalise=false`` compares ``g_s`` and ``g_t`` themselves, which is what the paper
    derives from noise on the input; unit length is how it compares networks whose gradients differ in scale.

    Student and teacher must see the same pixels, normalised by the same mean and standard deviation. While batch norm
    trains, a sample's input also moves the others' logits through the batch's statistics: g_s is the gradient of the
    sum over the batch and holds that part, too; the teacher's has none. The paper adds the term to cross-entropy and to
    a match of the logits; its weights are not known to us: both defaults of 1 are ours.
    """

    name = "jacobian"
    default_ce_weight = 1.0
    needs = ("teacher_logits", "teacher_input_grad", "student_inputs")
    limits: ClassVar[Mapping[str, Limit]] = {"normalise": Limit(kind=bool)}

    def __init__(self, *, normalise: bool = True) -> None:
        super().__init__()
        self.normalise: bool = self.read_hyper({"normalise": normalise})["normalise"]

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        student_BN, teacher_BN = gradients_of(batch)
        if self.normalise:
            student_BN, teacher_BN = directions(student_BN), directions(teacher_BN)
        return (student_BN - teacher_BN).square().sum(dim=1).mean()


def gradients_of(batch: DistillBatch) -> tuple[Tensor, Tensor]:
    """(student's, teacher's) gradient [B, N] of the logit of the teacher's largest class, by the input."""
    student_BC, teacher_BC = logits_of(batch)
    inputs_B3HW, teacher_B3HW = cast(Tensor, batch.student_inputs), cast(Tensor, batch.teacher_input_grad)
    if inputs_B3HW.shape != teacher_B3HW.shape:
        raise InputError(
            f"student inputs {list(inputs_B3HW.shape)} and the teacher's input gradients {list(teacher_B3HW.shape)}"
            " differ in shape: both networks must take images of one size"
        )
    if not inputs_B3HW.requires_grad or not student_BC.requires_grad:
        raise InputError(
            "loss jacobian needs the gradient of the student's logits by its inputs: call inputs.requires_grad_()"
            " before the student's forward, and run that with gradients enabled"
        )
    top = student_BC.gather(1, teacher_BC.argmax(dim=1, keepdim=True)).sum()
    # Of the sum, and one by one: without batch statistics no logit depends on another sample's input.
    (student_B3HW,) = torch.autograd.grad(top, inputs_B3HW, create_graph=True, allow_unused=True)
    if student_B3HW is None:
        raise InputError("student_inputs must be the very tensor that the student saw: no copy, and no part of it")
    student_BN = student_B3HW.flatten(1).to(student_BC.dtype)
    return student_BN, teacher_B3HW.detach().flatten(1).to(student_BC.dtype)


def directions(gradients_BN: Tensor) -> Tensor:
    """Each at length 1, or 0 where it is too short; [B, N]."""
    length_B1 = torch.linalg.vector_norm(gradients_BN, dim=1, keepdim=True)
    long_B1 = length_B1 > SHORTEST
    return torch.where(long_B1, gradients_BN / torch.where(long_B1, length_B1, 1.0), 0.0)

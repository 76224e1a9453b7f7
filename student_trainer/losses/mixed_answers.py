"""The target of a mixed image: two cached answers by their shares. What `mixup` and `cutmix` have in common.

Shape key: B batch, C classes.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal, cast

import numpy as np
from torch import Tensor
from torch.nn import functional

from student_trainer.losses.base import DistillLoss, logits_of
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.drawing import Drawing
from student_trainer.losses.hyper import Limit
from student_trainer.losses.kl import TEMPERATURES, softened_kl_per_sample


class MixedAnswers(Drawing, DistillLoss):
    """``w L(s, t_i) + (1 - w) L(s, t_j)``, mean over the batch; a subclass says in `mix` how images are mixed.

    s are the student's logits of a mix of images i and j of which i has the share w; t_i and t_j are the teacher's
    cached answers to the two images themselves, so that mixing costs no teacher call. The default weights 1 and 1 are
    those of Xu et al. 2025: cross-entropy, which the trainer adds, is with both labels by their shares.
    """

    default_ce_weight = 1.0
    needs = ("teacher_logits", "mix")
    limits: ClassVar[Mapping[str, Limit]] = {
        "alpha": Limit(kind=float, low=0.0, above=True),
        "target": Limit(kind=str, choices=("ce", "kl")),
        "temperature": TEMPERATURES,
    }

    def __init__(self, *, alpha: float = 1.0, target: Literal["ce", "kl"] = "ce", temperature: float = 4.0) -> None:
        super().__init__()
        hyper = self.read_hyper({"alpha": alpha, "target": target, "temperature": temperature})
        self.alpha: float = hyper["alpha"]
        self.target: str = hyper["target"]
        self.temperature: float = hyper["temperature"]
        if self.target == "ce":
            self.refuse_unused(hyper, "temperature", where="target=ce", remedy="target=kl")

    def drawn(self) -> tuple[np.random.Generator, float]:
        """(what the rest of this mix is drawn from, a share from Beta(alpha, alpha))."""
        generator = np.random.default_rng(self.next_seed())
        return generator, float(generator.beta(self.alpha, self.alpha))

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        student_BC, teacher_BC = logits_of(batch)
        partner_B, weight_B = (item.to(student_BC.device) for item in cast(tuple[Tensor, Tensor], batch.mix))
        weight_B = weight_B.to(student_BC.dtype)
        own_B, other_B = self._error(student_BC, teacher_BC), self._error(student_BC, teacher_BC[partner_B])
        return (weight_B * own_B + (1 - weight_B) * other_B).mean()

    def _error(self, student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
        """L of each sample, [B]."""
        if self.target == "ce":
            return functional.cross_entropy(student_BC, teacher_BC.softmax(dim=1), reduction="none")
        return self.temperature**2 * softened_kl_per_sample(student_BC, teacher_BC, temperature=self.temperature)

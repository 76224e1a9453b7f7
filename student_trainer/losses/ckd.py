"""CKD: match how samples differ, not what they are.

Shape key: B batch, C classes, P comparisons, G samples of a comparison (pos + neg).
"""

from collections.abc import Mapping
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from shared.errors import InputError
from student_trainer.losses.base import DistillLoss, logits_of, onehot_of
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.drawing import Drawing
from student_trainer.losses.hyper import Limit
from student_trainer.losses.kl import softened_kl


class CKD(Drawing, DistillLoss):
    """Xu et al. 2025: squared error between *differences* of raw logits of samples, mean over comparisons and classes.

    A comparison is the mean of ``pos`` samples minus the mean of ``neg`` others, for the student (ds), the teacher (dt)
    and the one-hot labels (dy): ``w_cls * MSE(ds, dy) + w_rel * MSE(ds, dt) + w_kd * T^2 KL(dt || ds)``. The label
    term takes the place of cross-entropy. ``pairs="all"`` is the exact mean over every ordered comparison of disjoint
    groups in the batch (i = j excluded) in O(B C): ``(1/pos + 1/neg) * sum_i |d_i - mean d|^2 / ((B - 1) C)`` with d
    the error of each sample. ``pairs="sampled"`` draws B comparisons per batch (the authors draw 100,000 once). Batches
    smaller than pos + neg hold no comparison and are refused.

    Differences leave one constant vector free in all student logits, on which accuracy depends:
    ``offset="calibrate"`` sets it after training to the mean of the target (w_cls y + w_rel t)/(w_cls + w_rel) minus
    the student over the training rows; it costs no teacher call. ``"none"`` is CKD as published.
    """

    name = "ckd"
    limits: ClassVar[Mapping[str, Limit]] = {
        "pairs": Limit(kind=str, choices=("all", "sampled")),
        "pos": Limit(kind=int, low=1),
        "neg": Limit(kind=int, low=1),
        "w_cls": Limit(kind=float, low=0.0),
        "w_rel": Limit(kind=float, low=0.0),
        "w_kd": Limit(kind=float, low=0.0),
        "kd_temperature": Limit(kind=float, low=0.0, above=True),
        "offset": Limit(kind=str, choices=("none", "calibrate")),
    }

    def __init__(
        self,
        *,
        pairs: Literal["all", "sampled"] = "all",
        pos: int = 1,
        neg: int = 1,
        w_cls: float = 1.0,
        w_rel: float = 1.0,
        w_kd: float = 0.0,
        kd_temperature: float = 4.0,
        offset: Literal["none", "calibrate"] = "none",
    ) -> None:
        super().__init__()
        given = {"pairs": pairs, "pos": pos, "neg": neg, "w_cls": w_cls, "w_rel": w_rel, "w_kd": w_kd}
        hyper = self.read_hyper(given | {"kd_temperature": kd_temperature, "offset": offset})
        self.pairs: str = hyper["pairs"]
        self.pos: int = hyper["pos"]
        self.neg: int = hyper["neg"]
        self.w_cls: float = hyper["w_cls"]
        self.w_rel: float = hyper["w_rel"]
        self.w_kd: float = hyper["w_kd"]
        self.kd_temperature: float = hyper["kd_temperature"]
        self._check_together(offset=offset)
        self.min_rows = self.pos + self.neg
        self.finishes = offset == "calibrate"
        self.needs = tuple(
            name for name, used in (("teacher_logits", self.w_rel + self.w_kd > 0), ("labels", self.w_cls > 0)) if used
        )

    def _check_together(self, *, offset: str) -> None:
        if self.w_cls + self.w_rel + self.w_kd == 0:
            raise InputError("ckd: w_cls, w_rel and w_kd are all 0; at least one must be above 0")
        if offset == "calibrate" and self.w_cls + self.w_rel == 0:
            raise InputError("ckd: offset=calibrate needs a target: set w_cls or w_rel above 0")
        if self.w_kd > 0 and self.pairs == "all" and (self.pos, self.neg) != (1, 1):
            raise InputError("ckd: w_kd above 0 has no closed form; use pairs=sampled, or pos=1 and neg=1")

    def value(self, batch: DistillBatch, *, indices: Tensor | None = None) -> Tensor:
        """Scalar. ``indices`` int64 [P, pos + neg] (batch positions, positive group first) overrides ``pairs``."""
        student_BC, teacher_BC, onehot_BC = self._sides(batch)
        if indices is None and self.pairs == "sampled":
            indices = self._draw(len(student_BC))
        if indices is not None:
            return self._compared(student_BC, teacher_BC, onehot_BC, indices_PG=indices.to(student_BC.device))
        factor = 1 / self.pos + 1 / self.neg
        total = student_BC.new_zeros(())
        if self.w_cls > 0:
            total = total + self.w_cls * factor * mean_spread(student_BC - onehot_BC)
        if self.w_rel > 0:
            total = total + self.w_rel * factor * mean_spread(student_BC - teacher_BC)
        if self.w_kd > 0:
            pairs_PG = ordered_pairs(len(student_BC)).to(student_BC.device)
            total = total + self.w_kd * self._kl(student_BC, teacher_BC, indices_PG=pairs_PG)
        return total

    def _sides(self, batch: DistillBatch) -> tuple[Tensor, Tensor, Tensor]:
        """(student, teacher, one-hot labels), each [B, C]; a side that no weight uses is zeros."""
        logits_BC = batch.student_logits
        zeros_BC = torch.zeros_like(logits_BC)
        given = (
            batch if "teacher_logits" in self.needs else DistillBatch(student_logits=logits_BC, teacher_logits=zeros_BC)
        )
        student_BC, teacher_BC = logits_of(given)
        onehot_BC = onehot_of(batch) if "labels" in self.needs else zeros_BC.to(student_BC.dtype)
        return student_BC, teacher_BC, onehot_BC

    def _compared(self, student_BC: Tensor, teacher_BC: Tensor, onehot_BC: Tensor, *, indices_PG: Tensor) -> Tensor:
        student_PC = self._difference(student_BC, indices_PG)
        total = student_BC.new_zeros(())
        if self.w_cls > 0:
            total = total + self.w_cls * (student_PC - self._difference(onehot_BC, indices_PG)).square().mean()
        if self.w_rel > 0:
            total = total + self.w_rel * (student_PC - self._difference(teacher_BC, indices_PG)).square().mean()
        if self.w_kd > 0:
            total = total + self.w_kd * self._kl(student_BC, teacher_BC, indices_PG=indices_PG)
        return total

    def _kl(self, student_BC: Tensor, teacher_BC: Tensor, *, indices_PG: Tensor) -> Tensor:
        student_PC, teacher_PC = self._difference(student_BC, indices_PG), self._difference(teacher_BC, indices_PG)
        return self.kd_temperature**2 * softened_kl(student_PC, teacher_PC, temperature=self.kd_temperature)

    def _difference(self, values_BC: Tensor, indices_PG: Tensor) -> Tensor:
        groups_PGC = values_BC[indices_PG]
        return groups_PGC[:, : self.pos].mean(dim=1) - groups_PGC[:, self.pos :].mean(dim=1)

    def _draw(self, batch_size: int) -> Tensor:
        """As many comparisons of distinct samples as the batch has samples, int64 [B, pos + neg]."""
        generator = torch.Generator().manual_seed(self.next_seed())
        scores_BB = torch.rand(batch_size, batch_size, generator=generator)
        return scores_BB.topk(self.pos + self.neg, dim=1).indices

    def check_head(self, head: nn.Module) -> None:
        """Calibration needs a bias."""
        if not isinstance(getattr(head, "bias", None), Tensor):
            raise InputError(f"ckd: offset=calibrate needs a last layer with a bias; {type(head).__name__} has none")

    @torch.no_grad()
    def finish(self, head: nn.Module, batch: DistillBatch) -> None:
        """Add the mean of target minus student, [C], to the head's bias; InputError where it has none."""
        self.check_head(head)
        bias = cast(Tensor, head.bias)
        student_BC, teacher_BC, onehot_BC = self._sides(batch)
        target_BC = (self.w_cls * onehot_BC + self.w_rel * teacher_BC) / (self.w_cls + self.w_rel)
        bias += (target_BC.double() - student_BC.double()).mean(dim=0).to(bias)


def mean_spread(error_BC: Tensor) -> Tensor:
    """``sum |e_i - mean e|^2 / ((B - 1) C)``: half the mean squared difference of two errors over all ordered pairs."""
    centred_BC = error_BC - error_BC.mean(dim=0)
    return centred_BC.square().sum() / ((error_BC.shape[0] - 1) * error_BC.shape[1])


def ordered_pairs(count: int) -> Tensor:
    """All (i, j) with i != j, int64 [count (count - 1), 2]."""
    return torch.cartesian_prod(torch.arange(count), torch.arange(count))[~torch.eye(count, dtype=torch.bool).flatten()]

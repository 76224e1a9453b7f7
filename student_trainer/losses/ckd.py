"""CKD: match how samples differ, not what they are.

Shape key: B batch, C classes, D feature width, F either of both, P comparisons, G samples of a comparison (pos + neg).
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from shared.errors import InputError
from student_trainer.losses.announced import announced_widths
from student_trainer.losses.base import OUTPUTS, DistillLoss, features_of, logits_of, onehot_of, widen
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.comparisons import Groups, Targets, squared_errors
from student_trainer.losses.drawing import Drawing
from student_trainer.losses.facts import TrainingFacts
from student_trainer.losses.hyper import Limit
from student_trainer.losses.kl import TEMPERATURES
from student_trainer.losses.trained_pairs import drawn_layer

COMPARED: Mapping[str, tuple[str, ...]] = {
    "logits": ("logits",),
    "features": ("features",),
    "both": ("logits", "features"),
}
"""What the student is compared with the teacher by."""


class CKD(Drawing, DistillLoss):
    """Xu et al. 2025: squared error between *differences* of raw logits of samples, mean over comparisons and classes.

    A comparison is the mean of ``pos`` samples minus the mean of ``neg`` others, for the student (ds), the teacher (dt)
    and the one-hot labels (dy): ``w_cls * MSE(ds, dy) + w_rel * MSE(ds, dt) + w_kd * T^2 KL(dt || ds)``, with the
    softmax of differences at T = ``kd_temperature`` in the last. The label term takes the place of cross-entropy.
    ``form="kl"`` is the first version (2023; its pos is 2): all terms are ``T^2 KL``, labels too.

    ``pairs="all"`` is the exact mean over every ordered comparison of disjoint groups in the batch (i = j excluded) in
    O(B C): ``(1/pos + 1/neg) * sum_i |d_i - mean d|^2 / ((B - 1) C)`` with d the error of each sample; a KL has no
    closed form, so there it is O(B^2 C), and for pos = neg = 1 only. ``pairs="sampled"`` draws B comparisons from each
    batch, anew each time: as the all-pairs mean in expectation. The authors draw 100,000 once, and a batch is the
    images of 64 of those; here batches are the trainer's, and few of such comparisons would lie in one. Batches smaller
    than pos + neg hold no comparison and are refused.

    ``on`` says what is compared with the teacher (w_rel): ``"logits"``, as in paper and code, ``"features"`` or
    ``"both"`` (two terms of that weight). Labels and w_kd compare logits. Features of different widths are compared
    after a linear map of the student's, which is trained (without bias: differences have none). ``combine="add"`` is
    the authors' ablation ``ckd_add``: half the sum of both groups' means, labels alike, instead of their difference.

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
        "kd_temperature": TEMPERATURES,
        "offset": Limit(kind=str, choices=("none", "calibrate")),
        "on": Limit(kind=str, choices=tuple(COMPARED)),
        "form": Limit(kind=str, choices=("mse", "kl")),
        "combine": Limit(kind=str, choices=("subtract", "add")),
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
        on: Literal["logits", "features", "both"] = "logits",
        form: Literal["mse", "kl"] = "mse",
        combine: Literal["subtract", "add"] = "subtract",
    ) -> None:
        super().__init__()
        given: dict[str, object] = {"pairs": pairs, "pos": pos, "neg": neg, "on": on, "form": form, "combine": combine}
        given |= {"w_cls": w_cls, "w_rel": w_rel, "w_kd": w_kd, "kd_temperature": kd_temperature, "offset": offset}
        hyper = self.read_hyper(given)
        self.pairs: str = hyper["pairs"]
        self.groups = Groups(pos=hyper["pos"], neg=hyper["neg"], added=hyper["combine"] == "add")
        self.w_cls: float = hyper["w_cls"]
        self.w_kd: float = hyper["w_kd"]
        self.w_rel: float = hyper["w_rel"] * ("logits" in COMPARED[hyper["on"]])
        self.w_features: float = hyper["w_rel"] * ("features" in COMPARED[hyper["on"]])
        self.temperature: float = hyper["kd_temperature"]
        self.form: str = hyper["form"]
        self.regressor: nn.Linear | None = None
        self._check_together(offset=offset)
        self._check_unused(hyper)
        self.min_rows = self.groups.size
        self.finishes = offset == "calibrate"
        uses = {OUTPUTS["logits"]: self.w_rel + self.w_kd > 0, ("labels",): self.w_cls > 0}
        uses |= {OUTPUTS["features"]: self.w_features > 0}
        self.needs = tuple(name for names, used in uses.items() if used for name in names)

    def _check_together(self, *, offset: str) -> None:
        if self.w_cls + self.w_rel + self.w_features + self.w_kd == 0:
            raise InputError("ckd: w_cls, w_rel and w_kd are all 0; at least one must be above 0")
        if offset == "calibrate" and self.w_cls + self.w_rel == 0:
            raise InputError("ckd: offset=calibrate needs a target: set w_cls or w_rel above 0")
        if offset == "calibrate" and self.groups.added:
            raise InputError("ckd: combine=add leaves no offset free; leave out offset=calibrate")
        if (self.w_kd > 0 or self.form == "kl") and self.pairs == "all" and self.groups.size > 2:
            raise InputError("ckd: w_kd and form=kl have no closed form; use pairs=sampled, or pos=1 and neg=1")

    def _check_unused(self, hyper: Mapping[str, Any]) -> None:
        if hyper["w_rel"] == 0:
            self.refuse_unused(hyper, "on", where="w_rel=0", remedy="w_rel above 0")
        if hyper["w_cls"] == hyper["w_rel"] == 0:
            self.refuse_unused(hyper, "form", where="w_cls=0 and w_rel=0", remedy="one of them above 0")
        if self.w_kd == 0 and self.form != "kl":
            self.refuse_unused(hyper, "kd_temperature", where="w_kd=0", remedy="w_kd above 0 or form=kl")

    def start(self, facts: TrainingFacts) -> None:
        """Draw from the seed; make the map of the student's features where the teacher's have another width."""
        super().start(facts)
        if self.w_features == 0:
            return
        student, teacher = announced_widths(facts, name=self.name)
        if student != teacher:
            generator = torch.Generator().manual_seed(self.next_seed())
            self.regressor = drawn_layer(nn.Linear, student, teacher, bias=False, generator=generator)

    def value(self, batch: DistillBatch, *, indices: Tensor | None = None) -> Tensor:
        """Scalar. ``indices`` int64 [P, pos + neg] (batch positions, positive group first) overrides ``pairs``."""
        if indices is None and self.pairs == "sampled":
            indices = self.groups.draw(len(batch.student_logits), seed=self.next_seed())
        student_BC = widen(batch.student_logits)
        total = student_BC.new_zeros(())
        if targets := self._targets(batch):
            total = total + FORMS[self.form](self, student_BC, targets, indices)
        if self.w_kd > 0:
            total = total + self._divergences(student_BC, [(self.w_kd, logits_of(batch)[1])], indices)
        if self.w_features > 0:
            student_BD, teacher_BD = self._features(batch)
            total = total + FORMS[self.form](self, student_BD, [(self.w_features, teacher_BD)], indices)
        return total

    def _targets(self, batch: DistillBatch) -> Targets:
        """What the student's logits are compared with, by `form`."""
        found = [(self.w_rel, logits_of(batch)[1])] if self.w_rel > 0 else []
        return [*found, (self.w_cls, onehot_of(batch))] if self.w_cls > 0 else found

    def _features(self, batch: DistillBatch) -> tuple[Tensor, Tensor]:
        """(student, teacher) features, both as wide as the teacher's."""
        student_BD, teacher_BD = features_of(batch)
        if self.regressor is not None:
            student_BD = self.regressor(student_BD.to(self.regressor.weight.dtype))
            teacher_BD = teacher_BD.to(student_BD.dtype)
        if student_BD.shape != teacher_BD.shape:
            raise InputError(
                f"ckd has no map from {student_BD.shape[1]} features to {teacher_BD.shape[1]}: call"
                " loss.start(TrainingFacts(...)) once before training, with both widths"
            )
        return student_BD, teacher_BD

    def _squares(self, student_BF: Tensor, targets: Targets, indices_PG: Tensor | None) -> Tensor:
        return squared_errors(self.groups, student_BF, targets, indices_PG=indices_PG)

    def _divergences(self, student_BF: Tensor, targets: Targets, indices_PG: Tensor | None) -> Tensor:
        return self.groups.divergence(student_BF, targets, temperature=self.temperature, indices_PG=indices_PG)

    def check_head(self, head: nn.Module) -> None:
        """Calibration needs a bias."""
        if not isinstance(getattr(head, "bias", None), Tensor):
            raise InputError(f"ckd: offset=calibrate needs a last layer with a bias; {type(head).__name__} has none")

    @torch.no_grad()
    def finish(self, head: nn.Module, batch: DistillBatch) -> None:
        """Add the mean of target minus student, [C], to the head's bias; InputError where it has none."""
        self.check_head(head)
        bias = cast(Tensor, head.bias)
        targets = self._targets(batch)
        target_C = sum(weight * target_BC.double().mean(dim=0) for weight, target_BC in targets)
        bias += (target_C / sum(weight for weight, _ in targets) - batch.student_logits.double().mean(dim=0)).to(bias)


FORMS = {"mse": CKD._squares, "kl": CKD._divergences}
"""How comparisons are compared with those of the targets."""

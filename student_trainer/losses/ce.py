"""Cross-entropy with the labels: no teacher, and how a teacher is trained."""

from collections.abc import Mapping
from typing import ClassVar, Literal, cast

from torch import Tensor
from torch.nn import functional

from student_trainer.losses.base import DistillLoss, widen
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.hyper import Limit


class CrossEntropy(DistillLoss):
    """``-log softmax(s)[label]``, mean over the batch.

    ``label_smoothing`` takes that much from the label: ``smoothing="uniform"`` spreads it over all C classes, the label
    itself too, as torch does (Szegedy et al. 2016); ``"others"`` over the C - 1 wrong ones, as Kim et al. 2021 write it
    (Eq. 1: 1 - beta on the label, beta/(C-1) on each other class), which is torch's with beta C/(C-1).
    """

    name = "ce"
    needs = ("labels",)
    limits: ClassVar[Mapping[str, Limit]] = {
        "label_smoothing": Limit(kind=float, low=0.0, high=1.0),
        "smoothing": Limit(kind=str, choices=("uniform", "others")),
    }

    def __init__(self, *, label_smoothing: float = 0.0, smoothing: Literal["uniform", "others"] = "uniform") -> None:
        super().__init__()
        hyper = self.read_hyper({"label_smoothing": label_smoothing, "smoothing": smoothing})
        self.label_smoothing: float = hyper["label_smoothing"]
        self.smoothing: str = hyper["smoothing"]
        if self.label_smoothing == 0:
            self.refuse_unused(hyper, "smoothing", where="label_smoothing=0", remedy="label_smoothing above 0")

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        logits_BC = widen(batch.student_logits)
        labels = cast(Tensor, batch.labels) if batch.soft_labels is None else batch.soft_labels
        if self.smoothing == "uniform":
            return functional.cross_entropy(logits_BC, labels, label_smoothing=self.label_smoothing)
        classes = logits_BC.shape[1]
        # torch refuses more than 1, which this is where nearly all is taken from the label.
        spread = self.label_smoothing * classes / max(classes - 1, 1)
        uniform = -functional.log_softmax(logits_BC, dim=1).mean()
        return (1 - spread) * functional.cross_entropy(logits_BC, labels) + spread * uniform

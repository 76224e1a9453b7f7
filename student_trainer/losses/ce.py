"""Cross-entropy with the labels: no teacher, and how a teacher is trained."""

from collections.abc import Mapping
from typing import ClassVar, cast

from torch import Tensor
from torch.nn import functional

from student_trainer.losses.base import DistillLoss, widen
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.hyper import Limit


class CrossEntropy(DistillLoss):
    """``-log softmax(s)[label]``, mean over the batch.

    ``label_smoothing`` is torch's eps, spread over all C classes; Kim et al. 2021 (Eq. 1) put beta/(C-1) on each wrong
    class, which is eps = beta C/(C-1).
    """

    name = "ce"
    needs = ("labels",)
    limits: ClassVar[Mapping[str, Limit]] = {"label_smoothing": Limit(kind=float, low=0.0, high=1.0)}

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = self.read_hyper({"label_smoothing": label_smoothing})["label_smoothing"]

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        logits_BC = widen(batch.student_logits)
        labels = cast(Tensor, batch.labels) if batch.soft_labels is None else batch.soft_labels
        return functional.cross_entropy(logits_BC, labels, label_smoothing=self.label_smoothing)

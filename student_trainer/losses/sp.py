"""SP: match which samples of a batch excite the network alike.

Shape key: B batch, D numbers of a sample (a feature map laid out in a row).
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor

from student_trainer.losses.base import OUTPUTS, DistillLoss, maps_of, outputs_of
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.geometry import unit
from student_trainer.losses.hyper import Limit, MapChoice

NEEDS: Mapping[str, tuple[str, ...]] = {"maps": ("student_maps", "teacher_maps"), **OUTPUTS}
"""What is compared -> fields of the batch."""


class SP(DistillLoss):
    """Tung & Mori 2019: ``|G_s - G_t|^2 / B^2``, G the products of all pairs of samples, each row at length 1.

    Compared are the last feature maps, each sample's laid out in a row, as in the paper and RepDistiller, whose weight
    is the default; with several ``maps`` the losses add up. ``on="features"`` or ``"logits"`` compares those. Channels,
    sizes and widths of both sides may differ. torchdistill divides rows by their sum of absolute values instead, which
    is not done here. A sample that is zero gets no gradient through its own row, where the authors' is 1e11.

    Where the teacher has another number of maps than the student, ``teacher_maps="last"`` compares the last of both.
    """

    name = "sp"
    default_ce_weight = 1.0
    default_kd_weight = 3000.0
    limits: ClassVar[Mapping[str, Limit]] = {
        "on": Limit(kind=str, choices=tuple(NEEDS)),
        "maps": Limit(kind=MapChoice),
        "teacher_maps": Limit(kind=MapChoice),
    }
    needs = NEEDS["maps"]

    def __init__(
        self, *, on: Literal["maps", "features", "logits"] = "maps", maps: str = "last", teacher_maps: str = "same"
    ) -> None:
        super().__init__()
        hyper = self.read_hyper({"on": on, "maps": maps, "teacher_maps": teacher_maps})
        self.on: str = hyper["on"]
        self.maps = hyper["maps"]
        self.teacher_maps = hyper["teacher_maps"]
        self.needs = NEEDS[self.on]
        if self.on != "maps":
            self.refuse_unused(hyper, "maps", "teacher_maps", where=f"on={self.on}", remedy="on=maps")

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        pairs = maps_of(batch) if self.on == "maps" else [outputs_of(batch, on=self.on)]
        errors = [(similarities(student) - similarities(teacher)).square().mean() for student, teacher in pairs]
        return sum(errors[1:], start=errors[0])


def similarities(activations: Tensor) -> Tensor:
    """Products of all pairs of samples, each row at length 1, [B, B]."""
    rows_BD = activations.flatten(1)
    return unit(rows_BD @ rows_BD.T, least=1e-12)

"""SRRL: let the teacher's own classifier read the student's last map as it reads the teacher's.

Shape key: B batch, C classes, D teacher's feature width, H height, W width of the student's map.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.errors import InputError
from student_trainer.losses.announced import least_rows, not_started
from student_trainer.losses.base import DistillLoss, logits_of, widen
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.connectors import as_input, conv_norm
from student_trainer.losses.facts import TrainingFacts
from student_trainer.losses.hyper import Limit, MapChoice

WEIGHT, BIAS = "classifier.weight", "classifier.bias"
"""Constants of the teacher."""


class SRRL(DistillLoss):
    """Yang et al. 2021: ``feature * MSE(h, teacher's features) + regression * MSE(W h + b, teacher's logits)``.

    h is the mean over places of the student's last map after a 1x1 convolution, a batch norm and ReLU; W and b are the
    teacher's classifier, which stays as it is. Both are means over all elements. The authors compare means over places
    of both last maps, so the teacher's pooled features do: no map of the teacher is needed, however many it has. The
    paper writes the feature term as a squared norm, a sum over channels; the code takes their mean. The authors' script
    weighs both terms by 1.
    """

    name = "srrl"
    default_ce_weight = 1.0
    limits: ClassVar[dict[str, Limit]] = {
        "feature": Limit(kind=float, low=0.0),
        "regression": Limit(kind=float, low=0.0),
        "maps": Limit(kind=MapChoice),
    }
    needs = ("student_maps", "teacher_features", "teacher_logits", "teacher_constants")

    def __init__(self, *, feature: float = 1.0, regression: float = 1.0, maps: str = "last") -> None:
        super().__init__()
        hyper = self.read_hyper({"feature": feature, "regression": regression, "maps": maps})
        self.feature: float = hyper["feature"]
        self.regression: float = hyper["regression"]
        self.maps = hyper["maps"]
        if self.feature == self.regression == 0:
            raise InputError("srrl: feature and regression are both 0; at least one must be above 0")
        self.Connectors: nn.Sequential | None = None

    def start(self, facts: TrainingFacts) -> None:
        """The connector, drawn from the seed; InputError where the facts do not suffice."""
        if len(facts.student_maps) != 1 or facts.teacher_width is None:
            raise InputError(
                f"srrl compares one map of the student with the teacher's features: {len(facts.student_maps)} maps and"
                f" a teacher's width of {facts.teacher_width} are announced"
            )
        generator = torch.Generator().manual_seed(facts.seed)
        connector = conv_norm(facts.student_maps[0][0], facts.teacher_width, generator=generator)
        self.Connectors = connector.append(nn.ReLU(inplace=True))
        self.min_rows = least_rows(facts.student_maps)

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        pooled_BD = self._pooled(batch)
        teacher_BD = batch.teacher_features
        if teacher_BD is None or teacher_BD.shape != pooled_BD.shape:
            raise InputError(f"srrl: the teacher's features are not {list(pooled_BD.shape)}, as start() was told")
        of_features = functional.mse_loss(pooled_BD, teacher_BD.detach().to(pooled_BD.dtype))
        logits_BC = _classified(pooled_BD, batch)
        of_logits = functional.mse_loss(logits_BC, logits_of(batch)[1].to(pooled_BD.dtype))
        return self.feature * of_features + self.regression * of_logits

    def _pooled(self, batch: DistillBatch) -> Tensor:
        """The student's map as features of the teacher's width."""
        if self.Connectors is None:
            raise not_started(self.name)
        (student_BCHW, *more), channels = batch.student_maps, self.Connectors[0].in_channels
        if more or student_BCHW.ndim != 4 or student_BCHW.shape[1] != channels:
            found = [list(one.shape) for one in batch.student_maps]
            raise InputError(f"srrl: the student's maps are {found}; start() was told one of {channels} channels")
        joined_BDHW = self.Connectors(as_input(widen(student_BCHW), self.Connectors))
        pooled_BD: Tensor = joined_BDHW.mean(dim=(2, 3))
        return pooled_BD


def _classified(pooled_BD: Tensor, batch: DistillBatch) -> Tensor:
    """What the teacher's classifier says of features."""
    constants = batch.teacher_constants or {}
    if WEIGHT not in constants:
        raise InputError(f"srrl needs the teacher's {WEIGHT}; its constants are {', '.join(constants) or 'none'}")
    weight_CD, bias_C = constants[WEIGHT].detach().to(pooled_BD), constants.get(BIAS)
    expected = (batch.student_logits.shape[1], pooled_BD.shape[1])
    if weight_CD.shape != expected:
        raise InputError(f"srrl: the teacher's {WEIGHT} is {list(weight_CD.shape)}, not {list(expected)}")
    return functional.linear(pooled_BD, weight_CD, None if bias_C is None else bias_C.detach().to(pooled_BD))

"""CC: match how samples correlate, by embeddings that are trained with the student.

Shape key: B batch, D width of what is compared or of its embedding.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from shared.errors import InputError
from student_trainer.losses.base import OUTPUTS, DistillLoss, outputs_of
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.facts import TrainingFacts
from student_trainer.losses.geometry import unit
from student_trainer.losses.hyper import Limit
from student_trainer.losses.trained_pairs import drawn_layer


class CC(DistillLoss):
    """Peng et al. 2019, in the form of their code or of their paper, which differ.

    ``form="consecutive"`` is the code that they sent to RepDistiller, whose weight is the default:
    ``mean over i < B of sum over dims of |e_i| * |e_(i+1)|``, e the student's embedding minus the teacher's; it depends
    on the order of samples in the batch. ``"bilinear"`` and ``"gaussian"`` are the paper's:
    ``|K(s) - K(t)|^2 / B^2`` with K the products of all pairs, or their Gaussian kernel
    ``exp(-2 gamma) * sum over p <= order of (2 gamma)^p / p! * product^p``, which presumes embeddings of length 1:
    ``normalise``. torchdistill does not normalise, and takes the norm, not its square: ``squared=False``.

    Student and teacher pass a linear layer of their own to ``width`` numbers first; both are trained. ``width=0``
    compares features or logits as they are. Without ``normalise`` a Gaussian kernel of features beyond 1,000 leaves
    float32.
    """

    name = "cc"
    default_ce_weight = 1.0
    default_kd_weight = 0.02
    limits: ClassVar[Mapping[str, Limit]] = {
        "form": Limit(kind=str, choices=("consecutive", "gaussian", "bilinear")),
        "width": Limit(kind=int, low=0),
        "on": Limit(kind=str, choices=tuple(OUTPUTS)),
        "gamma": Limit(kind=float, low=0.0, above=True),
        "order": Limit(kind=int, low=1),
        "normalise": Limit(kind=bool),
        "squared": Limit(kind=bool),
    }
    needs = OUTPUTS["features"]
    min_rows = 2

    def __init__(
        self,
        *,
        form: Literal["consecutive", "gaussian", "bilinear"] = "consecutive",
        width: int = 128,
        on: Literal["features", "logits"] = "features",
        gamma: float = 0.4,
        order: int = 2,
        normalise: bool = True,
        squared: bool = True,
    ) -> None:
        super().__init__()
        given = {"form": form, "width": width, "on": on, "gamma": gamma, "order": order}
        hyper = self.read_hyper(given | {"normalise": normalise, "squared": squared})
        self.form: str = hyper["form"]
        self.width: int = hyper["width"]
        self.on: str = hyper["on"]
        self.gamma: float = hyper["gamma"]
        self.order: int = hyper["order"]
        self.normalise: bool = hyper["normalise"]
        self.squared: bool = hyper["squared"]
        unused = {"consecutive": ("gamma", "order", "normalise", "squared"), "bilinear": ("gamma", "order")}
        self.refuse_unused(hyper, *unused.get(self.form, ()), where=f"form={self.form}", remedy="form=gaussian")
        self.needs = OUTPUTS[self.on]
        self.min_rows = 2 if self.form == "consecutive" else 1
        self.embed_s: nn.Sequential | None = None
        self.embed_t: nn.Sequential | None = None

    def start(self, facts: TrainingFacts) -> None:
        """Make both embeddings, from the seed."""
        if self.width == 0:
            return
        widths = (facts.student_width, facts.teacher_width) if self.on == "features" else (facts.classes,) * 2
        generator = torch.Generator().manual_seed(facts.seed)
        layers = []
        for side, width in zip(("student", "teacher"), widths, strict=True):
            if width is None:
                raise InputError(f"cc needs to know the {side}'s feature width: give TrainingFacts({side}_width=...)")
            layers.append(embedding(width, self.width, generator=generator))
        self.embed_s, self.embed_t = layers

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        student_BD, teacher_BD = outputs_of(batch, on=self.on)
        student_BD = self._embedded(student_BD, layer=self.embed_s, side="student")
        teacher_BD = self._embedded(teacher_BD, layer=self.embed_t, side="teacher")
        if self.form == "consecutive":
            return self._consecutive(student_BD, teacher_BD)
        error_BB = self._kernel(student_BD) - self._kernel(teacher_BD)
        if self.squared:
            return error_BB.square().mean()
        norm: Tensor = torch.linalg.vector_norm(error_BB)
        return norm / error_BB.numel()

    def _embedded(self, values_BD: Tensor, *, layer: nn.Sequential | None, side: str) -> Tensor:
        """In the precision of the layer's weights; as they are without one."""
        if self.width == 0:
            return values_BD
        if layer is None:
            raise InputError("cc has no embeddings yet: call loss.start(TrainingFacts(...)) once before training")
        weight = layer.get_parameter("linear.weight")
        if values_BD.shape[1] != weight.shape[1]:
            raise InputError(f"cc: {side} {self.on} are {values_BD.shape[1]} wide; start() was told {weight.shape[1]}")
        embedded_BD: Tensor = layer(values_BD.to(weight.dtype))
        return embedded_BD

    def _consecutive(self, student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
        if student_BD.shape != teacher_BD.shape:
            raise InputError(
                f"cc: {self.on} of {student_BD.shape[1]} and {teacher_BD.shape[1]} numbers cannot be subtracted;"
                " give width=128, or another form"
            )
        return errors_of_neighbours(student_BD, teacher_BD)

    def _kernel(self, points_BD: Tensor) -> Tensor:
        """Correlation of all pairs, [B, B]."""
        if self.normalise:
            points_BD = unit(points_BD, least=1e-12)
        products_BB = points_BD @ points_BD.T
        if self.form == "bilinear":
            return products_BB
        kernel_BB = torch.ones_like(products_BB)
        for power in range(self.order, 0, -1):
            kernel_BB = 1 + 2 * self.gamma / power * products_BB * kernel_BB
        return math.exp(-2 * self.gamma) * kernel_BB


def embedding(width_in: int, width_out: int, *, generator: torch.Generator) -> nn.Sequential:
    """One linear layer, under the authors' name for it."""
    return nn.Sequential(OrderedDict(linear=drawn_layer(nn.Linear, width_in, width_out, generator=generator)))


def errors_of_neighbours(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """``|e_i| . |e_(i+1)|``, mean over i < B, with e the differences of both sides; scalar, of two samples at least."""
    error_BD = (student_BD - teacher_BD).abs()
    return (error_BD[:-1] * error_BD[1:]).sum(dim=1).mean()

"""CRD: tell each sample's teacher embedding from those of many other samples, and the other way round.

Shape key: B batch, N training rows, K negatives of a sample, D width of student, teacher or embedding.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.errors import InputError
from student_trainer.losses.announced import announced_widths
from student_trainer.losses.base import OUTPUTS, DistillLoss, outputs_of
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.drawing import Drawing
from student_trainer.losses.facts import TrainingFacts
from student_trainer.losses.hyper import Limit
from student_trainer.losses.negatives import Negatives, occurrences
from student_trainer.losses.trained_pairs import drawn_layer

EPS = 1e-7
"""The authors' guard beside K/N."""


class CRD(Drawing, DistillLoss):
    """Tian et al. 2020: noise-contrastive estimation of which student and teacher embeddings are of one sample.

    Both sides pass a linear layer of their own to ``width`` numbers, at length 1; both layers are trained. With
    ``p = exp(a.m / temperature) / Z`` of an embedding a and a remembered embedding m of the other side,
    ``-log(p / (p + K/N)) - sum over K negatives of log((K/N) / (p + K/N))``, mean over the batch, is added up for
    student against remembered teachers and teacher against remembered students. The memories hold N training rows and
    move by ``momentum`` after each loss; the Zs are set by the first batch. Negatives are ``negatives`` rows of other
    classes, with repetition where a class leaves fewer (the authors' "exact" mode; K counts repetitions).
    ``on="logits"`` embeds logits, as Xu et al. 2025 do where a teacher gives nothing else.

    Computed on all N rows at once, weighted by how often each was drawn: 130 times less time than gathering
    [B, K, width] on a CPU at N = 1,600, 13 times at 50,000, equal near 300,000 (K = 16,384).
    """

    name = "crd"
    default_ce_weight = 1.0
    default_kd_weight = 0.8
    limits: ClassVar[Mapping[str, Limit]] = {
        "negatives": Limit(kind=int, low=1),
        "temperature": Limit(kind=float, low=0.0, above=True),
        "momentum": Limit(kind=float, low=0.0, high=1.0),
        "width": Limit(kind=int, low=1),
        "on": Limit(kind=str, choices=tuple(OUTPUTS)),
    }
    needs = (*OUTPUTS["features"], "rows")
    memory_student: Tensor
    memory_teacher: Tensor

    def __init__(
        self,
        *,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        width: int = 128,
        on: Literal["features", "logits"] = "features",
    ) -> None:
        super().__init__()
        given = {"negatives": negatives, "temperature": temperature, "momentum": momentum, "width": width, "on": on}
        hyper = self.read_hyper(given)
        self.count: int = hyper["negatives"]
        self.temperature: float = hyper["temperature"]
        self.momentum: float = hyper["momentum"]
        self.width: int = hyper["width"]
        self.on: str = hyper["on"]
        self.needs = (*OUTPUTS[self.on], "rows")
        self.negatives: Negatives | None = None
        self._log_z: dict[str, float] = {}

    def start(self, facts: TrainingFacts) -> None:
        """Embeddings and memories, drawn from the seed; InputError where the facts do not suffice."""
        super().start(facts)
        on_logits = self.on == "logits"
        widths = (facts.classes, facts.classes) if on_logits else announced_widths(facts, name=self.name)
        generator = torch.Generator().manual_seed(self.next_seed())
        self.negatives = Negatives(rows_N=facts.rows, labels_N=facts.labels, count=self.count)
        self.embed_student, self.embed_teacher = (
            drawn_layer(nn.Linear, width, self.width, generator=generator) for width in widths
        )
        bound = math.sqrt(3 / self.width)
        for name in ("memory_student", "memory_teacher"):
            memory_ND = torch.empty(len(facts.rows), self.width).uniform_(-bound, bound, generator=generator)
            self.register_buffer(name, memory_ND)
        self._log_z = {}

    def get_extra_state(self) -> dict[str, Any]:
        """The draws made, and log Z of each side once the first batch has set it."""
        return super().get_extra_state() | {"log_z": dict(self._log_z)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue after ``state``."""
        super().set_extra_state(state)
        self._log_z = dict(state["log_z"])

    def value(self, batch: DistillBatch, *, contrast: Tensor | None = None) -> Tensor:
        """Scalar. ``contrast`` int64 [B, 1 + K]: positions in ``facts.rows`` of each sample and its negatives."""
        if self.negatives is None:
            raise InputError("crd has no memory yet: call loss.start(TrainingFacts(...)) once before training")
        student_BD, teacher_BD = outputs_of(batch, on=self.on)
        student_BD = self._embedded(student_BD, layer=self.embed_student, side="student")
        teacher_BD = self._embedded(teacher_BD, layer=self.embed_teacher, side="teacher")
        positions_B = self.negatives.positions(cast(Tensor, batch.rows)).to(student_BD.device)
        if contrast is None:
            counts_BN = self.negatives.draw(positions_B, seed=self.next_seed())
        else:
            counts_BN = occurrences(contrast[:, 1:].to(student_BD.device), rows=len(self.memory_student))
        counts_BN = counts_BN.to(student_BD.dtype)
        total = self._side(student_BD, self.memory_teacher, positions_B, counts_BN=counts_BN, side="student")
        total = total + self._side(teacher_BD, self.memory_student, positions_B, counts_BN=counts_BN, side="teacher")
        if self.training and torch.is_grad_enabled():
            self._remember(self.memory_student, student_BD, positions_B)
            self._remember(self.memory_teacher, teacher_BD, positions_B)
        return total

    def _embedded(self, values_BD: Tensor, *, layer: nn.Linear, side: str) -> Tensor:
        """Embeddings [B, D] at length 1, in the precision of the layer's weights."""
        if values_BD.shape[1] != layer.in_features:
            raise InputError(
                f"crd: {side} {self.on} are {values_BD.shape[1]} wide; start() was told {layer.in_features}"
            )
        return functional.normalize(layer(values_BD.to(layer.weight.dtype)), dim=1)

    def _side(
        self, embedded_BD: Tensor, memory_ND: Tensor, positions_B: Tensor, *, counts_BN: Tensor, side: str
    ) -> Tensor:
        """The loss of one side's embeddings against the memory of the other."""
        noise = self.count / len(memory_ND)
        # A copy: the memory moves before the backward pass, which needs it as it was.
        scores_BN = embedded_BD @ memory_ND.clone().T / self.temperature
        own_B1 = scores_BN.gather(1, positions_B[:, None])
        if side not in self._log_z:
            self._log_z[side] = self._partition(scores_BN.detach(), own_B1.detach(), counts_BN)
        log_bound = math.log(noise + EPS) + self._log_z[side]
        is_own = functional.logsigmoid(own_B1 - log_bound).sum()
        not_other_BN = math.log(noise / (noise + EPS)) + functional.logsigmoid(log_bound - scores_BN)
        return -(is_own + (counts_BN * not_other_BN).sum()) / len(embedded_BD)

    def _partition(self, scores_BN: Tensor, own_B1: Tensor, counts_BN: Tensor) -> float:
        """log Z: of N times the mean of exp(score) over all positives and negatives."""
        drawn_BN = scores_BN + counts_BN.log()
        mean = torch.cat([own_B1, drawn_BN], dim=1).flatten().logsumexp(dim=0) - math.log(
            len(scores_BN) * (1 + self.count)
        )
        return float(mean) + math.log(scores_BN.shape[1])

    @torch.no_grad()
    def _remember(self, memory_ND: Tensor, embedded_BD: Tensor, positions_B: Tensor) -> None:
        """Move the batch's rows of the memory towards its embeddings, at length 1."""
        moved_BD = self.momentum * memory_ND[positions_B] + (1 - self.momentum) * embedded_BD
        memory_ND[positions_B] = functional.normalize(moved_BD, dim=1)

"""AT: match where a network's maps are large, channels taken together.

Shape key: B batch, C channels, H height, W width, P places of a map (H x W).
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from shared.errors import InputError
from student_trainer.losses.base import DistillLoss, maps_of, widen
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.facts import TrainingFacts
from student_trainer.losses.hyper import Limit, MapChoice
from student_trainer.losses.map_sizes import at_one_size

SIDES: Mapping[str, str] = {"attention": "teacher_attention", "maps": "teacher_maps"}
"""What is read of the teacher -> the field of a batch."""
OTHER = {"teacher_attention": "teacher_maps", "teacher_maps": "teacher_attention"}


class AT(DistillLoss):
    """Zagoruyko and Komodakis 2017: ``mean((a(f) - a(f_t))^2)`` over batch and places, summed over maps.

    ``a(f)`` is ``mean over channels of |f|^p``, divided by its length over places. ``form="code"`` is the authors' code
    and everyone's since (weight 1000 beside cross-entropy, in RepDistiller); ``form="paper"`` is equation 2 without its
    factor beta / 2: the length of the difference, not squared, mean over the batch. RepDistiller omits the absolute
    value, which matters for odd p only.

    The larger map is average-pooled to the size of the smaller before its attention is taken. Of the teacher, outputs
    ``attention.K`` (p = 2 only) or ``maps.K`` are read, as ``reads`` says: "either" takes attention where both or
    neither can be had, as it is smaller by the number of channels. Attention cannot be pooled: a student map smaller
    than it needs the teacher's map.
    """

    name = "at"
    default_ce_weight = 1.0
    default_kd_weight = 1000.0
    limits: ClassVar[Mapping[str, Limit]] = {
        "maps": Limit(kind=MapChoice),
        "teacher_maps": Limit(kind=MapChoice),
        "p": Limit(kind=int, low=1, high=6),
        "form": Limit(kind=str, choices=("code", "paper")),
        "reads": Limit(kind=str, choices=("either", *SIDES)),
    }

    def __init__(
        self,
        *,
        maps: str = "1-",
        teacher_maps: str = "same",
        p: int = 2,
        form: Literal["code", "paper"] = "code",
        reads: Literal["either", "attention", "maps"] = "either",
    ) -> None:
        super().__init__()
        given = {"maps": maps, "teacher_maps": teacher_maps, "p": p, "form": form, "reads": reads}
        hyper = self.read_hyper(given)
        self.maps, self.teacher_maps = hyper["maps"], hyper["teacher_maps"]
        self.p: int = hyper["p"]
        self.form: str = hyper["form"]
        if hyper["reads"] == "attention" and self.p != 2:
            raise InputError(f"at: the teacher's attention is that of p=2; p={self.p} needs reads=maps")
        self.reads: str = "maps" if self.p != 2 else hyper["reads"]
        self._sizes: tuple[tuple[int, int], ...] = ()
        self._read("teacher_attention" if self.reads == "attention" else "teacher_maps")

    def _read(self, field: str) -> None:
        self.needs = ("student_maps", field)

    def teacher_outputs(self, *, student_maps: int, offered: Collection[str]) -> dict[str, tuple[str, ...]]:
        """Attention or maps; `needs` says which from here on."""
        if self.reads == "either":
            self._read("teacher_maps")
            maps = super().teacher_outputs(student_maps=student_maps, offered=offered)["teacher_maps"]
            self._read("teacher_attention")
            attention = super().teacher_outputs(student_maps=student_maps, offered=offered)["teacher_attention"]
            if set(maps) <= set(offered) and not set(attention) <= set(offered):
                self._read("teacher_maps")
        return super().teacher_outputs(student_maps=student_maps, offered=offered)

    def start(self, facts: TrainingFacts) -> None:
        """Nothing is trained; InputError where a student map is smaller than the teacher's attention."""
        self._sizes = facts.teacher_attention
        if "teacher_attention" in self.needs:
            for place, (own, other) in enumerate(zip(facts.student_maps, self._sizes, strict=False)):
                check_sizes(own[1:], other, place=place)

    def forward(self, batch: DistillBatch, **options: Any) -> Tensor:
        """As of every loss; the teacher's attention or its maps, whichever the batch has."""
        (_, field) = self.needs
        if self.reads == "either" and not getattr(batch, field) and getattr(batch, OTHER[field]):
            self._read(OTHER[field])
        return super().forward(batch, **options)

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        pairs = self._with_attention(batch) if "teacher_attention" in self.needs else self._with_maps(batch)
        return torch.stack([self._error(*pair) for pair in pairs]).sum()

    def _error(self, student_BP: Tensor, teacher_BP: Tensor) -> Tensor:
        difference_BP = student_BP - teacher_BP
        return difference_BP.norm(dim=1).mean() if self.form == "paper" else difference_BP.square().mean()

    def _with_maps(self, batch: DistillBatch) -> list[tuple[Tensor, Tensor]]:
        """(student, teacher) attention, pair by pair."""
        pairs = [at_one_size(*pair) for pair in maps_of(batch)]
        return [(self._attention(student), self._attention(teacher)) for student, teacher in pairs]

    def _with_attention(self, batch: DistillBatch) -> list[tuple[Tensor, Tensor]]:
        students, teachers = batch.student_maps, batch.teacher_attention
        if len(students) != len(teachers):
            raise InputError(
                f"the batch has {len(students)} maps of the student and {len(teachers)} teacher attentions"
            )
        pairs = []
        for place, (student_BCHW, teacher_BP) in enumerate(zip(students, teachers, strict=True)):
            if len(student_BCHW) != len(teacher_BP):
                raise InputError(
                    f"a map holds {len(student_BCHW)} samples and the teacher's attention {len(teacher_BP)}"
                )
            size = self._sizes[place] if self._sizes else square(teacher_BP, like=student_BCHW)
            check_sizes(student_BCHW.shape[2:], size, place=place)
            wide_BCHW = widen(student_BCHW)
            if tuple(wide_BCHW.shape[2:]) != tuple(size):
                wide_BCHW = functional.adaptive_avg_pool2d(wide_BCHW, size)
            pairs.append((self._attention(wide_BCHW), teacher_BP.detach().to(wide_BCHW.dtype)))
        return pairs

    def _attention(self, map_BCHW: Tensor) -> Tensor:
        """[B, P] at length 1, or 0 of a map of zeros; code and paper differ by a factor that normalising removes."""
        power = map_BCHW.square() if self.p == 2 else map_BCHW.abs().pow(self.p)
        mean_BP = power.mean(dim=1).flatten(1)
        # A power of two changes no digit, keeps the squares of large numbers in range, and carries no gradient.
        _, exponent_B1 = torch.frexp(mean_BP.detach().amax(dim=1, keepdim=True).clamp(min=1))
        return functional.normalize(torch.ldexp(mean_BP, -exponent_B1), dim=1)


def check_sizes(student: Sequence[int], teacher: Sequence[int], *, place: int) -> None:
    """InputError where a student map (H, W) is smaller than the teacher's attention."""
    if student[0] < teacher[0] or student[1] < teacher[1]:
        raise InputError(
            f"at: of the maps compared, number {place} (from 0) is {student[0]}x{student[1]} of the student and"
            f" {teacher[0]}x{teacher[1]} of the teacher, whose attention cannot be made smaller: use reads=maps, with"
            " maps.K of the teacher, or choose others with maps and teacher_maps"
        )


def square(attention_BP: Tensor, *, like: Tensor) -> tuple[int, int]:
    """(H, W) of an attention that nothing was said about: the student's, else a square."""
    places, (height, width) = attention_BP.shape[1], like.shape[2:]
    side = math.isqrt(places)
    if places == height * width:
        return height, width
    if side * side != places:
        raise InputError(
            f"at: an attention of {places} places is no square: say its size in TrainingFacts.teacher_attention"
        )
    return side, side

"""What every loss has: a name, needs, weights, hyper-parameters with ranges, and two hooks of the training loop.

A new loss is one new file in this folder with one subclass of `DistillLoss`; `registry` finds it by itself.
Shape key: B batch, C classes, D feature width.
"""

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from shared.errors import InputError
from shared.outputs import ATTENTION, CONSTANTS, INPUT_GRAD, MAPS, PREACTS, map_number
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.facts import TrainingFacts
from student_trainer.losses.hyper import Limit, MapChoice
from student_trainer.losses.mix import Mix

OUTPUTS_OF_FIELDS: Mapping[str, tuple[str, ...]] = {
    "teacher_logits": ("logits",),
    "teacher_features": ("features",),
    "teacher_input_grad": (INPUT_GRAD,),
    "teacher_constants": (CONSTANTS,),
}
"""Field of a batch that a loss may need -> the teacher's outputs that fill it."""
NUMBERED_FIELDS: Mapping[str, str] = {"teacher_maps": MAPS, "teacher_attention": ATTENTION}
"""The same where the outputs are numbered: what their names begin with."""
REMEDIES: Mapping[str, str] = {
    "mix": "before each step call mix = loss.mix(count, size=(H, W)), show the student mix.images(images), and give"
    " mix=mix.pair in the batch",
    "rows": "give the data set's rows of the batch, as CachedTeacherLoader does",
    "student_features": "give the input of the student's last linear layer",
    "student_maps": "give the feature maps that the loss compares, in their order",
    "teacher_maps": "gather those outputs maps.K from a cache that holds them, in the order of the student's",
    "teacher_attention": "gather those outputs attention.K from a cache that holds them",
    "student_inputs": "give the images as the student saw them, requiring gradients",
    "teacher_input_grad": "gather outputs=('input_grad',) from a cache that holds it",
    "teacher_constants": "give constants of the CachedTeacherLoader, or those of the CacheReader as tensors",
    "teacher_features": "gather outputs=('logits', 'features') from a cache that holds them",
}
"""How a field that a loss needs comes into a batch, where the name alone does not say it."""


class DistillLoss(nn.Module):
    """A pure soft term: ``loss(batch)`` is a scalar; the trainer adds ``ce_weight * CE`` to ``kd_weight`` times it."""

    name: ClassVar[str]
    """The name in `LOSSES`."""
    limits: ClassVar[Mapping[str, Limit]] = {}
    """Range of every hyper-parameter; their defaults are those of ``__init__``."""
    default_ce_weight: ClassVar[float] = 0.0
    """Weight of cross-entropy beside this loss, as its authors use it."""
    default_kd_weight: ClassVar[float] = 1.0
    """Weight of this loss, as its authors use it."""
    needs: tuple[str, ...] = ("teacher_logits",)
    """Fields of `DistillBatch`, beside the student's logits, that must not be None."""
    maps: str = "last"
    """Which feature maps of the student it compares, a `MapChoice`: a hyper-parameter of losses that need any."""
    teacher_maps: str = "same"
    """Which of the teacher's, a `MapChoice`: a hyper-parameter of the same losses. ``same``: the student's numbers."""
    before_activation: bool = False
    """Whether its maps are those before their last activation."""
    min_rows: int = 1
    """Smallest batch for which the loss is defined."""
    settings: Mapping[str, Any] = MappingProxyType({})
    """Every hyper-parameter with its value; set by `build_loss`."""
    value: Callable[..., Tensor]
    """The loss itself, a method of every subclass: ``value(batch)``, where the batch has all that is needed."""
    finishes: bool = False
    """Whether `finish` has something to do after training."""
    prepares: bool = False
    """Whether `prepare` has something to do before training."""
    samples_per_class: int | None = None
    """How many samples of each class a batch should hold; None: batches are drawn from all rows alike."""
    ce_factor: float = 1.0
    """What cross-entropy's weight is multiplied by in this epoch; `begin_epoch` may set it."""
    kd_factor: float = 1.0
    """What this loss's own weight is multiplied by in this epoch; `begin_epoch` may set it."""

    @classmethod
    def read_hyper(cls, hyper: Mapping[str, object]) -> dict[str, Any]:
        """Hyper-parameters checked and converted, option texts too; InputError names the valid ones with ranges."""
        read: dict[str, Any] = {}
        for name, value in hyper.items():
            limit = cls.limits.get(name)
            if limit is None:
                raise InputError(f"{cls.name} has no hyper-parameter {name!r}; {cls.describe()}")
            try:
                read[name] = limit.read(value)
            except ValueError:
                raise InputError(f"{cls.name}: {name}={value!r} is not valid; {cls.describe()}") from None
        return read

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Default of every hyper-parameter."""
        parameters = inspect.signature(cls.__init__).parameters
        return {name: parameters[name].default for name in cls.limits}

    @classmethod
    def describe(cls) -> str:
        """The hyper-parameters with range and default, on one line."""
        if not cls.limits:
            return "it has none"
        known = (f"{name} ({limit}; default {cls.defaults()[name]})" for name, limit in cls.limits.items())
        return "it has " + ", ".join(known)

    def refuse_unused(self, hyper: Mapping[str, Any], *names: str, where: str, remedy: str) -> None:
        """InputError where one of ``names`` is not at its default: ``where`` tells why none of them does anything."""
        for name in names:
            if name in self.limits and hyper[name] != self.defaults()[name]:
                raise InputError(f"{self.name}: {name} has no effect with {where}; leave it out, or use {remedy}")

    def forward(self, batch: DistillBatch, **options: Any) -> Tensor:
        """The loss of a batch, a scalar in float32 or better; InputError where the batch lacks what the loss needs."""
        for name in self.needs:
            given = self._labels(batch) if name == "labels" else getattr(batch, name)
            if given is None or (isinstance(given, tuple) and not given):
                remedy = f"; {REMEDIES[name]}" if name in REMEDIES else ""
                raise InputError(f"loss {self.name} needs {name}, which this batch does not have{remedy}")
        if len(batch.student_logits) < self.min_rows:
            found = len(batch.student_logits)
            raise InputError(
                f"loss {self.name} needs batches of at least {self.min_rows} samples; this one has {found}"
            )
        # Under a user's autocast, matrix products would fall to half precision.
        with torch.autocast(batch.student_logits.device.type, enabled=False):
            return self.value(batch, **options)

    def _labels(self, batch: DistillBatch) -> Tensor | None:
        """Labels, or the distributions in their place; InputError for rows without a label, as uploads may be."""
        labels_B = batch.labels
        if batch.soft_labels is not None or labels_B is None:
            return batch.soft_labels
        # Elsewhere than on the CPU a look at the values would make every step wait for the device.
        if labels_B.device.type == "cpu" and (labels_B < 0).any():
            raise InputError(
                f"loss {self.name} needs labels, and {int((labels_B < 0).sum())} of {len(labels_B)} samples have none"
                " (-1): leave those rows out, or choose a loss that needs none"
            )
        return labels_B

    @property
    def mixes(self) -> bool:
        """Whether it is given mixed images, see `mix`."""
        return type(self).mix is not DistillLoss.mix

    def student_map_names(self, count: int) -> tuple[str, ...]:
        """Which `DistillBatch.student_maps` holds, of a student that has ``count``: ``maps.K`` or ``preacts.K``."""
        prefix = PREACTS if self.before_activation else MAPS
        return tuple(f"{prefix}{number}" for number in MapChoice(self.maps).numbers(count))

    def teacher_outputs(self, *, student_maps: int, offered: Collection[str]) -> dict[str, tuple[str, ...]]:
        """Field of a batch -> the teacher's outputs that fill it, in order; empty where no teacher is asked.

        ``student_maps`` is how many maps the student has; ``offered`` names the outputs that can be had, for a loss
        that can do with one or another. What it needs is named even where it is not offered.
        """
        found: dict[str, tuple[str, ...]] = {}
        for need in self.needs:
            if need in OUTPUTS_OF_FIELDS:
                found[need] = OUTPUTS_OF_FIELDS[need]
            elif need in NUMBERED_FIELDS:
                own = MapChoice(self.maps).numbers(student_maps)
                choice = MapChoice(self.teacher_maps)
                numbers = choice.of_teacher(own, beside=self.maps, highest=highest_map(offered))
                before = self.before_activation and need == "teacher_maps"
                prefix = PREACTS if before else NUMBERED_FIELDS[need]
                found[need] = tuple(f"{prefix}{number}" for number in numbers)
        return found

    def start(self, facts: TrainingFacts) -> None:
        """Called once before training: draw from ``facts.seed``, make parameters and buffers of the shapes announced.

        Parameters made here are trained with the student's; all that `state_dict` holds is kept for ``--resume``.
        """

    def prepare(self, answers: Callable[[int], Iterable[DistillBatch]]) -> None:
        """Called once after `start` where `prepares`: learn from the teacher alone, before there is a student.

        ``answers(epoch)`` gives all answered rows once, in batches whose ``student_logits`` are zeros [B, C].
        """

    def begin_epoch(self, epoch: int) -> None:
        """Called before each epoch, from 0: a loss with stages or a warm-up sets its factors here."""

    def train_alone(self, epoch: int, *, epochs: int) -> None:
        """For `begin_epoch`: this loss alone in the first ``epochs``, then cross-entropy alone; 0: both all along."""
        if epochs > 0:
            self.ce_factor, self.kd_factor = (0.0, 1.0) if epoch < epochs else (1.0, 0.0)

    def mix(self, count: int, *, size: tuple[int, int]) -> Mix | None:
        """Called before each step with the batch's size and that of its images (H, W): how to mix them, on the CPU.

        Where not None, the student sees what `Mix.images` makes of the images, the batch's ``mix`` is `Mix.pair`, and
        the teacher's answers in it are those of the unmixed images.
        """
        return None

    def check_head(self, head: nn.Module) -> None:
        """Called before training where `finishes`: InputError where `finish` could not work on ``head``."""

    def finish(self, head: nn.Module, batch: DistillBatch) -> None:
        """Called once after training where `finishes`: may change ``head``, the student's last layer, in place.

        ``batch`` holds all answered training rows with the trained student's logits in evaluation mode.
        """


def filled_fields(fields: Mapping[str, Sequence[str]], *, answers: Mapping[str, Tensor]) -> dict[str, object]:
    """Fields of a batch with a teacher's answers in them, as `DistillLoss.teacher_outputs` names them; no constants."""
    return {
        field: tuple(answers[name] for name in names) if field in NUMBERED_FIELDS else answers[names[0]]
        for field, names in fields.items()
        if field != "teacher_constants"
    }


def output_names(fields: Mapping[str, Sequence[str]]) -> list[str]:
    """The outputs in ``fields``, as `DistillLoss.teacher_outputs` gives them, each once."""
    return list(dict.fromkeys(name for names in fields.values() for name in names))


def highest_map(offered: Iterable[str]) -> int | None:
    """The highest number of a map, before its activation or as attention too, among a teacher's outputs."""
    return max((number for name in offered if (number := map_number(name)) is not None), default=None)


def maps_of(batch: DistillBatch) -> list[tuple[Tensor, Tensor]]:
    """(student, teacher) feature maps, pair by pair, each [B, C, H, W] with its own C, H, W; dtypes as `logits_of`."""
    student, teacher = batch.student_maps, batch.teacher_maps
    if len(student) != len(teacher):
        raise InputError(f"the batch has {len(student)} maps of the student and {len(teacher)} of the teacher")
    for one in (*student, *teacher):
        if one.ndim != 4 or len(one) != len(batch.student_logits):
            raise InputError(f"feature maps are [B, C, H, W] of the batch's samples; one is {list(one.shape)}")
    wide = [widen(one) for one in student]
    return [(own, other.detach().to(own.dtype)) for own, other in zip(wide, teacher, strict=True)]


def logits_of(batch: DistillBatch) -> tuple[Tensor, Tensor]:
    """(student, teacher) logits [B, C] in one dtype, float32 or better; no gradient reaches the teacher."""
    if batch.teacher_logits is None:
        raise InputError("this batch has no teacher_logits")
    student_BC, teacher_BC = batch.student_logits, batch.teacher_logits
    if student_BC.shape != teacher_BC.shape:
        raise InputError(
            f"student logits {list(student_BC.shape)} and teacher logits {list(teacher_BC.shape)} differ in shape"
        )
    student_BC = widen(student_BC)
    return student_BC, teacher_BC.detach().to(student_BC.dtype)


def features_of(batch: DistillBatch) -> tuple[Tensor, Tensor]:
    """(student, teacher) features [B, D], each with its own D; one dtype, and no gradient to the teacher, as logits."""
    if batch.student_features is None or batch.teacher_features is None:
        raise InputError("this batch lacks student_features or teacher_features")
    student_BD, teacher_BD = batch.student_features, batch.teacher_features
    if student_BD.ndim != 2 or teacher_BD.ndim != 2 or len(student_BD) != len(teacher_BD):
        raise InputError(
            f"student features {list(student_BD.shape)} and teacher features {list(teacher_BD.shape)}"
            " are not [B, D] of the same samples"
        )
    student_BD = widen(student_BD)
    return student_BD, teacher_BD.detach().to(student_BD.dtype)


OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "features": ("student_features", "teacher_features"),
    "logits": ("teacher_logits",),
}
"""What a loss that compares either outputs ``on`` needs of a batch."""


def outputs_of(batch: DistillBatch, *, on: str) -> tuple[Tensor, Tensor]:
    """(student, teacher) `features_of` or `logits_of` the batch, by a key of `OUTPUTS`."""
    return features_of(batch) if on == "features" else logits_of(batch)


def onehot_of(batch: DistillBatch) -> Tensor:
    """The labels as the student's logits would have them, [B, C], float32 or better; of mixed images, distributions."""
    student_BC = widen(batch.student_logits)
    if batch.soft_labels is not None:
        return batch.soft_labels.to(student_BC.dtype)
    if batch.labels is None:
        raise InputError("this batch has no labels")
    return torch.zeros_like(student_BC).scatter_(1, batch.labels[:, None], 1.0)


def widen(values: Tensor) -> Tensor:
    """``values`` in float32 where they are narrower: losses never compute in half precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))

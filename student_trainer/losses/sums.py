"""Sums of losses, such as ``fitnets+ckd``: each with a weight of its own, all from one batch.

Shape key: B batch.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from shared.errors import InputError
from student_trainer.losses.base import DistillLoss
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.facts import TrainingFacts

logger = logging.getLogger(__name__)

WEIGHT = "weight"
"""Hyper-parameter that every loss of a sum has besides its own: ``fitnets.weight``."""
NUMBERED = ("student_maps", "teacher_maps", "teacher_attention")
"""Fields of a batch of which each loss gets its own part."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One loss of a sum."""

    loss: DistillLoss
    weight: float


class LossSum(DistillLoss):
    """``sum of weight * loss``; a weight is by default what the loss's authors give it beside cross-entropy.

    The sum's own default weights are 1 for it, and for cross-entropy the largest that one of its losses asks for: 0
    where one of them brings a term for the labels (ckd). A loss of weight 0 is not there. While a loss trains alone (ab
    in its first epochs) the others wait, as cross-entropy does.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        super().__init__()
        self.name = "+".join(part.loss.name for part in parts)  # type: ignore[misc]  # a sum is no class of its own
        counting = [part for part in parts if part.weight > 0]
        if not counting:
            raise InputError(f"loss {self.name}: all weights are 0; at least one must be above 0")
        self._losses = nn.ModuleList([part.loss for part in counting])
        self._weights = [part.weight for part in counting]
        losses = self.losses
        mixing = [loss.name for loss in losses if loss.mixes]
        if mixing:
            raise InputError(f"loss {mixing[0]} mixes images, and the answers are of unmixed ones: use it alone")
        # dkd needs labels and cross-entropy beside them, ckd brings its own.
        labelled = any("labels" in loss.needs and loss.default_ce_weight == 0 for loss in losses)
        self.default_ce_weight = 0.0 if labelled else max(loss.default_ce_weight for loss in losses)  # type: ignore[misc]
        self._gather_needs()
        self.min_rows = max(loss.min_rows for loss in losses)
        self.finishes = any(loss.finishes for loss in losses)
        self._warn_of_offsets()
        self.prepares = any(loss.prepares for loss in losses)
        self.samples_per_class = self._samples_per_class()
        self._fields: list[dict[str, tuple[int, ...]]] = []
        self._now = [1.0] * len(losses)

    def _samples_per_class(self) -> int | None:
        asked = {loss.name: loss.samples_per_class for loss in self.losses if loss.samples_per_class is not None}
        if len(set(asked.values())) > 1:
            raise InputError(f"loss {self.name}: per_class differs ({asked}); batches are drawn in one way")
        return next(iter(asked.values()), None)

    def _warn_of_offsets(self) -> None:
        for finishing in (loss for loss in self.losses if loss.finishes):
            others = [loss.name for loss in self.losses if loss is not finishing and "teacher_logits" in loss.needs]
            if others:
                logger.warning(
                    "after training %s sets the offset of the logits by its own target, which %s trained, too",
                    finishing.name,
                    ", ".join(others),
                )

    @property
    def losses(self) -> list[DistillLoss]:
        """Those summed, in the order of the name."""
        return [loss for loss in self._losses if isinstance(loss, DistillLoss)]

    def student_map_names(self, count: int) -> tuple[str, ...]:
        """Those that any of the losses compares."""
        return _union(_compared(loss, count) for loss in self.losses)

    def teacher_outputs(self, *, student_maps: int, offered: Collection[str]) -> dict[str, tuple[str, ...]]:
        """Those that any of the losses needs; which of a field is whose is remembered."""
        each = [loss.teacher_outputs(student_maps=student_maps, offered=offered) for loss in self.losses]
        # One that can do with either of two outputs has made up its mind.
        self._gather_needs()
        asked = {field: _union(one.get(field, ()) for one in each) for field in _union(each)}
        own = [
            one | {"student_maps": _compared(loss, student_maps)} for loss, one in zip(self.losses, each, strict=True)
        ]
        all_names = asked | {"student_maps": self.student_map_names(student_maps)}
        self._fields = [
            {field: tuple(all_names[field].index(name) for name in one[field]) for field in NUMBERED if one.get(field)}
            for one in own
        ]
        return asked

    def _gather_needs(self) -> None:
        self.needs = _union(loss.needs for loss in self.losses)

    def start(self, facts: TrainingFacts) -> None:
        """Start each with the facts that are about it, and a seed of its own."""
        if not self._fields and sum("student_maps" in loss.needs for loss in self.losses) > 1:
            raise InputError(
                f"loss {self.name} must know whose maps are whose: call loss.teacher_outputs(...) before start, or let"
                " CachedTeacherLoader.for_loss do both"
            )
        for place, (loss, fields) in enumerate(zip(self.losses, self._chosen(), strict=True)):
            own: dict[str, Any] = {field: _picked(getattr(facts, field), places) for field, places in fields.items()}
            loss.start(replace(facts, seed=facts.seed + place, **own))
        self.min_rows = max(loss.min_rows for loss in self.losses)

    def prepare(self, answers: Callable[[int], Iterable[DistillBatch]]) -> None:
        """Prepare each that needs it."""
        for loss, fields in zip(self.losses, self._chosen(), strict=True):
            if loss.prepares:
                loss.prepare(lambda epoch, fields=fields: (_part(batch, fields) for batch in answers(epoch)))  # type: ignore[misc]

    def begin_epoch(self, epoch: int) -> None:
        """Cross-entropy and the other losses are held back as long as one asks for the stage."""
        for loss in self.losses:
            loss.begin_epoch(epoch)
        self.ce_factor = min(loss.ce_factor for loss in self.losses)
        alone = [loss.ce_factor == 0 and loss.kd_factor > 0 for loss in self.losses]
        self._now = [
            loss.kd_factor if own or not any(alone) else 0.0 for loss, own in zip(self.losses, alone, strict=True)
        ]
        self.kd_factor = float(any(self._now))

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        total = torch.zeros((), device=batch.student_logits.device)
        for loss, weight, now, fields in zip(self.losses, self._weights, self._now, self._chosen(), strict=True):
            if now > 0:
                total = total + weight * now * loss(_part(batch, fields))
        return total

    def check_head(self, head: nn.Module) -> None:
        """Ask each that finishes."""
        for loss in self.losses:
            if loss.finishes:
                loss.check_head(head)

    def finish(self, head: nn.Module, batch: DistillBatch) -> None:
        """Let each that finishes do so."""
        for loss in self.losses:
            if loss.finishes:
                loss.finish(head, batch)

    def _chosen(self) -> list[dict[str, tuple[int, ...]]]:
        """For each loss, positions within the fields of which it gets a part; without maps all get all."""
        return self._fields or [{} for _ in self.losses]


def build_sum(name: str, hyper: Mapping[str, object], *, build: Callable[..., DistillLoss]) -> LossSum:
    """The sum called ``a+b``; hyper-parameters are called ``a.temperature``, and ``a.weight`` for the weight.

    Raises InputError for a loss named twice and for a hyper-parameter that belongs to none of them.
    """
    names = [part.strip() for part in name.split("+")]
    twice = [one for one in names if names.count(one) > 1]
    if twice:
        raise InputError(f"loss {name} names {twice[0]!r} twice; give it once, with a larger weight")
    given: dict[str, dict[str, object]] = {one: {} for one in names}
    for key, value in hyper.items():
        owner, dot, own_key = key.partition(".")
        if not dot or owner not in given:
            known = ", ".join(f"{one}.NAME" for one in names)
            raise InputError(f"{name} has no hyper-parameter {key!r}; write {known}, and {names[0]}.weight for weights")
        given[owner][own_key] = value
    parts = []
    for one, own in given.items():
        weight = own.pop(WEIGHT, None)
        loss = build(one, **own)
        parts.append(Part(loss=loss, weight=loss.default_kd_weight if weight is None else _weight(one, weight)))
    total = LossSum(parts)
    total.settings = {
        f"{part.loss.name}.{key}": value
        for part in parts
        for key, value in {WEIGHT: part.weight, **part.loss.settings}.items()
    }
    return total


def _weight(name: str, given: object) -> float:
    try:
        weight = float(str(given))
    except ValueError:
        weight = -1.0
    if not 0 <= weight < float("inf"):
        raise InputError(f"{name}.weight={given!r} is not valid; it is a float >= 0")
    return weight


def _compared(loss: DistillLoss, count: int) -> tuple[str, ...]:
    return loss.student_map_names(count) if "student_maps" in loss.needs else ()


def _union(names: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for some in names for name in some))


def _picked(values: Sequence[Any], places: Sequence[int]) -> tuple[Any, ...]:
    return tuple(values[place] for place in places)


def _part(batch: DistillBatch, fields: Mapping[str, Sequence[int]]) -> DistillBatch:
    """The batch as one loss sees it."""
    given = {field: places for field, places in fields.items() if getattr(batch, field)}
    own: dict[str, Any] = {field: _picked(getattr(batch, field), places) for field, places in given.items()}
    return replace(batch, **own)

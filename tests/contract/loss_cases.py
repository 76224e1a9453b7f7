"""A batch and the facts of a training for any loss, made from what it declares; tests and benchmarks/losses.py use it.

Shape key: B batch, C classes, D feature width, H height, W width.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any
from zlib import crc32

import torch
from torch import Tensor
from torch.nn import functional

from shared.errors import InputError
from shared.outputs import ATTENTION, CONSTANTS, INPUT_GRAD, MAPS
from student_trainer.losses import LOSSES, DistillBatch, TrainingFacts, build_loss
from student_trainer.losses.base import NUMBERED_FIELDS, DistillLoss
from student_trainer.losses.facts import MapShape

Hyper = dict[str, Any]
Draw = Callable[[tuple[int, ...], torch.Generator], Tensor]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of a small imagined training."""

    classes: int = 10
    rows: int = 60
    image: int = 8
    student_width: int = 7
    teacher_width: int = 9
    student_maps: tuple[MapShape, ...] = ((4, 8, 8), (4, 8, 8), (6, 4, 4), (8, 2, 2))
    teacher_maps: tuple[MapShape, ...] = ((3, 8, 8), (6, 8, 8), (8, 4, 4), (10, 2, 2))

    @property
    def alike(self) -> "Sizes":
        """The teacher as wide as the student."""
        return replace(self, teacher_width=self.student_width, teacher_maps=self.student_maps)


SMALL = Sizes()
LARGE = Sizes(classes=1000, rows=2000, image=32, student_width=512, teacher_width=512)
"""What costs are measured at."""
LARGE_MAPS: tuple[MapShape, ...] = ((16, 16, 16), (16, 16, 16), (32, 8, 8), (64, 4, 4))
LARGE_WITH_MAPS = replace(
    LARGE, classes=100, student_width=64, teacher_width=64, student_maps=LARGE_MAPS, teacher_maps=LARGE_MAPS
)
"""The same for losses that compare maps: three stages as in RepDistiller's resnet20, at half of height and width."""
LARGE_BATCH = 256


def large(loss: DistillLoss) -> Sizes:
    """What the cost of ``loss`` is measured at."""
    return LARGE_WITH_MAPS if "student_maps" in loss.needs else LARGE


@dataclass(frozen=True, kw_only=True)
class Case:
    """A batch, and the tensors in it."""

    batch: DistillBatch
    student: Mapping[str, Tensor]
    """What the student's weights would get their gradient through: leaves, by name."""
    teacher: Mapping[str, Tensor]
    """All that the teacher said."""

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors that the loss is given."""
        fields = [getattr(self.batch, name) for name in self.batch.__slots__]
        items = [item for one in fields for item in (one if isinstance(one, tuple) else [one])]
        found = [item for item in items if isinstance(item, Tensor)]
        return [*found, *(self.batch.teacher_constants or {}).values(), *self.student.values()]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the numbers of a case are drawn."""

    student: Draw = field(default=lambda shape, generator: torch.randn(shape, generator=generator))
    teacher: Draw | None = None
    """None: as the student's."""
    same: bool = False
    """Whether the teacher says what the student says, where their shapes are the same."""
    student_dtype: torch.dtype = torch.float32
    teacher_dtype: torch.dtype = torch.float32


NORMAL = Recipe()


def case_of(
    loss: DistillLoss,
    *,
    count: int = 6,
    sizes: Sizes = SMALL,
    recipe: Recipe = NORMAL,
    seed: int = 0,
    device: str = "cpu",
) -> Case:
    """``count`` samples with all that ``loss`` needs, and labels; a loss that mixes has mixed them."""
    drawn = _Drawn(loss=loss, count=count, sizes=sizes, recipe=recipe, seed=seed, device=device)
    leaves = drawn.leaves()
    said = drawn.said()
    rows = torch.arange(seed * count, (seed + 1) * count) % sizes.rows
    mix = loss.mix(count, size=(sizes.image, sizes.image))
    given: dict[str, Any] = {"labels": (rows % sizes.classes).to(device), "rows": rows, "mix": mix and mix.pair}
    maps = tuple(leaf for name, leaf in leaves.items() if "." in name)
    given |= {name: leaf for name, leaf in leaves.items() if name.startswith("student_")} | {"student_maps": maps}
    if "head" in leaves:
        given["student_logits"] = leaves["student_inputs"].flatten(1) @ leaves["head"]
    teacher = {f"{name} {at}": one for name, value in said.items() for at, one in enumerate(parts_of(value))}
    return Case(batch=DistillBatch(**given | said), student=leaves, teacher=teacher)


def parts_of(value: Any) -> list[Tensor]:
    """The tensors of a field."""
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, tuple) else [value]


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """What student and teacher say of a batch: each output from a generator of its own, so that none moves another."""

    loss: DistillLoss
    count: int
    sizes: Sizes
    recipe: Recipe
    seed: int
    device: str

    def leaves(self) -> dict[str, Tensor]:
        """The student's side, by field or map; a loss that asks for its inputs gets logits computed from them."""
        sizes, needs = self.sizes, self.loss.needs
        found: dict[str, Tensor] = {}
        if "student_inputs" in needs:
            found["student_inputs"] = self._of_student("inputs", (3, sizes.image, sizes.image))
            numbers = 3 * sizes.image**2
            head = torch.randn(numbers, sizes.classes, generator=torch.Generator().manual_seed(5)) / numbers**0.5
            found["head"] = head.to(found["student_inputs"]).requires_grad_()
        else:
            found["student_logits"] = self._of_student("logits", (sizes.classes,))
        if "student_features" in needs:
            found["student_features"] = self._of_student("features", (sizes.student_width,))
        for name in self._map_names():
            found[name] = self._of_student(name, sizes.student_maps[int(name.partition(".")[2])])
        return found

    def _map_names(self) -> tuple[str, ...]:
        given = "student_maps" in self.loss.needs
        return self.loss.student_map_names(len(self.sizes.student_maps)) if given else ()

    def said(self) -> dict[str, Any]:
        """The teacher's side: the outputs that the loss names, each under the field that it names."""
        outputs = self.loss.teacher_outputs(student_maps=len(self.sizes.student_maps), offered=offered_by(self.sizes))
        found: dict[str, Any] = {}
        for name, names in outputs.items():
            if names == (CONSTANTS,):
                constants = constants_of(self.sizes)
                found[name] = {key: one.to(self.device, self.recipe.teacher_dtype) for key, one in constants.items()}
            else:
                tensors = tuple(self._of_teacher(one) for one in names)
                found[name] = tensors if name in NUMBERED_FIELDS else tensors[0]
        return found

    def _of_student(self, name: str, shape: tuple[int, ...]) -> Tensor:
        drawn = self.recipe.student((self.count, *shape), self._generator(name, teacher=False))
        return drawn.to(self.device, self.recipe.student_dtype).requires_grad_()

    def _of_teacher(self, name: str) -> Tensor:
        kind, _, number = name.partition(".")
        if name.startswith(ATTENTION):
            return attention_of(self._of_teacher(f"{MAPS}{number}"))
        sizes = self.sizes
        plain = {"logits": (sizes.classes,), "features": (sizes.teacher_width,), INPUT_GRAD: (3, *2 * (sizes.image,))}
        # Every other numbered output is shaped as the map of that number.
        shape = sizes.teacher_maps[int(number)] if number else plain[kind]
        draw = self.recipe.teacher or self.recipe.student
        drawn = draw((self.count, *shape), self._generator(name, teacher=not self.recipe.same))
        return drawn.to(self.device, self.recipe.teacher_dtype)

    def _generator(self, name: str, *, teacher: bool) -> torch.Generator:
        return torch.Generator().manual_seed(crc32(f"{name} {teacher} {self.seed}".encode()))


def offered_by(sizes: Sizes) -> list[str]:
    """Names of all outputs that an imagined teacher can give."""
    numbered = [f"{kind}{number}" for kind in (MAPS, ATTENTION) for number in range(len(sizes.teacher_maps))]
    return ["logits", "features", *numbered, INPUT_GRAD, CONSTANTS]


def attention_of(map_BCHW: Tensor) -> Tensor:
    """[B, H x W] at length 1, as a teacher says it."""
    return functional.normalize(map_BCHW.double().square().mean(dim=1).flatten(1), dim=1).to(map_BCHW.dtype)


def constants_of(sizes: Sizes) -> dict[str, Tensor]:
    """What an imagined teacher says once."""
    generator = torch.Generator().manual_seed(9)
    found = {
        "classifier.weight": torch.randn(sizes.classes, sizes.teacher_width, generator=generator),
        "classifier.bias": torch.randn(sizes.classes, generator=generator),
    }
    for number, (channels, _, _) in enumerate(sizes.teacher_maps):
        found[f"margins.{number}"] = -torch.rand(channels, generator=generator)
    return found


def facts_of(loss: DistillLoss, *, sizes: Sizes = SMALL, seed: int = 3) -> TrainingFacts:
    """What the trainer announces of the same training: no more than the loss asks for."""
    case = case_of(loss, count=1, sizes=sizes)
    rows = torch.arange(sizes.rows)
    outputs = loss.teacher_outputs(student_maps=len(sizes.student_maps), offered=offered_by(sizes))
    attention = [int(name.removeprefix(ATTENTION)) for name in outputs.get("teacher_attention", ())]
    return TrainingFacts(
        seed=seed,
        classes=sizes.classes,
        rows=rows,
        labels=rows % sizes.classes,
        student_width=sizes.student_width if "student_features" in loss.needs else None,
        teacher_width=sizes.teacher_width if "teacher_features" in outputs else None,
        student_maps=tuple((one.shape[1], one.shape[2], one.shape[3]) for one in case.batch.student_maps),
        teacher_maps=tuple((one.shape[1], one.shape[2], one.shape[3]) for one in case.batch.teacher_maps),
        teacher_attention=tuple(sizes.teacher_maps[number][1:] for number in attention),
        teacher_constants=constants_of(sizes) if "teacher_constants" in outputs else {},
    )


def ready(name: str, hyper: Hyper, *, sizes: Sizes | None = None, seed: int = 3, prepared: bool = True) -> DistillLoss:
    """The loss as a training has it before its first step."""
    loss = build_loss(name, **hyper)
    sizes = sizes or fitting(name, **hyper)
    loss.start(facts_of(loss, sizes=sizes, seed=seed))
    if loss.prepares and prepared:
        loss.prepare(lambda epoch: answers_of(loss, sizes=sizes, epoch=epoch))
    loss.begin_epoch(0)
    return loss


def answers_of(loss: DistillLoss, *, sizes: Sizes, epoch: int) -> Iterator[DistillBatch]:
    """The teacher alone, for `DistillLoss.prepare`: two batches in each of the first two epochs, and no more."""
    for number in range(2 if epoch < 2 else 0):
        drawn = _Drawn(loss=loss, count=6, sizes=sizes, recipe=NORMAL, seed=2 * epoch + number, device="cpu")
        yield DistillBatch(student_logits=torch.zeros(6, sizes.classes), **drawn.said())


@cache
def fitting(name: str, /, **hyper: Any) -> Sizes:
    """`SMALL`, or a teacher as wide as the student where the loss says that it must be."""
    try:
        loss = build_loss(name, **hyper)
        loss.start(facts_of(loss))
        loss(case_of(loss).batch)
    except InputError:
        return SMALL.alike
    return SMALL


def variants(names: Mapping[str, type[DistillLoss]] = LOSSES) -> list[tuple[str, Hyper]]:
    """Every loss with its defaults, and with every other word, answer or limit of one hyper-parameter at a time."""
    found: list[tuple[str, Hyper]] = []
    for name, kind in names.items():
        found.append((name, {}))
        for key, limit in kind.limits.items():
            default = kind.defaults()[key]
            others: list[Any] = [not default] if limit.kind is bool else list(limit.choices)
            others += [math.inf] if limit.endless else []
            # Where 0 is allowed it turns a term off.
            others += [0.0] if limit.kind is float and limit.low == 0 and not limit.above else []
            found += [(name, {key: other}) for other in others if other != default and is_built(name, {key: other})]
    return [*found, *(extra for extra in EXTRA if set(extra[0].split("+")) <= set(names))]


def is_built(name: str, hyper: Hyper) -> bool:
    """Whether the loss accepts this alone: some options need another beside them."""
    try:
        build_loss(name, **hyper)
    except InputError:
        return False
    return True


EXTRA: list[tuple[str, Hyper]] = [
    ("cc", {"form": "bilinear", "normalise": False, "squared": False}),
    ("ckd", {"w_kd": 1.0}),
    ("ckd", {"pairs": "sampled", "pos": 2}),
    ("crd", {"on": "logits", "negatives": 5}),
    ("mse", {"target": "both", "reduction": "sum"}),
    ("crd+rkd", {"crd.negatives": 5}),
    ("fitnets+ckd", {"fitnets.weight": 100.0}),
    ("vid+at+kl", {}),
]
"""What else computes something else."""

"""What a training minimises: a loss with its weights, checked against where the teacher's answers come from."""

import logging
from collections.abc import Collection
from dataclasses import dataclass

from shared.datasets.base import ImageDataset
from shared.errors import InputError
from student_trainer.announcement import TeacherSide, facts_of
from student_trainer.config import TrainConfig
from student_trainer.losses.base import DistillLoss
from student_trainer.losses.ce import CrossEntropy
from student_trainer.losses.registry import build_loss
from student_trainer.order import LOSS, derived_seed
from student_trainer.rows import Selection
from student_trainer.student_outputs import StudentOutputs

logger = logging.getLogger(__name__)

HIDDEN_BY_COMPILE = {
    "student_features": "features",
    "student_maps": "feature maps",
    "student_inputs": "input gradients",
}
"""Fields of a batch that a compiled student cannot fill, and what they are."""
LEAST_BATCH = 2
"""Images per step below which batch norm cannot train."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """``ce_weight * CE + kd_weight * loss``."""

    loss: DistillLoss
    ce_weight: float
    kd_weight: float

    @property
    def asks_teacher(self) -> bool:
        """Whether the loss needs anything from a teacher."""
        return self.kd_weight > 0 and any(need.startswith("teacher_") for need in self.loss.needs)

    def outputs(self, student: StudentOutputs, *, offered: Collection[str]) -> dict[str, tuple[str, ...]]:
        """What the loss asks a teacher for beside this student, see `DistillLoss.teacher_outputs`."""
        if not self.asks_teacher:
            return {}
        return self.loss.teacher_outputs(student_maps=student.map_count, offered=offered)

    @property
    def least_batch(self) -> int:
        """Smallest batch that can be trained on."""
        return max(LEAST_BATCH, self.loss.min_rows)


def read_objective(config: TrainConfig) -> Objective:
    """The loss with its weights; raises UnknownNameError and InputError."""
    loss = build_loss(config.loss, **config.hyper)
    ce_weight = loss.default_ce_weight if config.ce_weight is None else config.ce_weight
    kd_weight = loss.default_kd_weight if config.kd_weight is None else config.kd_weight
    if ce_weight == 0 and kd_weight == 0:
        raise InputError("--ce-weight and --kd-weight are both 0; at least one must be above 0")
    if kd_weight == 0:
        loss = _absent(loss)
    objective = Objective(loss=loss, ce_weight=ce_weight, kd_weight=kd_weight)
    _check_source(config, objective)
    _check_stages(config, objective)
    for sentence in ignored_options(config, objective):
        logger.warning("%s", sentence)
    return objective


def ignored_options(config: TrainConfig, objective: Objective) -> list[str]:
    """Options given that change nothing in this training, each with the reason."""
    no_teacher = f"loss {objective.loss.name} asks no teacher"
    no_server = "--cache is no address of a server"
    unlimited = config.answer_rows is None
    uses_cache = config.cache is not None and (objective.asks_teacher or config.missing_policy == "skip")
    reasons = {
        "--teacher": (config.teacher is not None and not objective.asks_teacher, no_teacher),
        "--cache": (config.cache is not None and not uses_cache, no_teacher),
        "--teacher-views": (
            config.teacher_views != "0" and not objective.asks_teacher and config.student_views != "same",
            no_teacher,
        ),
        "--missing": (
            config.missing is not None and config.cache is None and unlimited,
            "there is no --cache",
        ),
        "--answer-rows": (not unlimited and not objective.asks_teacher, no_teacher),
        "--api-key-file": (config.api_key_file is not None and not config.from_server, no_server),
        "--mirror": (config.mirror is not None and not config.from_server, no_server),
    }
    return [f"{name} has no effect: {reason}" for name, (ignored, reason) in reasons.items() if ignored]


def _check_source(config: TrainConfig, objective: Objective) -> None:
    name = objective.loss.name
    if objective.asks_teacher and config.cache is None and config.teacher is None:
        raise InputError(f"loss {name} needs teacher answers: give --cache CACHE, or --teacher SPEC to run one online")
    if config.teacher is not None and config.devices > 1:
        raise InputError("--teacher runs in one process: use --devices 1, or a cache")
    if config.weights is not None and config.teacher is None:
        raise InputError("--weights are the online teacher's: give --teacher too")
    if config.missing_policy == "label-only" and objective.asks_teacher and objective.ce_weight == 0:
        raise InputError(
            f"--missing label-only uses labels through --ce-weight, which is 0 for {name}; give one above 0"
        )
    needs = set(objective.loss.needs)
    if (objective.loss.mixes or "student_inputs" in needs) and config.missing_policy == "label-only":
        about = "mixes the answers of two images" if objective.loss.mixes else "needs an answer for every image"
        raise InputError(
            f"loss {name} {about}, and --missing label-only has images without one; use --missing skip, or another loss"
        )
    for need, what in HIDDEN_BY_COMPILE.items():
        if need in needs and config.compile:
            raise InputError(f"--compile hides the student's {what} from loss {name}; leave it out")
    if "student_inputs" in needs and config.precision != "float32":
        # Fabric forbids any backward but its own where precisions are mixed, and the loss makes one of its own.
        raise InputError(f"loss {name} needs input gradients in float32; use --precision float32")
    if config.batch < objective.least_batch:
        raise InputError(f"--batch {config.batch} is too small for loss {name}; use {objective.least_batch} or more")


def _absent(loss: DistillLoss) -> DistillLoss:
    """What stands for a loss of weight 0: nothing is needed, trained or drawn for it, and its name stays."""
    absent = CrossEntropy()
    absent.name, absent.settings = loss.name, loss.settings  # type: ignore[misc]  # this one object's
    return absent


def _check_stages(config: TrainConfig, objective: Objective) -> None:
    """A loss may count, or hold cross-entropy back, in some epochs only: raise InputError where that leaves nothing."""
    loss, counting = objective.loss, []
    for epoch in range(config.epochs):
        loss.begin_epoch(epoch)
        counting.append((objective.ce_weight * loss.ce_factor > 0, objective.kd_weight * loss.kd_factor > 0))
    loss.begin_epoch(0)
    ce_counts, loss_counts = zip(*counting, strict=True)
    name, count = loss.name, config.epochs
    if (False, False) in counting:
        raise InputError(
            f"neither cross-entropy nor loss {name} counts in epoch {counting.index((False, False)) + 1} of {count};"
            " give --ce-weight above 0, or turn off its stages or warm-up (init_epochs=0, warmup_epochs=0)"
        )
    if objective.ce_weight > 0 and not any(ce_counts):
        raise InputError(
            f"loss {name} trains alone in its first epochs, and --epochs {count} ends before cross-entropy's turn; give"
            " more epochs, a smaller init_epochs, or --ce-weight 0 for that stage alone"
        )
    if objective.kd_weight > 0 and not any(loss_counts):
        raise InputError(
            f"loss {name} counts in none of {count} epochs: give more epochs, or turn off its warm-up (warmup_epochs=0)"
        )


def start_loss(
    objective: Objective,
    selection: Selection,
    *,
    config: TrainConfig,
    train_set: ImageDataset,
    student: StudentOutputs,
    teacher: TeacherSide,
) -> None:
    """Tell the loss about the training: it may make parameters of its own."""
    answered_N, loss = selection.train[selection.answered], objective.loss
    loss.start(
        facts_of(
            seed=derived_seed(config.seed, purpose=LOSS),
            classes=len(train_set.classes),
            rows_N=answered_N,
            labels_N=train_set.labels[answered_N],
            student=student,
            teacher=teacher,
        )
    )
    if config.devices > 1 and list(loss.parameters()):
        raise InputError(f"loss {loss.name} trains weights of its own in one process: use --devices 1")

"""What a training minimises: a loss with its weights, checked against where the teacher's answers come from."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from shared.datasets.base import ImageDataset
from shared.errors import InputError
from shared.models.features import find_head
from student_trainer.config import TrainConfig
from student_trainer.losses.base import DistillLoss
from student_trainer.losses.facts import TrainingFacts
from student_trainer.losses.registry import loss_class
from student_trainer.order import LOSS, derived_seed
from student_trainer.rows import Selection
from student_trainer.targets import Targets

logger = logging.getLogger(__name__)

OUTPUT_OF_NEED: Mapping[str, str] = {"teacher_logits": "logits", "teacher_features": "features"}
"""Field of a batch that a loss may need -> the teacher's output that fills it."""
LEAST_BATCH = 2
"""Images per step below which batch norm cannot train."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """``ce_weight * CE + kd_weight * loss``."""

    loss: DistillLoss
    ce_weight: float
    kd_weight: float
    outputs: Mapping[str, str]
    """Batch field -> teacher output, for all that the loss needs from the teacher; empty where it needs none."""

    @property
    def least_batch(self) -> int:
        """Smallest batch that can be trained on."""
        return max(LEAST_BATCH, self.loss.min_rows)


def read_objective(config: TrainConfig) -> Objective:
    """The loss with its weights; raises UnknownNameError and InputError."""
    kind = loss_class(config.loss)
    loss = kind(**kind.read_hyper(config.hyper))
    ce_weight = loss.default_ce_weight if config.ce_weight is None else config.ce_weight
    kd_weight = loss.default_kd_weight if config.kd_weight is None else config.kd_weight
    if ce_weight == 0 and kd_weight == 0:
        raise InputError("--ce-weight and --kd-weight are both 0; at least one must be above 0")
    outputs = {need: OUTPUT_OF_NEED[need] for need in loss.needs if need in OUTPUT_OF_NEED and kd_weight > 0}
    objective = Objective(loss=loss, ce_weight=ce_weight, kd_weight=kd_weight, outputs=outputs)
    _check_source(config, objective)
    for sentence in ignored_options(config, objective):
        logger.warning("%s", sentence)
    return objective


def ignored_options(config: TrainConfig, objective: Objective) -> list[str]:
    """Options given that change nothing in this training, each with the reason."""
    no_teacher = f"loss {objective.loss.name} asks no teacher"
    no_server = "--cache is no address of a server"
    unlimited = config.answer_rows is None
    uses_cache = config.cache is not None and (objective.outputs or config.missing_policy == "skip")
    reasons = {
        "--teacher": (config.teacher is not None and not objective.outputs, no_teacher),
        "--cache": (config.cache is not None and not uses_cache, no_teacher),
        "--teacher-views": (
            config.teacher_views != "0" and not objective.outputs and config.student_views != "same",
            no_teacher,
        ),
        "--missing": (
            config.missing is not None and config.cache is None and unlimited,
            "there is no --cache",
        ),
        "--answer-rows": (not unlimited and not objective.outputs, no_teacher),
        "--api-key-file": (config.api_key_file is not None and not config.from_server, no_server),
        "--mirror": (config.mirror is not None and not config.from_server, no_server),
    }
    return [f"{name} has no effect: {reason}" for name, (ignored, reason) in reasons.items() if ignored]


def _check_source(config: TrainConfig, objective: Objective) -> None:
    name = objective.loss.name
    if objective.outputs and config.cache is None and config.teacher is None:
        raise InputError(f"loss {name} needs teacher answers: give --cache CACHE, or --teacher SPEC to run one online")
    if config.teacher is not None and config.devices > 1:
        raise InputError("--teacher runs in one process: use --devices 1, or a cache")
    if config.weights is not None and config.teacher is None:
        raise InputError("--weights are the online teacher's: give --teacher too")
    if config.missing_policy == "label-only" and objective.outputs and objective.ce_weight == 0:
        raise InputError(
            f"--missing label-only uses labels through --ce-weight, which is 0 for {name}; give one above 0"
        )
    if is_mixing(objective.loss) and config.missing_policy == "label-only":
        raise InputError(
            f"loss {name} mixes the answers of two images, and --missing label-only has images without one;"
            " use --missing skip, or another loss"
        )
    if "student_features" in objective.loss.needs and config.compile:
        raise InputError(f"--compile hides the student's features from loss {name}; leave it out")
    if config.batch < objective.least_batch:
        raise InputError(f"--batch {config.batch} is too small for loss {name}; use {objective.least_batch} or more")


def is_mixing(loss: DistillLoss) -> bool:
    """Whether the loss is given mixed images."""
    return type(loss).mix is not DistillLoss.mix


def start_loss(
    objective: Objective,
    selection: Selection,
    *,
    config: TrainConfig,
    train_set: ImageDataset,
    student: nn.Module,
    targets: Targets | None,
) -> None:
    """Tell the loss about the training: it may make parameters of its own."""
    answered = selection.train[selection.answered]
    image_size = config.image_size
    shape = train_set.image(0).shape[:2] if image_size is None else (image_size, image_size)
    loss, uses = objective.loss, set(objective.loss.needs)
    loss.start(
        TrainingFacts(
            seed=derived_seed(config.seed, purpose=LOSS),
            classes=len(train_set.classes),
            rows=torch.from_numpy(answered),
            labels=torch.from_numpy(train_set.labels[answered]),
            student_width=find_head(student, image_size=shape).feature_width if "student_features" in uses else None,
            teacher_width=targets.description.features if targets and "teacher_features" in uses else None,
        )
    )
    if config.devices > 1 and list(loss.parameters()):
        raise InputError(f"loss {loss.name} trains weights of its own in one process: use --devices 1")

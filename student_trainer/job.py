"""One training made ready: data, rows, teacher answers, loss and student opened and checked against each other.

Everything that can be wrong with the user's input is found here, before the first step.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from shared.datasets.base import ImageDataset, Normalisation
from shared.datasets.spec import open_train_test
from shared.errors import InputError
from shared.models.features import find_head
from shared.views import parse_views, view_count
from student_trainer.config import StudentViews, TrainConfig
from student_trainer.device_data import DeviceImages
from student_trainer.losses.base import DistillLoss, TrainingFacts
from student_trainer.losses.registry import loss_class
from student_trainer.mirror import Fetched, fetch_missing, mirror_path
from student_trainer.order import INITIAL, LOSS, derived_seed, split_rows
from student_trainer.progress import ProgressView
from student_trainer.rows import Selection, select_rows, wanted_rows
from student_trainer.student import build_student
from student_trainer.targets import Targets, open_cache_targets, open_online_targets

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


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Job:
    """What a training works with."""

    config: TrainConfig
    objective: Objective
    train_set: ImageDataset
    test_set: ImageDataset
    normalisation: Normalisation
    targets: Targets | None
    """None where no teacher is used."""
    selection: Selection
    teacher_views: tuple[int, ...]
    student_views: StudentViews
    student: nn.Module
    train_images: DeviceImages
    val_images: DeviceImages | None
    device: torch.device

    @property
    def uses_teacher(self) -> bool:
        """Whether the loss asks for teacher answers."""
        return bool(self.objective.outputs)

    def identity(self) -> dict[str, Any]:
        """What else, beside the settings, a resumed run must share."""
        return {
            "data_fingerprint": self.train_set.fingerprint,
            "teacher_id": self.targets.description.id if self.targets is not None else None,
            "training_rows": self.selection.summary(),
        }

    def close(self) -> None:
        """Let go of files."""
        if self.targets is not None:
            self.targets.close()


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
    uses_cache = config.cache is not None and (objective.outputs or config.missing_policy == "skip")
    reasons = {
        "--teacher": (config.teacher is not None and not objective.outputs, no_teacher),
        "--cache": (config.cache is not None and not uses_cache, no_teacher),
        "--teacher-views": (config.teacher_views != "0" and not objective.outputs, no_teacher),
        "--missing": (config.missing is not None and config.cache is None, "there is no --cache"),
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
    if config.batch < objective.least_batch:
        raise InputError(f"--batch {config.batch} is too small for loss {name}; use {objective.least_batch} or more")


def prepare(config: TrainConfig, *, device: torch.device, progress: ProgressView) -> Job:
    """Open and check everything that ``config`` names."""
    objective = read_objective(config)
    train_set, test_set = open_data(config)
    views, student_views = _read_views(config, train_set, uses_teacher=bool(objective.outputs))
    side = config.image_size
    student = build_student(
        config.student,
        classes=len(train_set.classes),
        # Where sizes differ and none is given, `DeviceImages` says so; it needs the rows.
        image_shape=train_set.image(0).shape[:2] if side is None else (side, side),
        seed=derived_seed(config.seed, purpose=INITIAL),
    )
    targets = _open_targets(config, objective, dataset=train_set, views=views, device=device, progress=progress)
    try:
        selection = _select(config, objective, dataset=train_set, targets=targets, views=views)
        start_loss(objective.loss, selection, config=config, train_set=train_set, student=student, targets=targets)
        normalisation = train_set.normalisation
        # An online teacher sees the views that the device renders, whatever the student sees.
        augmented = student_views == "fresh" or (
            views != (0,) and (student_views == "same" or config.teacher is not None)
        )
        placing: dict[str, Any] = {"normalisation": normalisation, "device": device, "image_size": config.image_size}
        return Job(
            config=config,
            objective=objective,
            train_set=train_set,
            test_set=test_set,
            normalisation=normalisation,
            targets=targets,
            selection=selection,
            teacher_views=views,
            student_views=student_views,
            student=student,
            train_images=DeviceImages(train_set, selection.train, augmented=augmented, **placing),
            val_images=DeviceImages(train_set, selection.val, **placing) if len(selection.val) else None,
            device=device,
        )
    except BaseException:
        if targets is not None:
            targets.close()
        raise


def start_loss(
    loss: DistillLoss,
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
    uses = set(loss.needs)
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


def open_data(config: TrainConfig) -> tuple[ImageDataset, ImageDataset]:
    """Training and test split; a local cache's folder remembers the keys of image files."""
    index_dir = None
    if config.cache is not None:
        index_dir = (mirror_path(config).parent if config.from_server else Path(config.cache)) / "index"
    return open_train_test(config.dataset, root=config.data_root, download=config.download, index_dir=index_dir)


def _read_views(
    config: TrainConfig, dataset: ImageDataset, *, uses_teacher: bool
) -> tuple[tuple[int, ...], StudentViews]:
    views = parse_views(config.teacher_views, policy=dataset.view_policy)
    student_views: StudentViews = config.student_views or ("same" if uses_teacher else "fresh")
    if student_views == "same" and config.image_size is not None and views != (0,):
        raise InputError("--image-size changes the pixels that views are cut from: use --student-views fresh or clean")
    return views, student_views


def all_views(dataset: ImageDataset) -> range:
    """Every augmented view of the data set's policy, what ``fresh`` draws from."""
    return range(1, view_count(dataset.view_policy) + 1)


def _open_targets(
    config: TrainConfig,
    objective: Objective,
    *,
    dataset: ImageDataset,
    views: Sequence[int],
    device: torch.device,
    progress: ProgressView,
) -> Targets | None:
    outputs = tuple(objective.outputs.values())
    if config.teacher is not None:
        return open_online_targets(config, dataset=dataset, outputs=outputs, device=device) if outputs else None
    # A loss without a teacher may still take its rows from a cache: those that are answered.
    if config.cache is None or (config.from_server and not outputs and config.missing_policy != "skip"):
        return None
    fetched = Fetched()
    if config.from_server and config.missing_policy == "fetch":
        train, _ = split_rows(wanted_rows(config, dataset), part=config.val, seed=config.seed)
        fetched = fetch_missing(config, dataset=dataset, rows=train, views=views, outputs=outputs, progress=progress)
    elif config.from_server and not mirror_path(config).exists():
        raise InputError(
            f"--missing {config.missing_policy} uses what was fetched before, and {mirror_path(config)} holds nothing;"
            " leave --missing out to fetch from the server, or give --mirror FOLDER"
        )
    return open_cache_targets(config, dataset=dataset, outputs=outputs, device=device, fetched=fetched)


def _select(
    config: TrainConfig, objective: Objective, *, dataset: ImageDataset, targets: Targets | None, views: Sequence[int]
) -> Selection:
    looks_for_answers = targets is not None and (objective.outputs or config.missing_policy == "skip")
    present = None
    if looks_for_answers and targets is not None:
        open_targets = targets

        def present(rows: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
            return open_targets.present(rows, views=views)

    selection = select_rows(config, dataset, present=present)
    if len(selection.train) < objective.least_batch:
        raise InputError(
            f"{len(selection.train)} training rows are too few: loss {objective.loss.name} with batch norm needs"
            f" {objective.least_batch}; choose more rows or a smaller --val"
        )
    return selection

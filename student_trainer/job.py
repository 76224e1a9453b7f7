"""One training made ready: data, rows, teacher answers, loss and student opened and checked against each other.

Everything that can be wrong with the user's input is found here, before the first step.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shared.datasets.base import ImageDataset, Normalisation
from shared.datasets.spec import open_train_test
from shared.errors import InputError
from shared.views import view_count
from student_trainer.announcement import TeacherSide
from student_trainer.config import StudentViews, TrainConfig
from student_trainer.device_data import DeviceImages
from student_trainer.losses.base import output_names
from student_trainer.mirror import Fetched, fetch_missing, mirror_path
from student_trainer.objective import Objective, read_objective, start_loss
from student_trainer.order import INITIAL, derived_seed
from student_trainer.pixel_check import check_pixels
from student_trainer.progress import ProgressView
from student_trainer.rows import Selection, held_out, select_rows, wanted_rows
from student_trainer.student import build_student
from student_trainer.student_outputs import StudentOutputs
from student_trainer.targets import Targets, open_cache_targets, open_online_targets
from student_trainer.view_choice import chosen_views, warn_of_partners, with_chosen_views


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
    outputs: Mapping[str, tuple[str, ...]]
    """Field of a batch -> the teacher's outputs that fill it, in order; empty where no teacher is asked."""
    constants: Mapping[str, Tensor]
    """What the teacher says once, on the device; empty where the loss does not need it."""
    selection: Selection
    teacher_views: tuple[int, ...]
    student_views: StudentViews
    student: nn.Module
    student_outputs: StudentOutputs
    """The student with what the loss compares beside its logits."""
    train_images: DeviceImages
    val_images: DeviceImages | None
    device: torch.device

    @property
    def uses_teacher(self) -> bool:
        """Whether the loss asks for teacher answers."""
        return self.objective.asks_teacher

    def identity(self) -> dict[str, Any]:
        """What else, beside the settings, a resumed run must share."""
        own = self.train_set.view_policy == self.train_set.own_policy
        return {
            "data_fingerprint": self.train_set.fingerprint,
            "views": None if own else self.train_set.view_policy,
            "teacher_id": self.targets.description.id if self.targets is not None else None,
            "training_rows": self.selection.summary(),
        }

    def close(self) -> None:
        """Let go of files and threads."""
        self.train_images.close()
        if self.targets is not None:
            self.targets.close()


def prepare(config: TrainConfig, *, device: torch.device, progress: ProgressView) -> Job:
    """Open and check everything that ``config`` names."""
    objective = read_objective(config)
    uses_cache = objective.asks_teacher or config.missing_policy == "skip"
    train_set, test_set = open_data(config, uses_cache=uses_cache)
    views, student_views = chosen_views(config, train_set, uses_teacher=objective.asks_teacher)
    side = config.image_size
    # Where sizes differ and none is given, `DeviceImages` says so; it needs the rows.
    height, width = train_set.image(0).shape[:2] if side is None else (side, side)
    student = build_student(
        config.student,
        classes=len(train_set.classes),
        image_shape=(height, width),
        seed=derived_seed(config.seed, purpose=INITIAL),
    )
    said = StudentOutputs(student, loss=objective.loss, image_size=(height, width))
    needed = _Needed(objective, student=said)
    targets = _open_targets(config, needed, dataset=train_set, views=views, device=device, progress=progress)
    try:
        outputs = {} if targets is None else objective.outputs(said, offered=targets.forms)
        if targets is not None:
            targets.choose(output_names(outputs))
        selection = _select(config, objective, dataset=train_set, targets=targets, views=views)
        if targets is not None and outputs:
            targets.place(selection.train[selection.answered], views=views)
        constants = targets.constants() if targets is not None and "teacher_constants" in outputs else {}
        teacher = TeacherSide(
            outputs=outputs,
            forms={} if targets is None else targets.forms,
            features=None if targets is None else targets.description.features,
            constants=constants,
        )
        start_loss(objective, selection, config=config, train_set=train_set, student=said, teacher=teacher)
        warn_of_partners(train_set, train=selection.train, val=selection.val, student_views=student_views)
        normalisation = train_set.normalisation
        # An online teacher sees the views that the device renders, whatever the student sees.
        augmented = student_views == "fresh" or (
            views != (0,) and (student_views == "same" or config.teacher is not None)
        )
        placing: dict[str, Any] = {"normalisation": normalisation, "device": device, "image_size": config.image_size}
        job = Job(
            config=config,
            objective=objective,
            train_set=train_set,
            test_set=test_set,
            normalisation=normalisation,
            targets=targets,
            outputs=outputs,
            constants=constants,
            selection=selection,
            teacher_views=views,
            student_views=student_views,
            student=student,
            student_outputs=said,
            train_images=DeviceImages(
                train_set,
                selection.train,
                augmented=augmented,
                # These come back every epoch.
                kept_views=() if student_views == "fresh" else views,
                **placing,
            ),
            val_images=DeviceImages(train_set, selection.val, **placing) if len(selection.val) else None,
            device=device,
        )
        check_pixels(job)
        return job
    except BaseException:
        if targets is not None:
            targets.close()
        raise


def open_data(config: TrainConfig, *, uses_cache: bool = True) -> tuple[ImageDataset, ImageDataset]:
    """Training and test split; a local cache's folder remembers the keys of image files.

    The training split has the views of the cache, where it is used; the test split is seen under view 0 alone.
    """
    index_dir = None
    if config.cache is not None:
        index_dir = (mirror_path(config).parent if config.from_server else Path(config.cache)) / "index"
    train_set, test_set = open_train_test(
        config.dataset, root=config.data_root, download=config.download, index_dir=index_dir
    )
    return with_chosen_views(config, train_set, uses_cache=uses_cache), test_set


def all_views(dataset: ImageDataset) -> range:
    """Every augmented view of the data set's policy, what ``fresh`` draws from."""
    return range(1, view_count(dataset.view_policy) + 1)


@dataclass(frozen=True, slots=True)
class _Needed:
    """What the loss asks the teacher for, beside this student."""

    objective: Objective
    student: StudentOutputs

    def of_server(self, offered: Collection[str]) -> list[str]:
        """The outputs to ask a server for; InputError for what none sends."""
        outputs = self.objective.outputs(self.student, offered=offered)
        if "teacher_constants" in outputs:
            raise InputError(
                f"loss {self.objective.loss.name} needs the teacher's constants, which a server does not send: give"
                " --cache the folder of its cache"
            )
        return output_names(outputs)


def _open_targets(
    config: TrainConfig,
    needed: _Needed,
    *,
    dataset: ImageDataset,
    views: Sequence[int],
    device: torch.device,
    progress: ProgressView,
) -> Targets | None:
    asks = needed.objective.asks_teacher
    if config.teacher is not None:
        return open_online_targets(config, dataset=dataset, device=device) if asks else None
    # A loss without a teacher may still take its rows from a cache: those that are answered.
    if config.cache is None or (config.from_server and not asks and config.missing_policy != "skip"):
        return None
    fetched = Fetched()
    if config.from_server and config.missing_policy == "fetch":
        train, _ = held_out(config, dataset, rows=wanted_rows(config, dataset))
        asked: dict[str, Any] = {"rows": train, "views": views, "choose": needed.of_server}
        fetched = fetch_missing(config, dataset=dataset, progress=progress, **asked)
    elif config.from_server and not mirror_path(config).exists():
        raise InputError(
            f"--missing {config.missing_policy} uses what was fetched before, and {mirror_path(config)} holds nothing;"
            " leave --missing out to fetch from the server, or give --mirror FOLDER"
        )
    return open_cache_targets(config, dataset=dataset, device=device, fetched=fetched)


def _select(
    config: TrainConfig, objective: Objective, *, dataset: ImageDataset, targets: Targets | None, views: Sequence[int]
) -> Selection:
    looks_for_answers = targets is not None and (objective.asks_teacher or config.missing_policy == "skip")
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

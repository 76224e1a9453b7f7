"""Where a training's teacher answers come from: a cache, or (for comparison) the teacher itself at every step.

Shape key: B batch, C classes, D feature width, H height, W width.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.reader import CacheReader
from shared.answers import check_answers
from shared.datasets.base import ImageDataset
from shared.descriptions import TeacherDescription
from shared.errors import IdentityError, InputError, OutputNotCachedError
from shared.outputs import CONSTANTS, OutputForm, beside, calls_per_answer, check_offered
from shared.teacher import Teacher, load_teacher
from student_trainer.config import TrainConfig
from student_trainer.lacking import Origin, about_maps, lacking_outputs, origin_of
from student_trainer.mirror import Fetched, keys_of, mirror_path
from student_trainer.placed_answers import PlacedAnswers, place_answers

CACHE_DTYPE = np.float16
"""What a cache stores by default, and so what an online teacher's answers are rounded to."""


class Targets(Protocol):
    """Teacher answers for the rows of one data set."""

    description: TeacherDescription
    """Whose answers they are."""
    pixels_by: str
    """Library and version that decoded or drew the pixels answered about; empty where nothing did."""
    teacher_calls: int
    """Images through the teacher's forward pass that this training caused so far."""

    @property
    def forms(self) -> Mapping[str, OutputForm]:
        """What can be had of every row, by name."""

    def constants(self) -> Mapping[str, Tensor]:
        """What the teacher says once, on the device; empty where it is not known."""

    def choose(self, outputs: Sequence[str]) -> None:
        """What `gather` is to give; OutputNotCachedError or InputError for what cannot be had, with what would help."""

    def present(self, rows_B: NDArray[np.int64], *, views: Sequence[int]) -> NDArray[np.bool_]:
        """Which rows have an answer for every one of ``views``, bool [B]."""

    def place(self, rows_N: NDArray[np.int64], *, views: Sequence[int]) -> None:
        """Get ready for many batches of these rows, each answered under every one of ``views``."""

    def gather(
        self,
        rows_B: NDArray[np.int64],
        views_B: NDArray[np.int64],
        *,
        pixels: Callable[[], Sequence[NDArray[np.uint8]]],
    ) -> dict[str, Tensor]:
        """Outputs [B, ...] by name, on the device; ``pixels`` gives the views, each uint8 [H, W, 3]."""

    def keys(self, rows_B: NDArray[np.int64], *, view: int) -> NDArray[np.uint8]:
        """Keys of the answers, uint8 [B, 32]: equal keys are one answer."""

    def close(self) -> None:
        """Let go of files and memory."""


class CacheTargets:
    """Answers of a cache folder: no teacher, no server; ``teacher_calls`` is what fetching them into it caused."""

    def __init__(self, reader: CacheReader, *, device: torch.device, origin: Origin, teacher_calls: int = 0) -> None:
        self.description = reader.teacher
        self.forms: Mapping[str, OutputForm] = reader.forms
        self.pixels_by = reader.dataset.decoder
        self.teacher_calls = teacher_calls
        self._reader = reader
        self._origin = origin
        self._outputs: tuple[str, ...] = ()
        self._device = device
        self._placed: PlacedAnswers | None = None

    def constants(self) -> Mapping[str, Tensor]:
        """As they are kept beside the answers."""
        return {
            name: torch.from_numpy(np.array(array)).to(self._device) for name, array in self._reader.constants.items()
        }

    def choose(self, outputs: Sequence[str]) -> None:
        """What `gather` is to give; OutputNotCachedError says which fill adds what the cache lacks."""
        lacking = lacking_outputs(outputs, reader=self._reader)
        if lacking:
            raise OutputNotCachedError(self._origin.remedy(lacking, reader=self._reader))
        self._outputs = tuple(name for name in outputs if name != CONSTANTS)

    def present(self, rows_B: NDArray[np.int64], *, views: Sequence[int]) -> NDArray[np.bool_]:
        """Which rows have an answer for every one of ``views``, bool [B]."""
        present_B = np.ones(len(rows_B), dtype=np.bool_)
        for view in views:
            present_B &= self._reader.present(view)[rows_B]
        return present_B

    def place(self, rows_N: NDArray[np.int64], *, views: Sequence[int]) -> None:
        """Keep these answers on the device, if they take little of its memory."""
        self._placed = place_answers(self._reader, rows=rows_N, views=views, outputs=self._outputs, device=self._device)

    def gather(
        self,
        rows_B: NDArray[np.int64],
        views_B: NDArray[np.int64],
        *,
        pixels: Callable[[], Sequence[NDArray[np.uint8]]],
    ) -> dict[str, Tensor]:
        """Outputs [B, ...] by name in the cache's dtype, on the device."""
        found = self._placed.gather(rows_B, views_B) if self._placed is not None else None
        if found is None:
            arrays = self._reader.gather(rows_B, view=views_B, outputs=self._outputs)
            found = {name: sent(torch.from_numpy(array), device=self._device) for name, array in arrays.items()}
        return found

    def keys(self, rows_B: NDArray[np.int64], *, view: int) -> NDArray[np.uint8]:
        """Keys of the answers, uint8 [B, 32]."""
        return self._reader.keys(rows_B, view=view)

    def close(self) -> None:
        """Close the reader."""
        self._placed = None
        self._reader.close()


class OnlineTargets:
    """The teacher in the loop, as distillation is usually run: every image of every step is a call."""

    def __init__(self, teacher: Teacher, *, dataset: ImageDataset, device: torch.device) -> None:
        self.description = teacher.description
        height, width = dataset.image(0).shape[:2]
        self.forms = teacher.forms((height, width))
        self.pixels_by = dataset.description.decoder
        self.teacher_calls = 0
        self._teacher = teacher
        self._dataset = dataset
        self._outputs: tuple[str, ...] = ()
        self._constants: Mapping[str, NDArray[np.float32]] = {}
        self._device = device

    def constants(self) -> Mapping[str, Tensor]:
        """The network's own, where they were chosen."""
        return {name: torch.from_numpy(array).to(self._device) for name, array in self._constants.items()}

    def choose(self, outputs: Sequence[str]) -> None:
        """What `gather` is to give; InputError for what this teacher cannot give."""
        self._outputs = tuple(name for name in outputs if name != CONSTANTS)
        try:
            check_offered(self._outputs, offered=self.forms, teacher=self.description.id)
        except InputError as error:
            raise InputError(f"{error}{about_maps(set(self._outputs) - set(self.forms))}") from None
        # They take a forward pass of a blank image.
        self._constants = self._teacher.constants() if CONSTANTS in outputs else {}
        if CONSTANTS in outputs and not self._constants:
            raise InputError(f"teacher {self.description.id} has no layers to take {CONSTANTS} from; use another loss")

    def present(self, rows_B: NDArray[np.int64], *, views: Sequence[int]) -> NDArray[np.bool_]:
        """All of them."""
        return np.ones(len(rows_B), dtype=np.bool_)

    def place(self, rows_N: NDArray[np.int64], *, views: Sequence[int]) -> None:
        """Nothing: it answers at every step."""

    def gather(
        self,
        rows_B: NDArray[np.int64],
        views_B: NDArray[np.int64],
        *,
        pixels: Callable[[], Sequence[NDArray[np.uint8]]],
    ) -> dict[str, Tensor]:
        """Run the teacher on the batch; answers are checked, counted, and rounded to the cache's dtype."""
        answers = self._teacher.answer(pixels(), outputs=beside(self._outputs))
        self.teacher_calls += len(rows_B) * calls_per_answer(self._outputs)
        names = [f"row {row} of {self._dataset.name}" for row in rows_B.tolist()]
        check_answers(answers, description=self.description, names=names)
        rounded = {name: answers[name].astype(CACHE_DTYPE) for name in self._outputs}
        return {name: sent(torch.from_numpy(array), device=self._device) for name, array in rounded.items()}

    def keys(self, rows_B: NDArray[np.int64], *, view: int) -> NDArray[np.uint8]:
        """Keys of the pixels, uint8 [B, 32]."""
        return keys_of(self._dataset, rows_B, view=view)

    def close(self) -> None:
        """Let the teacher go."""
        self._teacher.close()


def sent(tensor: Tensor, *, device: torch.device) -> Tensor:
    """The tensor on the device; to CUDA from pinned memory, so that nobody waits for the copy."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def open_cache_targets(
    config: TrainConfig, *, dataset: ImageDataset, device: torch.device, fetched: Fetched
) -> CacheTargets:
    """Open the cache, or the mirror of a server, and hold it to the teacher expected and to this data set.

    Raises IdentityError for another data set (even one with as many rows) or another teacher.
    """
    path = mirror_path(config) if config.from_server else str(config.cache)
    reader = CacheReader.open(path, teacher=fetched.teacher or config.expect_teacher, dataset=dataset.name)
    try:
        reader.check_dataset(dataset)
        check_classes(reader.teacher, dataset=dataset)
        origin = origin_of(config, path=str(path), dataset=dataset)
        return CacheTargets(reader, device=device, origin=origin, teacher_calls=fetched.teacher_calls)
    except BaseException:
        reader.close()
        raise


def open_online_targets(config: TrainConfig, *, dataset: ImageDataset, device: torch.device) -> OnlineTargets:
    """Load the teacher into this process."""
    teacher = load_teacher(
        str(config.teacher),
        weights=config.weights,
        classes=len(dataset.classes),
        normalisation=dataset.normalisation,
        device=device.type,
    )
    try:
        check_expected(teacher.description, expected=config.expect_teacher)
        check_classes(teacher.description, dataset=dataset)
    except BaseException:
        teacher.close()
        raise
    return OnlineTargets(teacher, dataset=dataset, device=device)


def check_expected(teacher: TeacherDescription, *, expected: str | None) -> None:
    """Raise IdentityError where the teacher is not the one that the user named."""
    if expected is not None and not teacher.id.startswith(expected):
        raise IdentityError(f"the teacher is {teacher.id}, not {expected}; change --teacher or --expect-teacher")


def check_classes(teacher: TeacherDescription, *, dataset: ImageDataset) -> None:
    """Raise InputError where teacher and data set differ in their number of classes."""
    if teacher.classes != len(dataset.classes):
        raise InputError(
            f"teacher {teacher.id} has {teacher.classes} classes and {dataset.name} has {len(dataset.classes)};"
            " use a teacher of the data set's classes"
        )

"""Cached teacher answers for your own training loop, around any map-style data set of (image, label).

    reader = CacheReader.open("CACHE", dataset="cifar100/train")
    dataset = CachedTeacherDataset(my_dataset, reader=reader, transform=to_tensor)
    for batch in CachedTeacherLoader(dataset, batch_size=64, shuffle=True, num_workers=2):
        loss = build_loss("kl")(batch.distill(model(batch.images)))

A loss may want more of teacher and student, and train parts of its own; all that is seen to by

    student = StudentOutputs(model, loss=loss, image_size=(32, 32))
    loader = CachedTeacherLoader.for_loss(loss, dataset, student=student, batch_size=64, shuffle=True)
    optimizer = SGD([*student.parameters(), *loss.parameters()], lr=0.05)
    for batch in loader:
        said = student(batch.images)
        value = loss(batch.distill(said.logits, student_features=said.features, student_maps=said.maps))

Images are loaded by the workers; answers are gathered in the main process, one gather per batch.
Shape key: B batch, C classes, D feature width, H height, W width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cache.reader import CacheReader
from shared.errors import IdentityError, InputError, MissingRowsError, OutputNotCachedError, RowRangeError
from shared.identity import pixel_key
from shared.mixing import mixing
from shared.outputs import CONSTANTS
from shared.rendering import render_row
from shared.views import check_view
from student_trainer.announcement import TeacherSide, facts_of
from student_trainer.losses.base import DistillLoss
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.mix import Mix
from student_trainer.order import TEACHER_VIEWS, drawn_views
from student_trainer.student_outputs import StudentOutputs

Item = tuple[Any, int, int, int]
"""(image, label, row, view)."""


class MapStyle(Protocol):
    """What any map-style data set offers."""

    def __getitem__(self, index: int, /) -> Any:
        """(image, label) of a row."""

    def __len__(self) -> int:
        """Number of rows."""


class CachedTeacherDataset(Dataset[Item]):
    """``(image, label, row, view)`` of the rows that a cache has answers for.

    With ``views`` other than (0,) one is drawn per row and epoch (see `set_epoch`) and cut from the image, which must
    then be uint8 [H, W, 3] or a PIL image; view 0 leaves the image as it is. ``transform`` comes last, and should add
    no randomness of its own: the student would see other pixels than the teacher.

    ``samples`` random rows are held to the cache before anything is trained: by the key of their pixels where they are
    such images, else by their labels. Raises IdentityError naming the first that differs; 0 checks nothing.
    """

    def __init__(
        self,
        dataset: MapStyle,
        reader: CacheReader,
        *,
        rows: Sequence[int] | NDArray[np.int64] | None = None,
        views: Sequence[int] = (0,),
        transform: Callable[[Any], Any] | None = None,
        seed: int = 0,
        samples: int = 32,
    ) -> None:
        if len(dataset) != reader.num_rows:
            raise InputError(
                f"the data set has {len(dataset)} rows and the cache's {reader.dataset.name} has {reader.num_rows};"
                " wrap the whole data set, and choose with rows="
            )
        self._policy = reader.dataset.view_policy
        self.views = tuple(check_view(view, policy=self._policy) for view in views)
        """The views that items are drawn from."""
        present = np.logical_and.reduce([reader.present(view) for view in self.views])
        self.rows = np.flatnonzero(present) if rows is None else _checked(rows, reader=reader)
        """int64 [N]: the row of each item."""
        absent = self.rows[~present[self.rows]]
        if len(absent):
            raise MissingRowsError(
                f"row {absent[0]} (and {len(absent) - 1} more) of {reader.dataset.name} has no answer; fill it with"
                " `teacher-server fill`, or leave rows= out to use those that have one",
                rows=absent.tolist(),
            )
        self.reader = reader
        self._dataset = dataset
        self._transform = transform
        self._seed = seed
        self._check_samples(samples)
        self.set_epoch(0)

    def _check_samples(self, count: int) -> None:
        view = self.views[0]
        for row in np.random.default_rng(self._seed).permutation(self.rows)[:count].tolist():
            image, label = self._dataset[row]
            pixels = _pixels(image)
            if pixels is None:
                same = int(label) == self.reader.labels([row], view=view)[0]
            else:
                key = pixel_key(self._rendered(row, view, image=pixels))
                same = key == self.reader.keys([row], view=view)[0].tobytes()
            if not same:
                raise IdentityError(
                    f"row {row} of the data set has another {'label' if pixels is None else 'image'} than row {row} of"
                    f" the cache's {self.reader.dataset.name}: give the rows in the cache's order, and what changes"
                    " images as transform="
                )

    def set_epoch(self, epoch: int) -> None:
        """Draw each row's view for this epoch. Workers that outlive an epoch (persistent_workers) do not see it."""
        count = len(self.rows)
        self._drawn = drawn_views(self.views, count=count, seed=self._seed, epoch=epoch, purpose=TEACHER_VIEWS)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        row, view = int(self.rows[index]), int(self._drawn[index])
        image, label = self._dataset[row]
        if view != 0:
            image = self._rendered(row, view, image=image)
        return (image if self._transform is None else self._transform(image)), int(label), row, view

    def _rendered(self, row: int, view: int, *, image: Any) -> NDArray[np.uint8]:
        """Pixels of a view; ``image`` is the row's own, and a partner's is loaded."""

        def load(wanted: int) -> NDArray[np.uint8]:
            found = image if wanted == row else self._dataset[wanted][0]
            pixels = _pixels(found)
            if pixels is None:
                raise InputError(
                    f"row {wanted} is no uint8 [H, W, 3] and no PIL image, so that view {view} cannot be drawn from it;"
                    " give what changes images as transform="
                )
            return pixels

        return render_row(row, view, policy=self._policy, num_rows=len(self._dataset), load=load)

    def mixing(
        self, rows: Sequence[int], views: Sequence[int], *, size: tuple[int, int]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(partner rows [B], shares of the rows themselves [B]) of views of images of ``size`` (H, W), for soft labels.

        Raises `InputError` where the cache's views are not those of cutmix or mixup.
        """
        return mixing(rows, views, policy=self._policy, num_rows=len(self._dataset), size=size)

    def __getstate__(self) -> Mapping[str, Any]:
        # Workers load images only; the answers are gathered in the main process.
        return {**self.__dict__, "reader": None}


def _checked(rows: Sequence[int] | NDArray[np.int64], *, reader: CacheReader) -> NDArray[np.int64]:
    """The rows as int64 [N]; RowRangeError for one that the data set does not have."""
    rows_N = np.asarray(rows, dtype=np.int64)
    outside = rows_N[(rows_N < 0) | (rows_N >= reader.num_rows)]
    if len(outside):
        raise RowRangeError(
            f"row {outside[0]} is out of range: {reader.dataset.name} has rows 0 to {reader.num_rows - 1}"
        )
    return rows_N


def _pixels(image: object) -> NDArray[np.uint8] | None:
    """Canonical pixels uint8 [H, W, 3] of an array or a PIL image; None for anything else, such as a tensor."""
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return image
    return None


class TeacherBatch(NamedTuple):
    """One batch of a `CachedTeacherLoader`, by name or as ``images, labels, rows, views, teacher``."""

    images: Any
    """The images as collated, usually a Tensor [B, ...]."""
    labels: Tensor
    """int64 [B]."""
    rows: Tensor
    """int64 [B]."""
    views: Tensor
    """int64 [B]."""
    teacher: Mapping[str, Tensor]
    """The teacher's outputs by name, [B, ...], in the cache's dtype."""

    def distill(
        self,
        student_logits: Tensor,
        *,
        student_features: Tensor | None = None,
        student_maps: Sequence[Tensor] = (),
        student_inputs: Tensor | None = None,
        mix: Mix | None = None,
        teacher_constants: Mapping[str, Tensor] | None = None,
    ) -> DistillBatch:
        """What a loss is given, on the device of the student's logits; it says what it lacks.

        ``student_maps`` are those that the loss compares, and ``student_inputs`` the tensor that the student saw, which
        required gradients. ``mix`` is what `DistillLoss.mix` said and the images were mixed by; ``teacher_constants``
        are those of the loader.
        """
        device = student_logits.device
        sent = {name: value.to(device, non_blocking=True) for name, value in self.teacher.items()}
        constants = None
        if teacher_constants:
            constants = {name: value.to(device, non_blocking=True) for name, value in teacher_constants.items()}
        return DistillBatch(
            student_logits=student_logits,
            student_features=student_features,
            student_maps=tuple(student_maps),
            student_inputs=student_inputs,
            labels=self.labels.to(device, non_blocking=True),
            rows=self.rows,
            views=self.views,
            mix=None if mix is None else mix.pair,
            teacher_constants=constants,
            **DistillBatch.teacher_fields(sent),  # type: ignore[arg-type]
        )


class CachedTeacherLoader:
    """A DataLoader over a `CachedTeacherDataset` that adds the teacher's answers to every batch.

    ``options`` are those of `torch.utils.data.DataLoader`: batch_size, shuffle, num_workers, generator, ...
    """

    def __init__(self, dataset: CachedTeacherDataset, *, outputs: Sequence[str] = ("logits",), **options: Any) -> None:
        self._dataset = dataset
        self._outputs = tuple(outputs)
        self._loader: DataLoader[Item] = DataLoader(dataset, **options)

    @classmethod
    def for_loss(
        cls,
        loss: DistillLoss,
        dataset: CachedTeacherDataset,
        *,
        student: StudentOutputs,
        seed: int = 0,
        **options: Any,
    ) -> Self:
        """A loader of what ``loss`` needs, which is told about the training: it may make weights and memories.

        ``student`` is ``StudentOutputs(network, loss=loss, image_size=(H, W))``, and what to call with the images; give
        ``loss.parameters()`` to the optimizer too. Raises `OutputNotCachedError` where the cache lacks an output.
        """
        reader = dataset.reader
        outputs = loss.teacher_outputs(student_maps=student.map_count, offered=reader.forms)
        names = list(dict.fromkeys(name for some in outputs.values() for name in some))
        lacking = [name for name in names if name not in (*reader.forms, *([CONSTANTS] if reader.constants else []))]
        if lacking:
            raise OutputNotCachedError(
                f"the cache holds {', '.join(reader.forms)}, and loss {loss.name} needs {', '.join(lacking)}; add it"
                f" with `teacher-server fill --add-outputs {','.join(lacking)}`"
            )
        loader = cls(dataset, outputs=[name for name in names if name != CONSTANTS], **options)
        teacher = TeacherSide(
            outputs=outputs, forms=reader.forms, features=reader.teacher.features, constants=loader.constants
        )
        classes, rows_N = reader.teacher.classes, np.asarray(dataset.rows)
        labels_N = reader.labels(rows_N, view=dataset.views[0])
        loss.start(
            facts_of(seed=seed, classes=classes, rows_N=rows_N, labels_N=labels_N, student=student, teacher=teacher)
        )
        if loss.prepares:
            loss.prepare(loader.without_student)
        return loader

    @cached_property
    def constants(self) -> Mapping[str, Tensor]:
        """What the teacher says once for all rows, by name; empty where the cache does not keep it."""
        return {name: torch.from_numpy(np.array(array)) for name, array in self._dataset.reader.constants.items()}

    def without_student(self, _epoch: int = 0) -> Iterator[DistillBatch]:
        """All rows once, for a loss that learns from the teacher first; the student's logits are zeros."""
        classes = self._dataset.reader.teacher.classes
        for batch in self:
            yield batch.distill(torch.zeros(len(batch.labels), classes), teacher_constants=self.constants)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[TeacherBatch]:
        for images, labels, rows, views in self._loader:
            arrays = self._dataset.reader.gather(rows.numpy(), view=views.numpy(), outputs=self._outputs)
            teacher = {name: torch.from_numpy(array) for name, array in arrays.items()}
            yield TeacherBatch(images=images, labels=labels, rows=rows, views=views, teacher=teacher)

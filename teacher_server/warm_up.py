"""What happens before a server is ready and a fill begins: blank forwards, compiling, and finding out what fits."""

import logging
from collections.abc import Sequence

from shared.datasets.base import ImageDataset
from shared.errors import InputError, TeacherFailedError, TeachonceError
from shared.replicas import replicas_of
from shared.teacher import Teacher
from shared.teacher_protocol import DeviceTeacher

log = logging.getLogger(__name__)

SMALL_BATCHES = (1, 8, 32)
"""What a compiled teacher fills batches up to, besides full ones."""
UNKNOWN_SIZE = (32, 32)
"""(H, W) where neither the teacher nor a data set says what images there will be."""


def warm_up(
    teacher: Teacher,
    *,
    batch_images: int,
    partial: bool,
    compiled: bool,
    datasets: Sequence[ImageDataset],
) -> None:
    """Have every replica answer blank images: no calls, nothing is learned about any image.

    ``partial``: whether batches smaller than ``batch_images`` are to be expected. Raises `InputError` where a device's
    memory does not suffice, or the teacher cannot be compiled.
    """
    size = image_size(teacher, datasets=datasets)
    for replica in replicas_of(teacher):
        if not isinstance(replica, DeviceTeacher):
            continue
        batches = batch_sizes(batch_images, partial=partial, compiled=compiled, on_cpu=not replica.overlaps)
        try:
            replica.warm_up(batches, size=size)
        except TeacherFailedError as error:
            raise InputError(f"before the first question: {error}") from error
        except TeachonceError:
            raise
        # A network of the user's own may refuse a blank image and take the real ones.
        except Exception as error:  # noqa: BLE001 - whatever it raises; a batch that fails tells its callers
            kind = type(error).__name__
            log.warning("the teacher raised %s on a blank image of %d x %d: %s", kind, *size, error)


def image_size(teacher: Teacher, *, datasets: Sequence[ImageDataset]) -> tuple[int, int]:
    """The (H, W) of images to come, as far as anybody knows."""
    if teacher.input is not None:
        return teacher.input
    for dataset in datasets:
        if dataset.num_rows:
            try:
                height, width, _ = dataset.image(0).shape
            except TeachonceError:
                # One image that cannot be read ends neither a server nor a fill.
                continue
            return height, width
    return UNKNOWN_SIZE


def batch_sizes(batch_images: int, *, partial: bool, compiled: bool, on_cpu: bool) -> tuple[int, ...]:
    """Images per blank forward."""
    if compiled:
        return (*(size for size in SMALL_BATCHES if partial and size < batch_images), batch_images)
    # On CPU nothing but memory depends on their number, and a full batch may take a minute.
    return (1,) if on_cpu else (1, batch_images)

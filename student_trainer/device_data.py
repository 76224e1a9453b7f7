"""Images that live on the device as one uint8 tensor, and come out as normalised batches.

Shape key: B batch, N images, H height, W width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.datasets.base import ImageDataset, Normalisation
from shared.errors import InputError
from shared.models.preprocessing import Preprocessing
from student_trainer.augment import padded, render_views


class DeviceImages:
    """Some rows of a data set on a device. Positions 0..N-1 are the rows in the order given."""

    def __init__(
        self,
        dataset: ImageDataset,
        rows: NDArray[np.int64],
        *,
        normalisation: Normalisation,
        device: torch.device,
        image_size: int | None = None,
        augmented: bool = False,
    ) -> None:
        pixels_NHW3 = stacked(dataset.images(rows), dataset=dataset, rows=rows, image_size=image_size)
        self.rows = rows
        """int64 [N] on the host."""
        self.labels = torch.from_numpy(dataset.labels[rows]).to(device)
        """int64 [N] on the device."""
        self.image_shape = (pixels_NHW3.shape[1], pixels_NHW3.shape[2])
        """(H, W) in pixels."""
        self._policy = dataset.view_policy
        self._augmented = augmented
        pixels = torch.from_numpy(pixels_NHW3).to(device)
        self._pixels = padded(pixels, policy=self._policy) if augmented else pixels
        mean, std = torch.tensor(normalisation.mean), torch.tensor(normalisation.std)
        self._scale = (1 / (255 * std)).view(1, 1, 1, 3).to(device)
        self._shift = (-mean / std).view(1, 1, 1, 3).to(device)

    def __len__(self) -> int:
        return len(self.rows)

    def pixels(self, positions_B: Tensor, views_B: NDArray[np.int64]) -> Tensor:
        """Pixels uint8 [B, H, W, 3] of the views; where nothing is augmented, of view 0."""
        if self._augmented:
            return render_views(self._pixels, positions_B=positions_B, views_B=views_B, policy=self._policy)
        return self._pixels[positions_B]

    def batch(self, positions_B: Tensor, views_B: NDArray[np.int64]) -> Tensor:
        """Network input float32 [B, 3, H, W], ``(pixels / 255 - mean) / std``, channels last in memory."""
        normalised = self.pixels(positions_B, views_B) * self._scale + self._shift
        return normalised.permute(0, 3, 1, 2)


def stacked(
    images: Sequence[NDArray[np.uint8]], *, dataset: ImageDataset, rows: NDArray[np.int64], image_size: int | None
) -> NDArray[np.uint8]:
    """One uint8 array [N, H, W, 3]; InputError where sizes differ and ``image_size`` is None."""
    if image_size is not None:
        images = [resized(image, side=image_size) for image in images]
    elif len({image.shape for image in images}) > 1:
        other = next(index for index, image in enumerate(images) if image.shape != images[0].shape)
        first, second = (" x ".join(map(str, images[index].shape[:2])) for index in (0, other))
        raise InputError(
            f"{dataset.name} has images of different sizes (row {rows[0]}: {first}, row {rows[other]}: {second});"
            " give the student's side with --image-size N"
        )
    return np.stack(images)


def resized(pixels_HW3: NDArray[np.uint8], *, side: int) -> NDArray[np.uint8]:
    """As the trained student will see any image when it is a teacher: by its shorter side, then the middle."""
    preprocessing = Preprocessing.for_size((side, side), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return preprocessing.resized([pixels_HW3])[0]

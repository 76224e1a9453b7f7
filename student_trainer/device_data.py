"""Images that live on the device as one uint8 tensor, and come out as normalised batches.

Shape key: B batch, N images, H height, W width.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from shared.datasets.base import ImageDataset, Normalisation
from shared.errors import InputError
from shared.models.preprocessing import Preprocessing
from shared.view_policy import RandomPolicy, random_policy
from student_trainer.augment import padded, render_views
from student_trainer.mixed_views import MixedViews, ShownImages, shown_rows
from student_trainer.rendered_views import RenderedViews


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
        kept_views: Sequence[int] = (),
    ) -> None:
        """``augmented``: views other than 0 are asked for; ``kept_views``: the few that are, again and again."""
        drawn = random_policy(dataset.view_policy) if augmented else None
        mixing = drawn if drawn is not None and drawn.mixes else None
        loaded = rows if mixing is None else shown_rows(rows, kept_views, policy=mixing, num_rows=dataset.num_rows)
        pixels_NHW3 = stacked(dataset.images(loaded), dataset=dataset, rows=loaded, image_size=image_size)
        self.rows = rows
        """int64 [N] on the host."""
        self.labels = torch.from_numpy(dataset.labels[rows]).to(device)
        """int64 [N] on the device."""
        self.image_shape = (pixels_NHW3.shape[1], pixels_NHW3.shape[2])
        """(H, W) in pixels."""
        self._device = device
        self._policy = dataset.view_policy
        self._cropped = augmented and drawn is None
        self._mixed: MixedViews | None = None
        self._rendered: RenderedViews | None = None
        if mixing is not None:
            shown = ShownImages(pixels=pixels_NHW3, rows=loaded, num_rows=dataset.num_rows)
            self._mixed = MixedViews(shown, rows=rows, policy=mixing, device=device)
        elif drawn is not None:
            self._rendered = RenderedViews(
                self._drawing(dataset, pixels_NHW3, policy=drawn, image_size=image_size),
                count=len(rows),
                shape=self.image_shape,
                kept_views=kept_views,
            )
        # Partners are there already, and drawn views are made on the host.
        pixels = torch.from_numpy(pixels_NHW3[:0] if drawn is not None else pixels_NHW3).to(device)
        self._pixels = padded(pixels, policy=self._policy) if self._cropped else pixels
        mean, std = torch.tensor(normalisation.mean), torch.tensor(normalisation.std)
        self._scale = (1 / (255 * std)).view(1, 1, 1, 3).to(device)
        self._shift = (-mean / std).view(1, 1, 1, 3).to(device)

    def __len__(self) -> int:
        return len(self.rows)

    def pixels(
        self, positions_B: Tensor, views_B: NDArray[np.int64], *, host_B: NDArray[np.int64] | None = None
    ) -> Tensor:
        """Pixels uint8 [B, H, W, 3] of the views; where nothing is augmented, of view 0.

        ``host_B`` are the positions where they are on the host too: the device is not waited for.
        """
        if self._mixed is not None:
            return self._mixed.pixels(_on_host(positions_B, host_B), views_B)
        if self._rendered is not None:
            drawn = torch.from_numpy(self._rendered.pixels(_on_host(positions_B, host_B), views_B))
            return drawn.to(self._device, non_blocking=True)
        if self._cropped:
            return render_views(self._pixels, positions_B=positions_B, views_B=views_B, policy=self._policy)
        return self._pixels[positions_B]

    def will_need(self, positions_B: NDArray[np.int64], views_B: NDArray[np.int64]) -> None:
        """These are asked for next: what is drawn one by one is begun."""
        if self._rendered is not None:
            self._rendered.will_need(positions_B, views_B)

    def soft_labels(
        self, positions_B: NDArray[np.int64], views_B: NDArray[np.int64], *, labels_N: NDArray[np.int64], classes: int
    ) -> Tensor | None:
        """Label distributions float32 [B, C] of images that show two rows; None where each shows one.

        ``labels_N`` are those of all rows of the data set.
        """
        if self._mixed is None:
            return None
        partner_B, share_B = self._mixed.mixing(positions_B, views_B)
        share_B1 = torch.from_numpy(share_B.astype(np.float32)).to(self._device, non_blocking=True)[:, None]
        own_BC, other_BC = (
            one_hot(torch.from_numpy(labels_N[rows_B]).to(self._device, non_blocking=True), classes)
            for rows_B in (self.rows[positions_B], partner_B)
        )
        return share_B1 * own_BC + (1 - share_B1) * other_BC

    def close(self) -> None:
        """End the threads that draw."""
        if self._rendered is not None:
            self._rendered.close()

    def _drawing(
        self,
        dataset: ImageDataset,
        plain_NHW3: NDArray[np.uint8],
        *,
        policy: RandomPolicy,
        image_size: int | None,
    ) -> Callable[[int, int], NDArray[np.uint8]]:
        """(position, view) -> pixels uint8 [H, W, 3], by the data set, as the teacher's are."""
        rows, shape = self.rows.tolist(), plain_NHW3.shape[1:]

        def draw(position: int, view: int) -> NDArray[np.uint8]:
            plain_HW3: NDArray[np.uint8] = plain_NHW3[position]
            if view == 0:
                return plain_HW3
            pixels_HW3 = dataset.rendered(rows[position], view)
            if pixels_HW3.shape != shape and image_size is not None:
                pixels_HW3 = resized(pixels_HW3, side=image_size)
            if pixels_HW3.shape != shape:
                found, images = (" x ".join(map(str, size[:2])) for size in (pixels_HW3.shape, shape))
                raise InputError(
                    f"views of {policy} are {found}, the images of {dataset.name} {images}: train with"
                    f" --image-size {policy.size}, or use rrc:size=0"
                )
            return pixels_HW3

        return draw

    def batch(
        self, positions_B: Tensor, views_B: NDArray[np.int64], *, host_B: NDArray[np.int64] | None = None
    ) -> Tensor:
        """Network input float32 [B, 3, H, W], ``(pixels / 255 - mean) / std``, channels last in memory."""
        normalised = self.pixels(positions_B, views_B, host_B=host_B) * self._scale + self._shift
        return normalised.permute(0, 3, 1, 2)


def _on_host(positions_B: Tensor, host_B: NDArray[np.int64] | None) -> NDArray[np.int64]:
    return positions_B.cpu().numpy() if host_B is None else host_B


def one_hot(labels_B: Tensor, classes: int) -> Tensor:
    """float32 [B, C]."""
    return functional.one_hot(labels_B, classes).to(torch.float32)


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

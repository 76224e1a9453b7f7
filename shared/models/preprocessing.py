"""What happens between canonical pixels and the network: resize, crop (Pillow, pinned), then mean and std.

Shape key: B images, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.errors import InputError

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """Resize and normalisation of one network; part of its teacher's id."""

    mean: Triple
    """Mean of pixels / 255, per channel."""
    std: Triple
    """Standard deviation of pixels / 255, per channel."""
    resize: int | tuple[int, int] | None = None
    """Length of the shorter side, or the exact (H, W); None keeps the size."""
    crop: tuple[int, int] | None = None
    """(H, W) cut from the middle after the resize."""
    interpolation: str = "bilinear"
    """Filter of the resize."""

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(f"unknown interpolation {self.interpolation!r}; known: {', '.join(INTERPOLATIONS)}")
        if not all(value > 0 for value in self.std):
            raise InputError(f"std of a normalisation must be positive, got {list(self.std)}")

    @classmethod
    def for_size(cls, size: tuple[int, int] | None, *, mean: Triple, std: Triple) -> "Preprocessing":
        """For a network trained on images of ``size`` (H, W): a square keeps the proportions of what it shows."""
        if size is None or size[0] != size[1]:
            return cls(mean=mean, std=std, resize=size)
        return cls(mean=mean, std=std, resize=size[0], crop=size)

    def to_json(self) -> dict[str, Any]:
        """JSON values, as the teacher's description holds them."""
        resize = list(self.resize) if isinstance(self.resize, tuple) else self.resize
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "resize": resize,
            "crop": None if self.crop is None else list(self.crop),
            "interpolation": None if self.resize is None else self.interpolation,
        }

    @property
    def output_size(self) -> tuple[int, int] | None:
        """The (H, W) that every image leaves with; None where it depends on the image."""
        if self.crop is not None:
            return self.crop
        return self.resize if isinstance(self.resize, tuple) else None

    def resized(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
        """uint8 [H, W, 3] images after resize and crop; those that need neither are returned as they are."""
        return [self._resized(image) for image in images]

    def _resized(self, image_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
        size = self._resized_size(image_HW3.shape[0], image_HW3.shape[1])
        if size != image_HW3.shape[:2]:
            picture = Image.fromarray(image_HW3)
            resized = picture.resize((size[1], size[0]), INTERPOLATIONS[self.interpolation])
            image_HW3 = np.asarray(resized, dtype=np.uint8)
        return image_HW3 if self.crop is None else _middle(image_HW3, size=self.crop)

    def _resized_size(self, height: int, width: int) -> tuple[int, int]:
        if self.resize is None:
            return (height, width)
        if isinstance(self.resize, tuple):
            return self.resize
        # As torchvision's Resize(int): the longer side is cut to a whole number.
        if height <= width:
            return (self.resize, int(self.resize * width / height))
        return (int(self.resize * height / width), self.resize)


def _middle(image_HW3: NDArray[np.uint8], *, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The middle (H, W), padded with black where the image is smaller (as torchvision's CenterCrop)."""
    missing = [max(0, want - have) for want, have in zip(size, image_HW3.shape[:2], strict=True)]
    if any(missing):
        margins = [(lack // 2, (lack + 1) // 2) for lack in missing]
        image_HW3 = np.pad(image_HW3, [*margins, (0, 0)])
    top, left = (round((have - want) / 2.0) for want, have in zip(size, image_HW3.shape[:2], strict=True))
    return image_HW3[top : top + size[0], left : left + size[1]]

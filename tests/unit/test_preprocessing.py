"""Resizing and cropping are what torchvision does to a Pillow image."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from shared.errors import InputError
from shared.models.preprocessing import Preprocessing

GREY = (0.5, 0.5, 0.5)


def picture(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(32, 32), (40, 61), (61, 40), (300, 210), (9, 33)])
@pytest.mark.parametrize(("resize", "crop", "name"), [(40, 32, "bilinear"), (33, 28, "bicubic"), (21, 24, "bilinear")])
def test_resize_and_crop_equal_torchvisions(size: tuple[int, int], resize: int, crop: int, name: str) -> None:
    image = picture(*size)
    ours = Preprocessing(mean=GREY, std=GREY, resize=resize, crop=(crop, crop), interpolation=name)
    reference = Compose([Resize(resize, InterpolationMode(name)), CenterCrop(crop)])
    np.testing.assert_array_equal(ours.resized([image])[0], np.asarray(reference(Image.fromarray(image))))


def test_an_exact_size_changes_both_sides_and_nothing_changes_an_image_of_that_size() -> None:
    ours = Preprocessing(mean=GREY, std=GREY, resize=(16, 24))
    image = picture(16, 24)
    small, same = ours.resized([picture(7, 9), image])
    assert small.shape == (16, 24, 3)
    assert same is image
    assert ours.output_size == (16, 24)


def test_without_resize_images_keep_their_size() -> None:
    ours = Preprocessing(mean=GREY, std=GREY)
    assert [image.shape for image in ours.resized([picture(3, 4), picture(5, 6)])] == [(3, 4, 3), (5, 6, 3)]
    assert ours.output_size is None
    assert ours.to_json() == {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "resize": None,
        "crop": None,
        "interpolation": None,
    }


def test_an_unknown_filter_or_a_zero_std_is_refused() -> None:
    with pytest.raises(InputError, match="known: nearest, bilinear"):
        Preprocessing(mean=GREY, std=GREY, interpolation="cubicle")
    with pytest.raises(InputError, match="positive"):
        Preprocessing(mean=GREY, std=(0.0, 1.0, 1.0))

"""Images on the device: every view has the key that the data set gives it, and networks see the normalised pixels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.datasets.base import ArrayDataset, ItemDataset, Normalisation, SplitFacts
from shared.errors import InputError
from shared.identity import pixel_key
from shared.views import render, view_count
from student_trainer.augment import padded, render_views
from student_trainer.device_data import DeviceImages, resized

NORMALISATION = Normalisation(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def pixels_of(count: int, *, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=(count, height, width, 3), dtype=np.uint8)


def dataset_of(pixels: np.ndarray, *, policy: str = "crop2flip") -> ArrayDataset:
    labels = np.arange(len(pixels)) % 3
    facts = SplitFacts(name="toy/train", classes=["a", "b", "c"], labels=labels, view_policy=policy)
    return ArrayDataset(facts, pixels=pixels)


@settings(deadline=None)
@given(
    policy=st.sampled_from(["crop1", "crop2flip", "crop4flip", "crop0flip"]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    data=st.data(),
)
def test_batched_views_have_the_bytes_of_single_ones(policy: str, height: int, width: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 4))
    pixels = pixels_of(count, height=height, width=width)
    positions = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=6))
    views = [data.draw(st.integers(0, view_count(policy))) for _ in positions]
    batch = render_views(
        padded(torch.from_numpy(pixels), policy=policy),
        positions_B=torch.tensor(positions),
        views_B=np.array(views, dtype=np.int64),
        policy=policy,
    )
    expected = [
        render(pixels[position], view=view, policy=policy) for position, view in zip(positions, views, strict=True)
    ]
    assert [pixel_key(image) for image in batch.numpy()] == [pixel_key(image) for image in expected]


def test_every_view_on_the_device_has_the_key_of_the_data_set() -> None:
    dataset = dataset_of(pixels_of(5, height=6, width=7))
    rows = np.array([4, 1, 3])
    images = DeviceImages(dataset, rows, normalisation=NORMALISATION, device=torch.device("cpu"), augmented=True)
    for view in range(view_count("crop2flip") + 1):
        rendered = images.pixels(torch.arange(3), np.full(3, view)).numpy()
        assert [pixel_key(image) for image in rendered] == [dataset.key_of(int(row), view) for row in rows]


@pytest.mark.parametrize("policy", ["randaug:n=3", "rrc:base=crop0flip", "cutmix", "mixup:alpha=0.5"])
@pytest.mark.parametrize("kept_views", [(), tuple(range(12))])
def test_random_views_on_the_device_have_the_keys_of_the_data_set(policy: str, kept_views: tuple[int, ...]) -> None:
    dataset = dataset_of(pixels_of(5, height=6, width=9)).with_views(policy)
    rows = np.array([4, 1, 3])
    images = DeviceImages(
        dataset,
        rows,
        normalisation=NORMALISATION,
        device=torch.device("cpu"),
        augmented=True,
        kept_views=kept_views,
    )
    positions, views = np.arange(36) % 3, np.arange(36) // 3
    images.will_need(positions, views)
    for _ in range(2):
        rendered = images.pixels(torch.from_numpy(positions), views).numpy()
        expected = [dataset.key_of(int(rows[at]), int(view)) for at, view in zip(positions, views, strict=True)]
        assert [pixel_key(image) for image in rendered] == expected
    images.close()


def test_labels_of_mixed_images_are_shared_by_pixels() -> None:
    """Each class has a colour of its own: its share of the pixels is its share of the label."""
    colours = np.array([[0, 0, 0], [255, 255, 255]], dtype=np.uint8)
    labels = np.arange(6) % 2
    pixels = np.broadcast_to(colours[labels][:, None, None], (6, 16, 16, 3))
    facts = SplitFacts(name="toy/train", classes=["dark", "bright"], labels=labels, view_policy="crop0flip")
    for policy, tolerance in (("cutmix", 1e-6), ("mixup", 1 / 255)):
        dataset = ArrayDataset(facts, pixels=pixels).with_views(policy)
        images = DeviceImages(
            dataset, np.arange(1, 5), normalisation=NORMALISATION, device=torch.device("cpu"), augmented=True
        )
        positions, views = np.arange(40) % 4, np.arange(40)
        soft = images.soft_labels(positions, views, labels_N=dataset.labels, classes=2)
        assert soft is not None
        brightness = images.pixels(torch.from_numpy(positions), views).float().mean(dim=(1, 2, 3)) / 255
        assert torch.allclose(soft[:, 1], brightness, atol=tolerance)
        assert torch.allclose(soft.sum(dim=1), torch.ones(40))
        assert soft[0].tolist() == [0.0, 1.0]
        assert soft.min() < 0.5 < soft.max()
        assert ((soft > 0.05) & (soft < 0.95)).any()


def test_views_of_another_size_ask_for_that_size() -> None:
    dataset = dataset_of(pixels_of(3, height=8, width=8)).with_views("rrc:size=5")
    placing = {"normalisation": NORMALISATION, "device": torch.device("cpu"), "augmented": True}
    images = DeviceImages(dataset, np.arange(3), **placing)
    with pytest.raises(InputError, match=r"are 5 x 5, the images of toy/train 8 x 8: train with --image-size 5"):
        images.pixels(torch.arange(3), np.ones(3, dtype=np.int64))
    images = DeviceImages(dataset, np.arange(3), image_size=5, **placing)
    assert pixel_key(images.pixels(torch.arange(1), np.ones(1, dtype=np.int64))[0].numpy()) == dataset.key_of(0, 1)


@pytest.mark.parametrize("augmented", [False, True])
def test_network_input_is_the_normalised_pixels(augmented: bool) -> None:
    dataset = dataset_of(pixels_of(4, height=5, width=5))
    images = DeviceImages(
        dataset, np.arange(4), normalisation=NORMALISATION, device=torch.device("cpu"), augmented=augmented
    )
    found = images.batch(torch.tensor([2, 0]), np.zeros(2, dtype=np.int64))
    scaled = np.stack([dataset.image(2), dataset.image(0)]) / 255
    expected = ((scaled - np.array(NORMALISATION.mean)) / np.array(NORMALISATION.std)).transpose(0, 3, 1, 2)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert images.labels.tolist() == [0, 1, 2, 0]


def of_different_sizes() -> ItemDataset:
    sizes = [(8, 8), (8, 12), (10, 6)]
    images = [pixels_of(1, height=height, width=width, seed=height)[0] for height, width in sizes]
    facts = SplitFacts(name="toy/train", classes=["a"], labels=[0, 0, 0], view_policy="crop1")
    return ItemDataset(facts, read=images.__getitem__)


def test_images_of_different_sizes_ask_for_a_size() -> None:
    with pytest.raises(InputError, match=r"row 0: 8 x 8, row 1: 8 x 12.*--image-size N"):
        DeviceImages(of_different_sizes(), np.arange(3), normalisation=NORMALISATION, device=torch.device("cpu"))


def test_a_size_makes_all_images_square() -> None:
    images = DeviceImages(
        of_different_sizes(), np.arange(3), normalisation=NORMALISATION, device=torch.device("cpu"), image_size=8
    )
    assert images.image_shape == (8, 8)
    assert len(images) == 3


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 20), (31, 9), (5, 7)])
def test_resizing_keeps_the_middle(height: int, width: int) -> None:
    image = np.full((height, width, 3), 90, dtype=np.uint8)
    assert resized(image, side=8).shape == (8, 8, 3)
    assert np.all(resized(image, side=8) == 90)


def test_an_image_of_the_right_size_is_not_touched() -> None:
    image = pixels_of(1, height=8, width=8)[0]
    assert np.array_equal(resized(image, side=8), image)
    wide = pixels_of(1, height=8, width=12)[0]
    assert np.array_equal(resized(wide, side=8), wide[:, 2:10])

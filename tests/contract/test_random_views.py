"""Views drawn at random are the same bytes for ever: replayed against golden digests, and in a process of their own.

Run as a program it writes the digests, one JSON object.
"""

import hashlib
import json
import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from PIL import __version__ as pillow_version

from shared.datasets.base import ArrayDataset, ItemDataset, SplitFacts
from shared.draws import Draws
from shared.mixing import WEIGHTS, draw_mixes, mixing, weight_thresholds
from shared.randaugment import OPERATIONS, draw_operations
from shared.resized_crop import draw_part
from shared.view_policy import RandomPolicy, random_policy

HEIGHT, WIDTH, ROWS, VIEWS = 12, 16, 10, 25
GOLDEN = {
    "randaug:n=2,m=9,base=crop2flip,seed=0": "e4e14f6911b1032c72af8ca0e912a37159ea7f308d5dcacaf1bd6f1c6a63f868",
    "rrc:area=8,size=0,base=crop0flip,seed=0": "b17594762ea6190121259f10716c9b8d75698c58166cebfd61136719e44047fc",
    "cutmix:alpha=1,base=crop2flip,seed=0": "2fc8a3cb0f0ecb9a8dd6c2cb7bb878288f25ab21dc47d35c8176d41cc27fdced",
    "mixup:alpha=0.2,base=crop2flip,seed=3": "753a91559496f8ea8a40c61c9818ebd838e70139e4ff10f46cbc9bcc5c8b5f1b",
}
"""SHA-256 over the keys of 250 views each, drawn with Pillow 13.0.0 on x86-64."""


def pictures(policy: str | None = None) -> ArrayDataset:
    """Ten pictures without any random generator: gradients with noise from a hash."""
    noise = np.frombuffer(hashlib.shake_256(b"pictures").digest(ROWS * HEIGHT * WIDTH * 3), dtype=np.uint8)
    ramp = np.arange(WIDTH)[:, None] * np.array([5, 9, 13])
    pixels = (noise.reshape(ROWS, HEIGHT, WIDTH, 3) // 4 + ramp).astype(np.uint8)
    facts = SplitFacts(name="toy/train", classes=["a", "b"], labels=np.arange(ROWS) % 2, view_policy="crop2flip")
    return ArrayDataset(facts, pixels=pixels).with_views(policy)


def digest(policy: str) -> str:
    dataset = pictures(policy)
    keys = [dataset.key_of(row, view) for row in range(ROWS) for view in range(1, VIEWS + 1)]
    return hashlib.sha256(b"".join(keys)).hexdigest()


def policy_of(text: str) -> RandomPolicy:
    policy = random_policy(text)
    assert policy is not None
    return policy


@pytest.mark.parametrize("policy", GOLDEN)
def test_views_are_the_bytes_they_always_were(policy: str) -> None:
    assert digest(policy) == GOLDEN[policy], f"drawn by Pillow {pillow_version}, recorded with 13.0.0"


def test_another_process_draws_the_same_bytes() -> None:
    told = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=True).stdout
    assert json.loads(told) == GOLDEN


@pytest.mark.parametrize("policy", GOLDEN)
def test_view_0_is_the_image_and_other_seeds_and_views_are_other_images(policy: str) -> None:
    dataset, again = pictures(policy), pictures(policy.replace("seed=", "seed=9"))
    assert dataset.view_policy == policy
    assert np.array_equal(dataset.rendered(3, 0), dataset.image(3))
    assert dataset.rendered(3, 1).shape == dataset.image(3).shape
    assert len({dataset.key_of(3, view) for view in range(10)}) > 8
    assert sum(dataset.key_of(row, 1) != again.key_of(row, 1) for row in range(ROWS)) > 8
    assert dataset.fingerprint == pictures().fingerprint
    assert pictures().description.decoder == ""
    assert dataset.description.decoder == f"pillow {pillow_version}"


def test_draws_are_the_words_of_sha_256() -> None:
    words = b"".join(hashlib.sha256(f"randaug:0:5:7:{block}".encode()).digest() for block in (0, 1))
    draws = Draws("randaug", 0, 5, 7)
    assert [draws.word() for _ in range(16)] == [int.from_bytes(words[at : at + 4], "big") for at in range(0, 64, 4)]
    other = Draws("randaug", 0, 5, 7)
    assert [other.below(10), other.below(1)] == [int.from_bytes(words[:4], "big") * 10 >> 32, 0]


def test_every_operation_is_drawn_with_both_signs_equally_often() -> None:
    drawn = [step for view in range(2800) for step in draw_operations(Draws("randaug", 0, 0, view), count=2)]
    counts = [drawn.count((name, sign)) for name in OPERATIONS for sign in (1, -1)]
    assert len(counts) == 28
    assert all(abs(count - 200) < 5 * math.sqrt(200) for count in counts)


@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_operations_are_those_of_the_paper(magnitude: int) -> None:
    """Written a second way: by Pillow's own enhancers and torchvision's floating point; exact but for rounding."""
    picture = Image.fromarray(np.kron(pictures().image(1), np.ones((2, 2, 1), dtype=np.uint8)))
    width = picture.width
    pixels = np.asarray(picture).astype(int)
    for sign in (1, -1):
        factor = 1 + sign * 0.9 * magnitude / 30
        for name, enhancer in (
            ("brightness", ImageEnhance.Brightness),
            ("color", ImageEnhance.Color),
            ("contrast", ImageEnhance.Contrast),
            ("sharpness", ImageEnhance.Sharpness),
        ):
            found = np.asarray(OPERATIONS[name](picture, magnitude, sign)).astype(int)
            assert np.abs(found - np.asarray(enhancer(picture).enhance(factor)).astype(int)).max() <= 2, name
        turned = np.asarray(picture.rotate(-sign * magnitude))
        assert (np.asarray(OPERATIONS["rotate"](picture, magnitude, sign)) != turned).mean() < 0.02
        shift = int(150 / 331 * width * magnitude / 30)
        moved = np.zeros_like(pixels)
        source, to = (slice(shift, None), slice(None, width - shift))
        source, to = (source, to) if sign > 0 else (to, source)
        moved[:, to] = pixels[:, source]
        assert np.array_equal(np.asarray(OPERATIONS["translate_x"](picture, magnitude, sign)), moved)
    threshold = 255 - 255 * magnitude / 30
    inverted = np.where(pixels >= threshold, 255 - pixels, pixels)
    assert np.array_equal(np.asarray(OPERATIONS["solarize"](picture, magnitude, 1)), inverted)
    bits = 8 - round(magnitude * 4 / 30)
    assert np.array_equal(
        np.asarray(OPERATIONS["posterize"](picture, magnitude, 1)), pixels >> (8 - bits) << (8 - bits)
    )
    for operation in OPERATIONS.values():
        assert operation(picture, magnitude, 1).size == picture.size


def test_no_rounded_sine_is_near_the_middle_of_two_steps() -> None:
    for degrees in range(31):
        for value in (math.cos(math.radians(degrees)), math.sin(math.radians(degrees))):
            assert abs(65536 * value % 1 - 0.5) > 1e-6


def test_parts_cover_their_range_of_areas_proportions_and_places() -> None:
    height, width = 400, 600
    parts = [draw_part(Draws("rrc", 0, 0, view), height=height, width=width, area=8) for view in range(2000)]
    high = np.array([part.bottom - part.top for part in parts])
    wide = np.array([part.right - part.left for part in parts])
    assert all(0 <= part.top < part.bottom <= height and 0 <= part.left < part.right <= width for part in parts)
    shares, proportions = high * wide / (height * width), np.log(wide / high)
    assert 0.079 < shares.min() < 0.09
    # Of a wide image no part of 3/4 to 4/3 shows more than 8/9.
    assert 0.87 < shares.max() < 0.9
    assert proportions.min() < math.log(3 / 4) + 0.02
    assert proportions.max() > math.log(4 / 3) - 0.02
    assert np.abs(proportions).max() < math.log(4 / 3) + 0.01
    assert min(part.top for part in parts) == 0
    assert max(part.right for part in parts) == width
    strip = draw_part(Draws("rrc", 0, 0, 1), height=10, width=1000, area=90)
    assert (strip.bottom - strip.top, strip.right - strip.left) == (10, 13)


def test_a_part_of_a_given_size_is_square() -> None:
    assert pictures("rrc:size=7").rendered(0, 1).shape == (7, 7, 3)
    whole = pictures("rrc:area=100,base=crop0").rendered(0, 1)
    assert whole.shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    ("alpha", "law"),
    [
        ("1", lambda x: x),
        ("2", lambda x: 3 * x**2 - 2 * x**3),
        ("3", lambda x: 10 * x**3 - 15 * x**4 + 6 * x**5),
        ("0.5", lambda x: Fraction(2 / math.pi * math.asin(math.sqrt(x)))),
    ],
)
def test_weights_follow_the_beta_distribution(alpha: str, law: object) -> None:
    assert callable(law)
    thresholds = weight_thresholds(alpha).tolist()
    expected = [law(Fraction(weight, WEIGHTS + 1)) * 2**32 for weight in range(1, WEIGHTS + 1)]
    assert max(abs(found - float(wanted)) for found, wanted in zip(thresholds, expected, strict=True)) <= 0.51


def test_partners_are_all_other_rows_and_weights_cover_their_range() -> None:
    policy = policy_of("mixup:base=crop2flip")
    views = list(range(1, 3001))
    mixes = draw_mixes([4] * len(views), views, policy=policy, num_rows=ROWS)
    counts = np.bincount(mixes.partner, minlength=ROWS)
    assert counts[4] == 0
    assert np.abs(np.delete(counts, 4) - 3000 / 9).max() < 5 * math.sqrt(3000 / 9)
    assert set(np.unique(mixes.weight)) == set(range(257))
    assert set(np.unique(mixes.own_view)) == set(range(1, 51)) == set(np.unique(mixes.partner_view))
    assert draw_mixes([0], [1], policy=policy, num_rows=1).partner.tolist() == [0]


@pytest.mark.parametrize("size", [(1, 1), (12, 16), (32, 5)])
def test_boxes_lie_inside_and_their_area_is_the_partners_share(size: tuple[int, int]) -> None:
    policy, views = policy_of("cutmix"), list(range(2000))
    mixes = draw_mixes([0] * len(views), views, policy=policy, num_rows=ROWS)
    top, bottom, left, right = mixes.boxes(height=size[0], width=size[1])
    for first, last, side in ((top, bottom, size[0]), (left, right, size[1])):
        assert first.min() >= 0
        assert last.max() == side
        assert (first <= last).all()
    partner, share = mixing([0] * len(views), views, policy="cutmix", num_rows=ROWS, size=size)
    assert (partner[0], share[0]) == (0, 1.0)
    assert np.allclose(1 - share, (bottom - top) * (right - left) / (size[0] * size[1]))
    assert share.min() < 0.5


def test_mixed_pixels_are_the_blend_of_the_two_cropped_images() -> None:
    blended, cut, crops = pictures("mixup"), pictures("cutmix"), pictures("crop2flip")
    for row, view in ((0, 1), (3, 8), (9, 20)):
        drawn = draw_mixes([row], [view], policy=policy_of("mixup:base=crop2flip"), num_rows=ROWS)
        weight = int(drawn.weight[0])
        own = crops.rendered(row, int(drawn.own_view[0])).astype(int)
        partner = crops.rendered(int(drawn.partner[0]), int(drawn.partner_view[0])).astype(int)
        assert np.array_equal(blended.rendered(row, view), (own * weight + partner * (256 - weight) + 128) // 256)
        drawn = draw_mixes([row], [view], policy=policy_of("cutmix:base=crop2flip"), num_rows=ROWS)
        top, bottom, left, right = (int(edge[0]) for edge in drawn.boxes(height=HEIGHT, width=WIDTH))
        expected = crops.rendered(row, int(drawn.own_view[0])).copy()
        other = crops.rendered(int(drawn.partner[0]), int(drawn.partner_view[0]))
        for y in range(top, bottom):
            for x in range(left, right):
                expected[y, x] = other[y, x]
        assert np.array_equal(cut.rendered(row, view), expected)


def test_partners_of_another_size_take_the_rows_own() -> None:
    images = [np.full((4 + row, 9 - row, 3), 50 * row, dtype=np.uint8) for row in range(3)]
    facts = SplitFacts(name="toy/train", classes=["a"], labels=[0, 0, 0], view_policy="crop0")
    for policy in ("cutmix", "mixup"):
        dataset = ItemDataset(facts, read=images.__getitem__).with_views(policy)
        assert {dataset.rendered(1, view).shape for view in range(20)} == {(5, 8, 3)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps({policy: digest(policy) for policy in GOLDEN}))

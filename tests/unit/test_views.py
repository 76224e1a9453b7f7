"""Numbered views against a second implementation: pad the image, cut it, mirror it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from shared.errors import InputError, RowRangeError, UnknownNameError
from shared.views import check_view, compose, decompose, has_flip, padding_of, parse_views, render, view_count

POLICIES = ("crop4flip", "crop1", "crop2flip", "crop0", "crop0flip")
IMAGES = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 999)).map(
    lambda drawn: np.random.default_rng(drawn[2]).integers(1, 256, (drawn[0], drawn[1], 3), dtype=np.uint8)
)


def reference(pixels: NDArray[np.uint8], *, flip: bool, dy: int, dx: int, padding: int) -> NDArray[np.uint8]:
    padded = np.pad(pixels, ((padding, padding), (padding, padding), (0, 0)))
    crop = padded[dy : dy + pixels.shape[0], dx : dx + pixels.shape[1]]
    return crop[:, ::-1] if flip else crop


@given(pixels=IMAGES)
def test_the_162_views_are_81_crops_and_the_same_mirrored(pixels: NDArray[np.uint8]) -> None:
    view = 0
    for flip in (False, True):
        for dy in range(9):
            for dx in range(9):
                view += 1
                expected = reference(pixels, flip=flip, dy=dy, dx=dx, padding=4)
                assert np.array_equal(render(pixels, view=view, policy="crop4flip"), expected)
    assert view == view_count("crop4flip") == 162


@given(pixels=IMAGES, view=st.integers(1, 9))
def test_digits_have_nine_views_without_a_mirror(pixels: NDArray[np.uint8], view: int) -> None:
    dy, dx = divmod(view - 1, 3)
    expected = reference(pixels, flip=False, dy=dy, dx=dx, padding=1)
    assert np.array_equal(render(pixels, view=view, policy="crop1"), expected)


@given(pixels=IMAGES)
def test_view_41_of_crop4flip_has_the_pixels_of_view_0(pixels: NDArray[np.uint8]) -> None:
    assert render(pixels, view=0, policy="crop4flip") is pixels
    assert np.array_equal(render(pixels, view=41, policy="crop4flip"), pixels)
    assert np.array_equal(render(pixels, view=41 + 81, policy="crop4flip"), pixels[:, ::-1])


@given(pixels=IMAGES, view=st.integers(1, 162))
def test_a_rendered_view_is_an_array_of_its_own_and_the_image_stays(pixels: NDArray[np.uint8], view: int) -> None:
    before = pixels.copy()
    rendered = render(pixels, view=view, policy="crop4flip")
    assert rendered.flags.c_contiguous
    assert not np.shares_memory(rendered, pixels)
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize("policy", POLICIES)
def test_composing_undoes_decomposing(policy: str) -> None:
    seen = [decompose(view, policy) for view in range(1, view_count(policy) + 1)]
    assert len(set(seen)) == len(seen)
    for view, (flip, dy, dx) in enumerate(seen, start=1):
        assert compose(flip, dy=dy, dx=dx, policy=policy) == view
        assert 0 <= flip <= has_flip(policy)
        assert 0 <= dy <= 2 * padding_of(policy)
        assert 0 <= dx <= 2 * padding_of(policy)


@pytest.mark.parametrize("policy", POLICIES)
def test_arrays_are_decomposed_like_single_views(policy: str) -> None:
    views = np.arange(view_count(policy) + 1)
    flips, dys, dxs = decompose(views, policy)
    assert list(zip(flips.tolist(), dys.tolist(), dxs.tolist(), strict=True)) == [
        decompose(view, policy) for view in views.tolist()
    ]


def test_view_0_is_the_unmirrored_middle() -> None:
    assert decompose(0, "crop4flip") == (0, 4, 4) == decompose(41, "crop4flip")
    assert decompose(0, "crop1") == (0, 1, 1)


def test_views_are_written_as_numbers_and_ranges() -> None:
    assert parse_views("0", policy="crop4flip") == (0,)
    assert parse_views("0,5, 1-3", policy="crop4flip") == (0, 5, 1, 2, 3)
    assert parse_views("1-162", policy="crop4flip") == tuple(range(1, 163))
    assert parse_views("5,1-6,5", policy="crop4flip") == (5, 1, 2, 3, 4, 6)


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1--2", "1.0", "0,,1", "٣", "1-2-3"])
def test_other_lists_of_views_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="cannot read views"):
        parse_views(text, policy="crop4flip")


def test_a_backward_range_is_refused_with_the_forward_one() -> None:
    with pytest.raises(InputError, match="write 1-5"):
        parse_views("5-1", policy="crop4flip")


@pytest.mark.parametrize("view", [-1, 163, 10**9])
def test_a_view_out_of_range_is_named(view: int) -> None:
    with pytest.raises(RowRangeError, match=f"view {view} is out of range: crop4flip has views 0 to 162"):
        check_view(view, policy="crop4flip")
    with pytest.raises(RowRangeError):
        render(np.zeros((2, 2, 3), np.uint8), view=view, policy="crop4flip")


@pytest.mark.parametrize("policy", ["", "crop", "crop4 flip", "flip", "crop4flipflip", "crop-1", "crop٣"])
def test_an_unknown_policy_is_refused(policy: str) -> None:
    with pytest.raises(UnknownNameError, match="unknown view policy"):
        view_count(policy)

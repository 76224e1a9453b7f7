"""View policies as users write them: completed with what is left out, refused where they cannot be meant."""

import pytest

from shared.errors import InputError, RowRangeError, UnknownNameError
from shared.view_policy import RANDOM_VIEWS, random_policy, read_policy
from shared.views import check_view, padding_of, parse_views, view_count


@pytest.mark.parametrize(
    ("text", "own", "full"),
    [
        ("crop4flip", "crop1", "crop4flip"),
        ("randaug", "crop4flip", "randaug:n=2,m=9,base=crop4flip,seed=0"),
        ("randaug", "crop1", "randaug:n=2,m=9,base=crop1,seed=0"),
        ("randaug:seed=7, m=30", "crop4flip", "randaug:n=2,m=30,base=crop4flip,seed=7"),
        ("randaug:base=crop0,n=1", "crop4flip", "randaug:n=1,m=9,base=crop0,seed=0"),
        ("rrc", "crop4flip", "rrc:area=8,size=0,base=crop0flip,seed=0"),
        ("rrc:size=224,area=25", "crop1", "rrc:area=25,size=224,base=crop0,seed=0"),
        ("cutmix", "crop2", "cutmix:alpha=1,base=crop2,seed=0"),
        ("mixup:alpha=0.20", "crop4flip", "mixup:alpha=0.2,base=crop4flip,seed=0"),
        ("mixup:alpha=01.00", "randaug", "mixup:alpha=1,base=crop0,seed=0"),
    ],
)
def test_what_is_left_out_is_filled_in(text: str, own: str, full: str) -> None:
    read = str(read_policy(text, own))
    assert read == full
    # What a cache records stands for itself, whatever the data set's own views are.
    assert str(read_policy(full, "crop9flip")) == full


@pytest.mark.parametrize(
    ("text", "error", "named"),
    [
        ("randaugment", UnknownNameError, r"unknown view policy 'randaugment'; known: crop1, .*randaug\[:n=.*mixup"),
        ("randaug:", UnknownNameError, "unknown view policy"),
        ("randaug:k=2", UnknownNameError, "randaug has no parameter 'k=2'; write NAME=VALUE with n, m, base, seed"),
        ("cutmix:m=3", UnknownNameError, "cutmix has no parameter 'm=3'; write NAME=VALUE with alpha, base, seed"),
        ("randaug:m", UnknownNameError, "no parameter 'm'"),
        ("randaug:m=1,m=2", InputError, "m of view policy randaug is given twice"),
        ("randaug:m=31", InputError, "m=31 of view policy randaug is out of range: use 0 to 30"),
        ("randaug:n=0", InputError, "use 1 to 8"),
        ("randaug:m=9.5", InputError, "m=9.5"),
        ("randaug:seed=-1", InputError, "use 0 to 2147483647"),
        ("rrc:area=0", InputError, "use 1 to 100"),
        ("rrc:size=99999", InputError, "use 0 to 4096"),
        ("mixup:alpha=0", InputError, "use 0.05 to 10, with two decimals at most"),
        ("mixup:alpha=nan", InputError, "alpha=nan"),
        ("mixup:alpha=0.123", InputError, "two decimals"),
        ("randaug:base=rrc", UnknownNameError, "base=rrc of view policy randaug is no crop"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_would_work(text: str, error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        read_policy(text)


def test_random_views_are_numbered_like_crops() -> None:
    assert view_count("randaug") == RANDOM_VIEWS
    assert parse_views("0,5-7", policy="mixup") == (0, 5, 6, 7)
    with pytest.raises(RowRangeError, match=f"view {RANDOM_VIEWS + 1} is out of range"):
        check_view(RANDOM_VIEWS + 1, policy="rrc")
    with pytest.raises(UnknownNameError, match="draws its views at random"):
        padding_of("randaug")
    assert random_policy("crop4flip") is None

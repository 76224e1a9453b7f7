"""View policies, as the text that caches record and as a value: crops by number, or random views drawn from a hash.

Crops are ``crop{P}`` or ``crop{P}flip``, P the padding in pixels; see `shared.views`. Random policies, each
with its parameters as ``KIND:NAME=VALUE,...`` (what is left out has its default):

- ``randaug``: ``n`` operations of RandAugment (Cubuk et al. 2020) at magnitude ``m`` of 30; see `shared.randaugment`;
- ``rrc``: a random part of at least ``area`` per cent of the image, resized to ``size`` x ``size``, 0: to the image's
  own size; see `shared.resized_crop`;
- ``cutmix`` and ``mixup``: the row and a partner row, in shares from Beta(``alpha``, ``alpha``); see `shared.mixing`.

``base`` is the crop policy of which one view, drawn too, is taken before all else; by default the data set's own
(``rrc`` crops by itself, and takes only its flip). ``seed`` draws everything anew.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

from shared.errors import InputError, UnknownNameError

CROP_PATTERN = re.compile(r"crop([0-9]{1,2})(flip)?", re.ASCII)
WHOLE_PATTERN = re.compile(r"[0-9]{1,10}", re.ASCII)
ALPHA_PATTERN = re.compile(r"[0-9]{1,2}(\.[0-9]{1,2})?", re.ASCII)
DEFAULT_POLICY = "crop4flip"
"""Of data sets that say nothing else."""
RANDOM_VIEWS = 100_000
"""Views of a random policy. There could be more at any time: no view depends on how many there are."""

PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "randaug": ("n", "m", "base", "seed"),
    "rrc": ("area", "size", "base", "seed"),
    "cutmix": ("alpha", "base", "seed"),
    "mixup": ("alpha", "base", "seed"),
}
"""Random policies and what each is told, in the order of the full text."""
MIXING = ("cutmix", "mixup")
"""Policies whose views show two rows."""
WHOLE_RANGES: Mapping[str, tuple[int, int]] = {
    "n": (1, 8),
    "m": (0, 30),
    "area": (1, 100),
    "size": (0, 4096),
    "seed": (0, 2**31 - 1),
}
ALPHA_RANGE = (Decimal("0.05"), Decimal(10))
KNOWN = "crop1, crop4flip and the like, " + ", ".join(
    f"{kind}[:{'=...,'.join(names)}=...]" for kind, names in PARAMETERS.items()
)


@dataclass(frozen=True, kw_only=True, slots=True)
class CropPolicy:
    """Every crop of the zero-padded image, by number; see `shared.views`."""

    padding: int
    """Pixels on each side, 0 to 99."""
    flip: bool
    """Whether half of the views are mirrored."""

    @property
    def views(self) -> int:
        """Augmented views there are."""
        return (2 * self.padding + 1) ** 2 * (2 if self.flip else 1)

    def __str__(self) -> str:
        return f"crop{self.padding}{'flip' if self.flip else ''}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomPolicy:
    """Views drawn from a hash of kind, seed, row and view; its text is the policy with nothing left out."""

    kind: str
    """One of `PARAMETERS`."""
    base: CropPolicy
    """What each image is cropped by first."""
    seed: int = 0
    n: int = 2
    """Operations per view."""
    m: int = 9
    """Magnitude of every operation, 0 to 30."""
    area: int = 8
    """Least part of the image that a view shows, in per cent."""
    size: int = 0
    """Side of a view in pixels; 0: the image's own."""
    alpha: str = "1"
    """Decimal number."""

    @property
    def views(self) -> int:
        """Augmented views there are."""
        return RANDOM_VIEWS

    @property
    def mixes(self) -> bool:
        """Whether a view shows two rows."""
        return self.kind in MIXING

    def __str__(self) -> str:
        return f"{self.kind}:" + ",".join(f"{name}={getattr(self, name)}" for name in PARAMETERS[self.kind])


ViewPolicy = CropPolicy | RandomPolicy


@lru_cache(maxsize=256)
def read_policy(text: str, own: str = DEFAULT_POLICY) -> ViewPolicy:
    """The policy of a text; ``own`` is the data set's own crop policy, where ``base`` is left out.

    Raises `UnknownNameError` for a policy or a parameter that does not exist, `InputError` for a value out of range.
    """
    crop = _read_crop(text)
    if crop is not None:
        return crop
    kind, colon, listed = text.partition(":")
    if kind not in PARAMETERS or (colon and not listed):
        raise UnknownNameError(f"unknown view policy {text[:80]!r}; known: {KNOWN}")
    given = _read_parameters(kind, listed)
    base = _read_base(kind, given.pop("base", None), own=own)
    alpha = _read_alpha(kind, given.pop("alpha", "1"))
    whole = {name: _read_whole(kind, name, value) for name, value in given.items()}
    return RandomPolicy(kind=kind, base=base, alpha=alpha, **whole)


def random_policy(text: str) -> RandomPolicy | None:
    """The policy if it is a random one; else None."""
    policy = read_policy(text)
    return policy if isinstance(policy, RandomPolicy) else None


def _read_crop(text: str) -> CropPolicy | None:
    found = CROP_PATTERN.fullmatch(text)
    return CropPolicy(padding=int(found[1]), flip=found[2] is not None) if found else None


def _read_parameters(kind: str, listed: str) -> dict[str, str]:
    given: dict[str, str] = {}
    known = ", ".join(PARAMETERS[kind])
    for part in listed.split(",") if listed else ():
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if name not in PARAMETERS[kind] or not equals:
            raise UnknownNameError(
                f"view policy {kind} has no parameter {part.strip()[:40]!r}; write NAME=VALUE with {known}"
            )
        if name in given:
            raise InputError(f"{name} of view policy {kind} is given twice")
        given[name] = value
    return given


def _read_base(kind: str, given: str | None, *, own: str) -> CropPolicy:
    crop = _read_crop(own if given is None else given)
    if crop is None and given is not None:
        raise UnknownNameError(f"base={given[:40]} of view policy {kind} is no crop; use crop0, crop4flip and the like")
    # A data set whose own views are random: nothing says how its images may be cropped.
    crop = crop or CropPolicy(padding=0, flip=False)
    return CropPolicy(padding=0, flip=crop.flip) if kind == "rrc" and given is None else crop


def _read_alpha(kind: str, given: str) -> str:
    low, high = ALPHA_RANGE
    if not ALPHA_PATTERN.fullmatch(given) or not low <= Decimal(given) <= high:
        raise InputError(
            f"alpha={given[:40]} of view policy {kind} is out of range: use {low} to {high}, with two decimals at most"
        )
    whole, _, decimals = given.partition(".")
    decimals = decimals.rstrip("0")
    return f"{int(whole)}.{decimals}" if decimals else str(int(whole))


def _read_whole(kind: str, name: str, given: str) -> int:
    low, high = WHOLE_RANGES[name]
    if not WHOLE_PATTERN.fullmatch(given) or not low <= int(given) <= high:
        raise InputError(f"{name}={given[:40]} of view policy {kind} is out of range: use {low} to {high}")
    return int(given)

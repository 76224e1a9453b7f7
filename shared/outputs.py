"""What a teacher can say about an image, by name: logits and features, and more where it is asked for.

Shape key: C channels, H height, W width.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from shared.errors import InputError

ALWAYS = ("logits", "features")
"""What every teacher says with every call."""
MAPS, PREACTS, ATTENTION = "maps.", "preacts.", "attention."
"""What the names of feature maps, of maps before their last activation, and of maps reduced to attention begin with;
their number follows."""
INPUT_GRAD = "input_grad"
"""The gradient of the largest logit with respect to the normalised input, [3, H, W]."""
CONSTANTS = "constants"
"""What the teacher says once for all images; kept beside its answers, and no output of a row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputForm:
    """What one output looks like."""

    shape: tuple[int, ...]
    """For one image."""
    attributes: Mapping[str, int] = field(default_factory=dict, hash=False)
    """``height`` and ``width`` of an attention map; ``image_height`` and ``image_width`` of the images where the shape
    depends on them."""


def calls_per_answer(names: Iterable[str]) -> int:
    """Teacher calls for one image: a forward, and one more where gradients are asked for."""
    return 2 if INPUT_GRAD in names else 1


def beside(names: Iterable[str]) -> tuple[str, ...]:
    """Of these outputs, those that a teacher says only where it is asked."""
    return tuple(sorted(set(names) - set(ALWAYS)))


def map_number(name: str) -> int | None:
    """K of ``maps.K``, ``preacts.K`` and ``attention.K``; None for other outputs."""
    kind, dot, number = name.partition(".")
    known = kind + dot in (MAPS, PREACTS, ATTENTION) and number.isascii() and number.isdigit()
    # Written one way only: maps.01 would be a second name of maps.1.
    return int(number) if known and str(int(number)) == number else None


def check_offered(names: Iterable[str], *, offered: Iterable[str], teacher: str) -> None:
    """Raise `InputError` that lists what the teacher can give, for the first name that it cannot."""
    offered = list(offered)
    for name in names:
        if name not in offered:
            lacks = map_number(name) is not None and not any(other.startswith(MAPS) for other in offered)
            without = "; it has no feature maps" if lacks else ""
            raise InputError(f"teacher {teacher} cannot give {name[:80]!r}; it gives {', '.join(offered)}{without}")


def forms_of(
    widths: Mapping[str, int],
    *,
    map_shapes: Sequence[tuple[int, ...]],
    input_size: tuple[int, int],
    image_size: tuple[int, int] | None,
) -> dict[str, OutputForm]:
    """All that a network says, by name, given ``widths`` of vectors, shapes [C, H, W] of its maps and its input's size.

    ``image_size`` (H, W) of images where all of this depends on it; None where every image is resized.
    """
    sized = {} if image_size is None else {"image_height": image_size[0], "image_width": image_size[1]}
    forms = {name: OutputForm(shape=(width,)) for name, width in widths.items()}
    for kind in (MAPS, PREACTS):
        forms |= {
            f"{kind}{number}": OutputForm(shape=shape, attributes=sized) for number, shape in enumerate(map_shapes)
        }
    for number, (_, height, width) in enumerate(map_shapes):
        sides = {"height": height, "width": width}
        forms[f"{ATTENTION}{number}"] = OutputForm(shape=(height * width,), attributes=sides | sized)
    forms[INPUT_GRAD] = OutputForm(shape=(3, *input_size), attributes=sized)
    return forms

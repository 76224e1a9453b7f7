"""What a teacher's answers must be before anyone may keep them.

Shape key: B images, C classes, D feature width.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from shared.descriptions import TeacherDescription
from shared.errors import AnswerError

LARGEST_MAGNITUDE = 65504.0
"""The largest float16: answers are kept in float16 by default, and must not become infinite there."""


def check_answers(
    outputs: Mapping[str, NDArray[np.float32]], *, description: TeacherDescription, names: Sequence[str]
) -> None:
    """Raise `AnswerError` unless every output is float32 [B, ...], finite, and at most 65504 in magnitude.

    ``names`` says what each of the B images is called in the message, such as ``row 7 of digits/train``.
    ``logits`` must be [B, C] and ``features`` [B, D] of the ``description``.
    """
    for name, values in outputs.items():
        _check_form(name, values, description=description, count=len(names))
        _check_values(name, values, teacher=description.id, names=names)


def _check_form(name: str, values: NDArray[np.float32], *, description: TeacherDescription, count: int) -> None:
    widths = {"logits": (description.classes,), "features": (description.features,)}
    expected = (count, *widths.get(name, values.shape[1:]))
    if values.dtype != np.float32 or values.shape != expected:
        raise AnswerError(
            f"teacher {description.id} answered {name} as {values.dtype} {list(values.shape)}; "
            f"expected float32 {list(expected)}: check the model's head and its number of classes"
        )


def _check_values(name: str, values: NDArray[np.float32], *, teacher: str, names: Sequence[str]) -> None:
    # Written so that NaN fails the comparison too.
    good_B = (np.abs(values) <= LARGEST_MAGNITUDE).reshape(len(values), -1).all(axis=1)
    if good_B.all():
        return
    first = int(np.argmin(good_B))
    flat = values[first].ravel()
    position = int(np.argmin(np.abs(flat) <= LARGEST_MAGNITUDE))
    others = int((~good_B).sum()) - 1
    also = f" (and for {others} more of this batch)" if others else ""
    raise AnswerError(
        f"teacher {teacher} answered {name}[{position}] = {flat[position]} for {names[first]}{also}; "
        "nothing of it was kept: answers must be finite and at most 65504 in magnitude; "
        "check the weights and the precision"
    )

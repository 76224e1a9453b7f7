"""What may be kept of a teacher's answers."""

import numpy as np
import pytest
from numpy.typing import NDArray

from shared.answers import check_answers
from shared.errors import AnswerError
from shared.fake_teacher import FakeTeacher

DESCRIPTION = FakeTeacher(classes=4).description
NAMES = ["row 5 of digits/train", "row 9 of digits/train", "row 2 of digits/train"]


def answers() -> dict[str, NDArray[np.float32]]:
    return {"logits": np.ones((3, 4), np.float32), "features": np.ones((3, 16), np.float32)}


def test_finite_answers_up_to_the_largest_float16_pass() -> None:
    good = answers()
    good["logits"][1, 2] = -65504
    check_answers(good, description=DESCRIPTION, names=NAMES)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65505.0, -70000.0])
@pytest.mark.parametrize("output", ["logits", "features"])
def test_a_bad_number_is_refused_by_the_name_of_its_row(output: str, value: float) -> None:
    bad = answers()
    bad[output][1, 3] = value
    with pytest.raises(AnswerError, match=rf"{output}\[3\].*row 9 of digits/train"):
        check_answers(bad, description=DESCRIPTION, names=NAMES)


def test_the_message_counts_the_other_bad_rows() -> None:
    bad = answers()
    bad["logits"][:2] = np.nan
    with pytest.raises(AnswerError, match=r"row 5 of digits/train \(and for 1 more"):
        check_answers(bad, description=DESCRIPTION, names=NAMES)


@pytest.mark.parametrize(
    "wrong",
    [
        {"logits": np.ones((3, 5), np.float32)},
        {"logits": np.ones((2, 4), np.float32)},
        {"logits": np.ones((3, 4), np.float64)},
        {"features": np.ones((3, 4, 4), np.float32)},
    ],
)
def test_answers_of_the_wrong_form_are_refused(wrong: dict[str, NDArray[np.float32]]) -> None:
    with pytest.raises(AnswerError, match=r"expected float32 \[3, "):
        check_answers(answers() | wrong, description=DESCRIPTION, names=NAMES)

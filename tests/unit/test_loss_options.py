"""Options of losses: NumPy's numbers are numbers."""

import numpy as np
import pytest

from shared.errors import InputError
from student_trainer.losses import build_loss

@pytest.mark.parametrize("given", [np.float32(2), np.float64(2), np.int64(2), np.uint8(2)])
def test_numbers_of_numpy_are_numbers(given: object) -> None:
    temperature, pos = build_loss("kl", temperature=given).settings, build_loss("ckd", pos=given).settings
    assert (temperature["temperature"], type(temperature["temperature"])) == (2.0, float)
    assert (pos["pos"], type(pos["pos"])) == (2, int)


@pytest.mark.parametrize("given", [np.bool_(True), True, np.float64("nan"), np.float32(2.5), 2j])
def test_what_is_no_whole_number_is_none_in_numpy_either(given: object) -> None:
    with pytest.raises(InputError, match=r"pos=.* is not valid"):
        build_loss("ckd", pos=given)

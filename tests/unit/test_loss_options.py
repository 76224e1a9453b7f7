"""Options of losses: none that does nothing is accepted, NumPy's numbers are, and temperatures end where sums do."""

from typing import Any

import numpy as np
import pytest
import torch

from shared.errors import InputError
from student_trainer.losses import DistillBatch, build_loss

UNUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("cc", {"gamma": 1.0}, "gamma", "form=consecutive"),
    ("cc", {"order": 3}, "order", "form=consecutive"),
    ("cc", {"squared": False}, "squared", "form=consecutive"),
    ("cc", {"normalise": False}, "normalise", "form=consecutive"),
    ("cc", {"form": "bilinear", "order": 5}, "order", "form=bilinear"),
    ("cc", {"form": "bilinear", "gamma": 5}, "gamma", "form=bilinear"),
    ("sp", {"on": "features", "maps": "1-"}, "maps", "on=features"),
    ("sp", {"on": "logits", "teacher_maps": "1"}, "teacher_maps", "on=logits"),
    ("ckd", {"kd_temperature": 2}, "kd_temperature", "w_kd=0"),
    ("ckd", {"on": "features", "w_rel": 0}, "on", "w_rel=0"),
    ("ckd", {"on": "both", "w_cls": 0, "w_rel": 0, "w_kd": 1}, "on", "w_rel=0"),
    ("ckd", {"form": "kl", "w_cls": 0, "w_rel": 0, "w_kd": 1}, "form", "w_cls=0 and w_rel=0"),
    ("rkd", {"distance": 0, "squared": True}, "squared", "distance=0"),
    ("dist", {"relation": "kl", "eps": 1e-6}, "eps", "relation=kl"),
    ("cutmix", {"temperature": 2}, "temperature", "target=ce"),
    ("ce", {"smoothing": "others"}, "smoothing", "label_smoothing=0"),
    ("fitnets", {"on": "features", "maps": "1"}, "maps", "on=features"),
    ("fitnets", {"on": "features", "use_relu": False}, "use_relu", "on=features"),
    ("ckd_hint", {"on": "features", "teacher_maps": "1"}, "teacher_maps", "on=features"),
]
USED: list[tuple[str, dict[str, Any]]] = [
    ("cc", {"form": "gaussian", "gamma": 1.0, "order": 3, "normalise": False, "squared": False}),
    ("cc", {"form": "bilinear", "normalise": False, "squared": False}),
    ("sp", {"maps": "1-", "teacher_maps": "1"}),
    ("ckd", {"kd_temperature": 2, "w_kd": 1, "w_rel": 0}),
    ("ckd", {"kd_temperature": 2, "form": "kl", "w_rel": 0, "on": "logits"}),
    ("rkd", {"angle": 0, "squared": True}),
]


@pytest.mark.parametrize(("name", "hyper", "unused", "where"), UNUSED)
def test_an_option_that_does_nothing_is_refused(name: str, hyper: dict[str, Any], unused: str, where: str) -> None:
    with pytest.raises(InputError, match=f"^{name}: {unused} has no effect with {where}; leave it out, or use "):
        build_loss(name, **hyper)


@pytest.mark.parametrize(("name", "hyper"), USED)
def test_an_option_that_does_something_is_accepted(name: str, hyper: dict[str, Any]) -> None:
    settings = build_loss(name, **hyper).settings
    assert {option: settings[option] for option in hyper} == hyper


@pytest.mark.parametrize("given", [np.float32(2), np.float64(2), np.int64(2), np.uint8(2)])
def test_numbers_of_numpy_are_numbers(given: object) -> None:
    temperature, pos = build_loss("kl", temperature=given).settings, build_loss("ckd", pos=given).settings
    assert (temperature["temperature"], type(temperature["temperature"])) == (2.0, float)
    assert (pos["pos"], type(pos["pos"])) == (2, int)


@pytest.mark.parametrize("given", [np.bool_(True), True, np.float64("nan"), np.float32(2.5), 2j])
def test_what_is_no_whole_number_is_none_in_numpy_either(given: object) -> None:
    with pytest.raises(InputError, match=r"pos=.* is not valid"):
        build_loss("ckd", pos=given)


SOFTENED: list[tuple[str, str, dict[str, Any]]] = [
    ("ckd", "kd_temperature", {"w_kd": 1.0, "w_cls": 0.0, "w_rel": 0.0}),
    ("ckd", "kd_temperature", {"form": "kl"}),
    ("mixup", "temperature", {"target": "kl"}),
    ("cutmix", "temperature", {"target": "kl"}),
    ("dist", "temperature", {"relation": "kl"}),
    ("dist", "temperature", {}),
]


@pytest.mark.parametrize(("name", "option", "hyper"), SOFTENED)
@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e12, 1e20, 1e200])
def test_a_temperature_that_cannot_be_computed_is_refused(
    name: str, option: str, hyper: dict[str, Any], temperature: float
) -> None:
    with pytest.raises(InputError, match=rf"{option}=1.* is not valid; .*{option} \(float >= 1e-06, <= 1e\+06"):
        build_loss(name, **hyper, **{option: temperature})


@pytest.mark.parametrize(("name", "option", "hyper"), SOFTENED)
@pytest.mark.parametrize("temperature", [1e-6, 1e3, 1e6])
def test_the_outermost_temperatures_keep_their_digits_in_float32(
    name: str, option: str, hyper: dict[str, Any], temperature: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(8, 10, generator=generator) for _ in range(2))
    mix = (torch.arange(8).flip(0), torch.full((8,), 0.3))
    found = []
    for dtype in (torch.float32, torch.float64):
        leaf = student.to(dtype).requires_grad_()
        batch = DistillBatch(student_logits=leaf, teacher_logits=teacher, labels=torch.arange(8), mix=mix)
        value = build_loss(name, **hyper, **{option: temperature})(batch)
        found.append((value.detach().double(), torch.autograd.grad(value, leaf)[0].double()))
    (value, gradient), (exact, exact_gradient) = found
    torch.testing.assert_close(value, exact, rtol=1e-4, atol=1e-10)
    assert float((gradient - exact_gradient).norm()) <= 1e-3 * float(exact_gradient.norm()) + 1e-12
    assert bool(exact.isfinite())

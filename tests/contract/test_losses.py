"""What every loss promises: names, ranges, needs, half precision, no NaN, the same bits again, and little memory."""

import math
import random
import re
from copy import deepcopy
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from extreme_cases import KINDS, extreme
from live_memory import relative_memory
from loss_cases import LARGE_BATCH, Case, Hyper, Recipe, Sizes, case_of, fitting, large, ready, variants
from torch import Tensor

from shared.errors import InputError
from student_trainer.losses import LOSSES, DistillBatch, build_loss
from student_trainer.losses.base import DistillLoss

VARIANTS = variants()
HALVES = (torch.float16, torch.bfloat16)
LEAN: dict[str, Hyper] = {"rkd": {"angle": 0.0}}
"""Without what takes more by its definition: the angles of all triples."""
REMEMBERS = {"crd"}
"""Hold all rows against each sample."""
LIMITS = {"review": 12.0}
"""Times its inputs that a loss may hold, where not 4: its published blocks are wider than the student's maps."""


def named(variant: tuple[str, Hyper]) -> str:
    name, hyper = variant
    return " ".join([name, *(f"{key}={value}" for key, value in hyper.items())])


every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=named)
every_loss = pytest.mark.parametrize("name", list(LOSSES))


def gradients(value: Tensor, case: Case, loss: DistillLoss) -> dict[str, Tensor]:
    """With respect to what the loss takes of the student, and to what it trains itself."""
    value.backward()
    leaves = {**case.student, **dict(loss.named_parameters())}
    return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def reset(loss: DistillLoss) -> DistillLoss:
    """A copy, as it stands."""
    copied = deepcopy(loss)
    copied.zero_grad(set_to_none=True)
    return copied


def sized(variant: tuple[str, Hyper], kind: str = "") -> Sizes:
    name, hyper = variant
    return fitting(name, **hyper).alike if "same" in kind else fitting(name, **hyper)


@every_variant
def test_extreme_batches_give_finite_values_and_gradients(variant: tuple[str, Hyper]) -> None:
    started = {sizes: ready(*variant, sizes=sizes) for sizes in {sized(variant), sized(variant, "same")}}
    failures = []
    for kind in KINDS:
        sizes = sized(variant, kind)
        loss = reset(started[sizes])
        case = case_of(loss, sizes=sizes, recipe=extreme(kind))
        failures += broken(kind, case, loss)
    assert not failures


def broken(kind: str, case: Case, loss: DistillLoss) -> list[str]:
    """What is not finite."""
    value = loss(case.batch)
    found = {"value": value.detach(), **gradients(value, case, loss)}
    return [f"{kind}: {name}" for name, tensor in found.items() if not tensor.isfinite().all()]


@pytest.mark.parametrize("count", [1, 2])
@every_variant
def test_tiny_batches_give_finite_values_or_a_refusal_that_says_why(variant: tuple[str, Hyper], count: int) -> None:
    loss = ready(*variant)
    case = case_of(loss, count=count, sizes=sized(variant))
    if count < loss.min_rows:
        with pytest.raises(InputError, match=f"at least {loss.min_rows} samples; this one has {count}"):
            loss(case.batch)
        return
    assert broken(f"{count} samples", case, loss) == []


@every_variant
def test_half_precision_is_computed_in_float32(variant: tuple[str, Hyper]) -> None:
    started = ready(*variant)
    for dtype in HALVES:
        half_loss, full_loss = reset(started), reset(started)
        recipe = Recipe(student_dtype=dtype, teacher_dtype=torch.float16)
        half = case_of(half_loss, sizes=sized(variant), recipe=recipe)
        value = half_loss(half.batch)
        found = gradients(value, half, half_loss)
        assert value.dtype == torch.float32
        assert {found[name].dtype for name in half.student if name in found} == {dtype}
        assert all(tensor.isfinite().all() for tensor in found.values())
        if "student_inputs" not in half_loss.needs:  # those logits are the student's own work, in its precision
            full_loss.mix(6, size=(8, 8))  # as often as the other
            assert torch.equal(value, full_loss(widened(half.batch)))


def widened(batch: DistillBatch) -> DistillBatch:
    """The same numbers in float32."""
    changed: dict[str, Any] = {}
    for name in batch.__slots__:
        value = getattr(batch, name)
        if isinstance(value, Tensor) and value.is_floating_point():
            changed[name] = value.detach().float()
        elif isinstance(value, tuple) and name != "mix":
            changed[name] = tuple(item.detach().float() for item in value)
        elif name == "teacher_constants" and value is not None:
            changed[name] = {key: one.float() for key, one in value.items()}
    return replace(batch, **changed)


@every_loss
def test_a_users_autocast_does_not_reach_the_loss(name: str) -> None:
    started = ready(name, {})
    plain, cast = reset(started), reset(started)
    given, same = (case_of(loss, sizes=sized((name, {}))) for loss in (plain, cast))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = cast(same.batch)
    expected = plain(given.batch)
    assert torch.equal(value, expected)
    found = gradients(value, same, cast)
    for leaf, gradient in gradients(expected, given, plain).items():
        assert torch.equal(found[leaf], gradient)


@every_variant
def test_the_gradient_is_the_derivative_of_the_value(variant: tuple[str, Hyper]) -> None:
    loss = ready(*variant).double()
    recipe = Recipe(student_dtype=torch.float64, teacher_dtype=torch.float64)
    case = case_of(loss, count=4, sizes=sized(variant), recipe=recipe)
    if "student_inputs" in case.student:
        pytest.skip("its logits are no leaf: golden vectors and unit tests hold its gradient")
    loss(case.batch)  # what the first batch sets is a constant afterwards
    loss.requires_grad_(requires_grad=False)

    def value(*leaves: Tensor) -> Tensor:
        fields: dict[str, Any] = dict(zip(case.student, leaves, strict=True))
        maps = tuple(fields.pop(name) for name in case.student if "." in name)
        result: Tensor = deepcopy(loss)(replace(case.batch, **fields, student_maps=maps))
        return result

    assert any(gradient.any() for gradient in gradients(value(*case.student.values()), case, loss).values())
    assert torch.autograd.gradcheck(value, tuple(case.student.values()), atol=1e-6, fast_mode=True)


@every_loss
def test_no_gradient_reaches_the_teacher(name: str) -> None:
    loss = ready(name, {})
    case = case_of(loss, sizes=sized((name, {})))
    for tensor in case.teacher.values():
        tensor.requires_grad_()
    loss(case.batch).backward()
    assert [tensor.grad for tensor in case.teacher.values()] == [None] * len(case.teacher)


@every_loss
def test_a_missing_input_is_named(name: str) -> None:
    loss = ready(name, {})
    assert loss.needs
    case = case_of(loss, sizes=sized((name, {})))
    for need in loss.needs:
        empty: Any = () if isinstance(getattr(case.batch, need), tuple) and need != "mix" else None
        with pytest.raises(InputError, match=f"loss {name} needs {need}, which this batch does not have"):
            loss(replace(case.batch, **{need: empty}))


@every_loss
def test_a_teacher_that_answered_other_samples_is_refused(name: str) -> None:
    loss = ready(name, {})
    case = case_of(loss, sizes=sized((name, {})))
    for field in case.batch.__slots__:
        value = getattr(case.batch, field)
        if field.startswith("teacher_") and isinstance(value, Tensor | tuple) and len(value):
            fewer: Any = tuple(one[1:] for one in value) if isinstance(value, tuple) else value[1:]
            with pytest.raises(InputError):
                loss(replace(case.batch, **{field: fewer}))


@every_variant
def test_a_loss_leaves_the_global_random_numbers_alone(variant: tuple[str, Hyper]) -> None:
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    loss = ready(*variant)
    loss(case_of(loss, sizes=sized(variant)).batch).backward()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]
    assert random.getstate() == before[2]


def three_steps(loss: DistillLoss, *, sizes: Sizes) -> list[Tensor]:
    """Values and gradients of three steps in which all that is trained in the loss moves, and the state after them."""
    found = []
    for step in range(3):
        loss.begin_epoch(step)
        case = case_of(loss, sizes=sizes, seed=step)
        loss.zero_grad()
        value = loss(case.batch)
        found += [value.detach(), *gradients(value, case, loss).values()]
        with torch.no_grad():
            for parameter in loss.parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=1e-3)
    return found + [value for value in loss.state_dict().values() if isinstance(value, Tensor)]


def same_bits(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@every_variant
def test_a_seed_repeats_and_a_restored_state_goes_on_as_if_never_stopped(variant: tuple[str, Hyper]) -> None:
    sizes = sized(variant)
    first, second = ready(*variant), ready(*variant)
    assert same_bits(three_steps(first, sizes=sizes), three_steps(second, sizes=sizes))
    kept = BytesIO()
    torch.save(first.state_dict(), kept)
    kept.seek(0)
    resumed = ready(*variant, prepared=False)
    resumed.load_state_dict(torch.load(kept, weights_only=True))
    assert same_bits(three_steps(resumed, sizes=sizes), three_steps(first, sizes=sizes))


@every_loss
def test_a_loss_with_parts_is_refused_before_it_was_started(name: str) -> None:
    loss, started = build_loss(name), ready(name, {})
    if len(started.state_dict()) > len(loss.state_dict()):
        with pytest.raises(InputError, match="start"):
            loss(case_of(loss, sizes=sized((name, {}))).batch)


@every_loss
def test_every_hyper_parameter_has_a_range_that_its_default_is_in_and_others_are_refused(name: str) -> None:
    kind = LOSSES[name]
    with pytest.raises(InputError, match=rf"{name} has no hyper-parameter 'no_such'; it has (none|\w+ \()"):
        build_loss(name, no_such=1)
    for key, default in kind.defaults().items():
        limit = kind.limits[key]
        assert limit.read(default) == default
        assert f"{key} ({limit}; default {default})" in kind.describe()
        wrong = ["no such", math.nan, [], *([limit.low - 1] if limit.low > -math.inf else [])]
        for value in wrong:
            with pytest.raises(InputError, match=rf"{name}: {key}=.* is not valid; it has .*{re.escape(str(limit))}"):
                build_loss(name, **{key: value})
        assert not math.isnan(float(build_loss(name, **{key: str(default)}).default_kd_weight))


@every_loss
def test_a_loss_says_where_it_comes_from(name: str) -> None:
    kind = LOSSES[name]
    assert re.search(r"[A-Z][a-z]+ (et al\. |and [A-Z][a-z]+ )?(19|20)\d\d", kind.__doc__ or "")
    assert kind.default_ce_weight >= 0
    assert kind.default_kd_weight > 0


@pytest.mark.parametrize("name", sorted(set(LOSSES) - REMEMBERS))
def test_a_loss_takes_at_most_four_times_its_inputs(name: str) -> None:
    sizes = large(build_loss(name))
    loss = ready(name, LEAN.get(name, {}), sizes=sizes)
    assert relative_memory(loss, case_of(loss, count=LARGE_BATCH, sizes=sizes)) <= LIMITS.get(name, 4)

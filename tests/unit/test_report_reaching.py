"""Teacher calls to reach an accuracy, and the reductions of a published table."""

from collections import Counter
from collections.abc import Callable
from itertools import product
from math import inf
from pathlib import Path

import numpy as np
import pytest

from shared.errors import InputError
from student_trainer.reporting.grid import Panel, arrange
from student_trainer.reporting.published import read_published
from student_trainer.reporting.reaching import calls_to_reach, reach_table, reduction, sensible_targets
from student_trainer.reporting.results import Trial
from student_trainer.reporting.texts import calls_text, reach_interval_text

Lines = Callable[..., list[dict[str, object]]]


def panel_of(lines: list[dict[str, object]]) -> Panel:
    (panel,) = arrange(trial for line in lines if (trial := Trial.model_validate(line)).chosen)
    return panel


def curves(make_trials: Lines, accuracies: dict[str, list[list[float]]], *, budgets: tuple[int, ...]) -> Panel:
    """A panel whose method has these accuracies [seed][budget]."""
    seeds = len(next(iter(accuracies.values())))
    lines = make_trials(methods=dict.fromkeys(accuracies, (50.0, 0.0, 0.0, "loss")), budgets=budgets, seeds=seeds)
    asked = [line for line in lines if line["budget"]]
    for line in asked:
        place = budgets.index(int(str(line["budget"])))
        line["test_accuracy"] = accuracies[str(line["loss"])][int(str(line["seed"]))][place]
    return panel_of(asked)


@pytest.mark.parametrize(
    ("target", "expected"),
    [(0.6, 100), (0.7, 150), (0.55, 75), (0.8, 200), (0.81, inf), (0.5, -inf), (0.4, -inf)],
)
def test_calls_lie_on_the_line_between_two_budgets(target: float, expected: float) -> None:
    assert calls_to_reach(target, calls=[50, 100, 200], accuracies=[0.5, 0.6, 0.8]) == pytest.approx(expected)


def test_a_curve_that_falls_and_rises_reaches_where_it_first_gets_there() -> None:
    assert calls_to_reach(0.55, calls=[50, 100, 200, 400], accuracies=[0.5, 0.6, 0.4, 0.9]) == pytest.approx(75)


def test_the_published_reductions_come_out(shared_path: Path) -> None:
    tables = read_published(shared_path / "published" / "xu_table1.csv")
    assert [table.method for table in tables] == ["ckd"] * 3
    compared = 0
    for table in tables:
        for target in table.targets:
            printed = table.printed[target]
            if printed is None:
                assert table.reduction(target) is None
            else:
                assert table.reduction(target) == pytest.approx(printed, abs=0.5)
                compared += 1
    assert compared == 14


def test_a_reduction_needs_somebody_to_compare_with() -> None:
    assert reduction({"a": 80.0, "b": 100.0, "c": None}, method="a") == pytest.approx(-20)
    assert reduction({"a": 80.0, "b": 100.0, "c": None}, method="b") == pytest.approx(25)
    assert reduction({"a": 80.0, "b": None, "c": inf}, method="a") is None
    assert reduction({"a": inf, "b": 100.0}, method="a") is None


def test_no_reduction_against_somebody_who_needs_fewer_calls_than_were_measured() -> None:
    assert reduction({"a": 80.0, "b": -inf, "c": 100.0}, method="a") is None


def test_the_bootstrap_is_that_of_all_resamples(make_trials: Lines) -> None:
    """Three seeds have 27 equally likely resamples: their percentiles are the interval, censored ends included."""
    accuracies = [[0.50, 0.60, 0.70], [0.55, 0.62, 0.66], [0.40, 0.58, 0.72]]
    panel = curves(make_trials, {"kl": accuracies}, budgets=(50, 100, 200))
    target = 0.685
    exact = sorted(
        calls_to_reach(
            target, calls=[50, 100, 200], accuracies=np.mean([accuracies[s] for s in drawn], axis=0).tolist()
        )
        for drawn in product(range(3), repeat=3)
    )
    (reach,) = reach_table(panel, targets=[target], resamples=20_000)
    counts = Counter(exact)
    assert counts[inf] == 7  # so at least a quarter of the resamples never get there: the upper end is censored
    assert reach.high == inf
    assert reach.low == pytest.approx(exact[0])  # the lowest has probability 1/27 > 2.5 %
    assert calls_text(reach).isdigit()
    assert reach_interval_text(reach).endswith("to > 200")


def test_equal_seeds_leave_no_interval(make_trials: Lines) -> None:
    panel = curves(make_trials, {"kl": [[0.5, 0.7]] * 4}, budgets=(100, 200))
    (reach,) = reach_table(panel, targets=[0.6])
    assert (reach.calls, reach.low, reach.high) == pytest.approx((150, 150, 150))


def test_what_is_not_reached_is_censored_and_not_dropped(make_trials: Lines) -> None:
    panel = curves(make_trials, {"kl": [[0.5, 0.7]] * 3, "mse": [[0.4, 0.45]] * 3}, budgets=(100, 400))
    texts = {(reach.method, reach.target): calls_text(reach) for reach in reach_table(panel, targets=[0.3, 0.6])}
    assert texts == {("kl", 0.3): "< 100", ("kl", 0.6): "250", ("mse", 0.3): "< 100", ("mse", 0.6): "> 400"}


def test_a_method_that_never_asks_is_nobody_s_next_best(make_trials: Lines) -> None:
    accuracies = {"kl": [[0.5, 0.7]] * 3, "mse": [[0.4, 0.7]] * 3, "ce": [[0.59, 0.7]] * 3}
    reaches = {
        reach.method: reach for reach in reach_table(curves(make_trials, accuracies, budgets=(100, 200)), targets=[0.6])
    }
    assert reaches["kl"].calls == pytest.approx(150)
    assert reaches["kl"].reduction == pytest.approx(100 * (150 / (100 + 100 * 0.2 / 0.3) - 1))
    assert (reaches["ce"].asks, reaches["ce"].reduction) == (False, None)


def test_seeds_missing_at_a_budget_do_not_hide_the_method(make_trials: Lines) -> None:
    panel = curves(make_trials, {"kl": [[0.5, 0.7]] * 3}, budgets=(100, 200))
    trials = [trial for cell in panel.cells.values() for trial in cell.trials]
    (thin,) = arrange(trial for trial in trials if (trial.budget, trial.seed) not in {(200, 1), (200, 2)})
    (reach,) = reach_table(thin, targets=[0.6])
    assert reach.calls == pytest.approx(150)
    assert reach.high == inf  # resamples without seed 0 have no second budget


def test_the_same_table_gives_the_same_intervals(make_trials: Lines) -> None:
    panel = panel_of(make_trials())
    assert reach_table(panel, targets=[0.93], resamples=200) == reach_table(panel, targets=[0.93], resamples=200)


def test_targets_are_round_and_within_what_was_measured(make_trials: Lines) -> None:
    panel = panel_of(make_trials())
    means = [cell.mean for cell in panel.cells.values()]
    targets = sensible_targets([panel])
    assert 3 <= len(targets) <= 8
    assert all(min(means) < target <= max(means) for target in targets)
    assert all(round(200 * target) == pytest.approx(200 * target) for target in targets)


def test_one_budget_still_has_a_target(make_trials: Lines) -> None:
    panel = curves(make_trials, {"kl": [[0.5], [0.5]]}, budgets=(100,))
    assert sensible_targets([panel]) == (0.5,)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("student,ce\nx,1\n", "has the columns student, ce; write pair, method"),
        ("", "has the columns none"),
        ("pair,method,acc50\nA,kd,4.x\n", "A, kd: could not convert"),
        ("pair,method,acc50\nA,delta,-3\n", "'A' has no method beside 'delta'"),
    ],
)
def test_a_table_that_cannot_be_read_says_why(text: str, part: str, tmp_path: Path) -> None:
    path = tmp_path / "calls.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=part):
        read_published(path)


def test_bytes_are_no_table(tmp_path: Path) -> None:
    path = tmp_path / "calls.csv"
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(InputError, match="is no text"):
        read_published(path)

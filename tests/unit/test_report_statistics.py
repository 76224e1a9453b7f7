"""Paired tests, Holm's correction, and who is paired with whom."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from student_trainer.reporting.grid import Panel, arrange
from student_trainer.reporting.results import Trial
from student_trainer.reporting.statistics import all_pairs, averaged_pairs, holm, paired_test, smallest_rank_p

Lines = Callable[..., list[dict[str, object]]]
TWO = {"a": (80.0, 2.0, 1.0, "loss"), "b": (78.0, 2.0, 1.0, "control")}


def panel_of(lines: list[dict[str, object]]) -> Panel:
    (panel,) = arrange(trial for line in lines if (trial := Trial.model_validate(line)).chosen)
    return panel


def test_the_paired_test_is_students_formula() -> None:
    differences = [0.012, -0.004, 0.021, 0.009, 0.017]
    result = paired_test(differences)
    mean = sum(differences) / 5
    error = math.sqrt(sum((value - mean) ** 2 for value in differences) / 4 / 5)
    assert result.n == 5
    assert result.mean == pytest.approx(mean)
    # 2.776445 is the 97.5 % quantile of Student's t with 4 degrees of freedom, from any printed table.
    assert (result.low, result.high) == pytest.approx((mean - 2.776445 * error, mean + 2.776445 * error), rel=1e-6)
    assert result.p == pytest.approx(2 * stats.t.sf(mean / error, 4))


@pytest.mark.parametrize(
    "differences",
    [
        [0.012, -0.004, 0.021, 0.009, 0.017],
        [0.01, 0.01, -0.01, 0.02, 0.03],  # ties
        [0.0, 0.01, 0.02, -0.01, 0.0, 0.03],  # no difference for two seeds
        [0.91 - 0.90, 0.81 - 0.80, -0.02],  # a tie but for rounding
        [0.01 * (place % 5 - 1.7) for place in range(20)],  # many seeds
    ],
)
def test_the_rank_test_is_wilcoxons(differences: list[float]) -> None:
    assert paired_test(differences).p_rank == pytest.approx(stats.wilcoxon(np.round(differences, 6)).pvalue)


def test_five_seeds_never_take_a_rank_test_below_one_in_sixteen() -> None:
    assert smallest_rank_p(5) == 0.0625
    assert paired_test([0.5, 0.4, 0.6, 0.55, 0.45]).p_rank == 0.0625


def test_equal_differences_have_no_variance_and_are_no_certainty() -> None:
    # Three seeds, one test image better each time: Student's t would say p = 0.
    assert paired_test([1 / 360] * 3).p == 0.25
    assert paired_test([0.0] * 5).p == 1.0


def test_holm_gives_the_published_example() -> None:
    # Worked example of the R documentation's method: sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_rejects_what_stepping_down_rejects() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        p_values = generator.beta(0.3, 2.0, size=7).tolist()
        rejected = set()
        for rank, place in enumerate(sorted(range(7), key=p_values.__getitem__)):
            if p_values[place] > 0.05 / (7 - rank):
                break
            rejected.add(place)
        assert {place for place, p in enumerate(holm(p_values)) if p <= 0.05} == rejected


def test_holm_of_nothing_is_nothing() -> None:
    assert holm([]) == []


def test_methods_are_paired_by_seed(make_trials: Lines) -> None:
    lines = make_trials(methods=TWO, budgets=(50,), seeds=5)
    (pair,) = all_pairs(panel_of(list(reversed(lines))), budget=50)
    accuracy = {(line["loss"], line["seed"]): line["test_accuracy"] for line in lines if line["chosen"]}
    expected = stats.ttest_rel([accuracy["a", seed] for seed in range(5)], [accuracy["b", seed] for seed in range(5)])
    assert (pair.first, pair.second) == ("a", "b")
    assert pair.test.p == pytest.approx(expected.pvalue)


def test_a_seed_that_one_method_lacks_is_left_out_of_the_pair_only(make_trials: Lines) -> None:
    methods = TWO | {"c": (79.0, 2.0, 1.0, "loss")}
    lines = make_trials(methods=methods, budgets=(50,), seeds=4)
    panel = panel_of([line for line in lines if (line["loss"], line["seed"]) != ("c", 3)])
    counts = {(pair.first, pair.second): pair.test.n for pair in all_pairs(panel, budget=50)}
    assert counts == {("a", "c"): 3, ("a", "b"): 4, ("c", "b"): 3}


def test_one_shared_seed_is_no_test(make_trials: Lines) -> None:
    assert all_pairs(panel_of(make_trials(methods=TWO, budgets=(50,), seeds=1)), budget=50) == ()


def test_the_correction_counts_the_pairs_of_one_budget(make_trials: Lines) -> None:
    methods = TWO | {"c": (79.0, 2.0, 1.0, "loss")}
    panel = panel_of(make_trials(methods=methods, budgets=(50, 100)))
    pairs = all_pairs(panel, budget=100)
    assert {pair.budgets for pair in pairs} == {(100,)}
    assert min(pair.p_holm for pair in pairs) == pytest.approx(min(1.0, 3 * min(pair.test.p for pair in pairs)))


def test_an_average_takes_each_seed_once_over_the_budgets_that_both_have(make_trials: Lines) -> None:
    lines = make_trials(methods=TWO, budgets=(50, 100, 200))
    kept = [line for line in lines if (line["loss"], line["budget"]) != ("b", 200)]
    (pair,) = averaged_pairs(panel_of(kept), firsts=["a"], seconds=["b"])
    accuracy = {
        (line["loss"], line["budget"], line["seed"]): float(str(line["test_accuracy"]))
        for line in lines
        if line["chosen"]
    }
    differences = [
        np.mean([accuracy["a", budget, seed] - accuracy["b", budget, seed] for budget in (50, 100)])
        for seed in range(5)
    ]
    assert pair.budgets == (50, 100)
    assert pair.test.n == 5
    assert pair.test.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)


def test_a_test_seen_from_the_other_side_has_its_signs_turned(make_trials: Lines) -> None:
    (pair,) = all_pairs(panel_of(make_trials(methods=TWO, budgets=(50,))), budget=50)
    turned = pair.turned()
    assert (turned.first, turned.second, turned.p_holm) == (pair.second, pair.first, pair.p_holm)
    assert (turned.test.mean, turned.test.low, turned.test.high) == (-pair.test.mean, -pair.test.high, -pair.test.low)

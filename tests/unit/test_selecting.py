"""Orders of asking: what each strategy picks where the answer is known, and that budgets nest."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shared.datasets.spec import open_train_test
from shared.errors import InputError, UnknownNameError
from student_trainer.config import TrainConfig
from student_trainer.loop import train
from student_trainer.loss_watch import DivergedError
from student_trainer.results import RunResult
from student_trainer.selecting import STRATEGIES, Look, asking_order, first_student

LOOKING = ["k-center", "herding", "margin", "entropy"]


def sees(features: object, logits: object = None) -> Callable[[NDArray[np.int64]], Look]:
    """A first student that says the row's entry of a table."""
    features_ND = np.asarray(features, dtype=np.float32)
    logits_NC = np.zeros((len(features_ND), 2)) if logits is None else np.asarray(logits, dtype=np.float32)
    return lambda rows: Look(features=features_ND[rows], logits=logits_NC[rows])


def asked(strategy: str, **changes: object) -> list[int]:
    given = {"pool": np.arange(6), "labels": np.zeros(6, dtype=np.int64), "count": 6, "initial": 1}
    order: list[int] = asking_order(strategy, **(given | changes)).tolist()  # type: ignore[arg-type]
    return order


def test_random_takes_the_pool_as_it_comes() -> None:
    assert asked("random", pool=np.array([4, 2, 9, 7]), count=3) == [4, 2, 9]


def test_class_balanced_takes_one_row_of_each_class_in_turn() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2, 0, 1])
    pool = np.array([1, 0, 4, 2, 5, 6, 3, 7])
    # First round 1 (class 0), 4 (class 1), 5 (class 2); then 0 and 3; class 2 is spent; then 2 and 7; then 6.
    assert asked("class-balanced", pool=pool, labels=labels, count=8) == [1, 4, 5, 0, 3, 2, 7, 6]


def test_class_balanced_is_as_even_as_can_be_for_every_budget() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 30)
    pool = generator.permutation(300)
    order = asking_order("class-balanced", pool=pool, labels=labels, count=300, initial=0)
    for count in range(1, 301):
        numbers = np.bincount(labels[order[:count]], minlength=10)
        assert numbers.max() - numbers.min() <= 1
    firsts = {label: row for row, label in reversed(list(zip(pool.tolist(), labels[pool].tolist(), strict=True)))}
    assert order[:10].tolist() == [row for row in pool.tolist() if row in firsts.values()]


def test_k_center_takes_the_corners_of_a_square_before_its_middle() -> None:
    # From the middle the corners are all as far; then the far corners, and last the point beside the first.
    points = [[0.0, 0.0], [0.1, 0.0], [5.0, 5.0], [-6.0, -6.0], [7.0, -7.0], [-8.0, 8.0]]
    assert asked("k-center", look=sees(points)) == [0, 5, 4, 3, 2, 1]


def test_k_center_takes_the_row_farthest_from_all_chosen_at_every_step() -> None:
    generator = np.random.default_rng(1)
    points = generator.normal(size=(40, 3)).astype(np.float32)
    pool = generator.permutation(40)
    order = asked("k-center", pool=pool, labels=np.zeros(40), count=40, initial=4, look=sees(points))
    assert order[:4] == pool[:4].tolist()
    for step in range(4, 39):
        left = [row for row in range(40) if row not in order[:step]]
        gaps = {row: min(np.linalg.norm(points[row] - points[other]) for other in order[:step]) for row in left}
        assert gaps[order[step]] == pytest.approx(max(gaps.values()), rel=1e-6)


def test_k_center_takes_no_row_twice_where_all_look_the_same() -> None:
    assert sorted(asked("k-center", look=sees(np.full((6, 2), 3.3)))) == [0, 1, 2, 3, 4, 5]


def test_herding_goes_to_the_other_side_of_the_mean() -> None:
    # The mean is 0. After row 0 at (4, 0) the mean of both is nearest to 0 with row 3 at (-3, 0).
    points = [[4.0, 0.0], [3.0, 0.0], [-4.0, 3.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -4.0]]
    assert asked("herding", look=sees(points), count=2) == [0, 3]


def test_herding_matches_the_mean_as_well_as_any_next_row_could() -> None:
    generator = np.random.default_rng(2)
    points = generator.normal(size=(50, 4)).astype(np.float32)
    mean = points.astype(np.float64).mean(axis=0)
    order = asked("herding", pool=np.arange(50), labels=np.zeros(50), count=50, initial=3, look=sees(points))
    for step in range(3, 50):
        left = [row for row in range(50) if row not in order[:step]]
        errors = {row: np.linalg.norm(points[[*order[:step], row]].mean(axis=0) - mean) for row in left}
        assert errors[order[step]] == pytest.approx(min(errors.values()), abs=1e-6)


def test_herding_brings_the_mean_nearer_than_random_rows_do() -> None:
    generator = np.random.default_rng(3)
    points = generator.normal(size=(400, 8))
    mean = points.mean(axis=0)

    def error(order: list[int]) -> float:
        return float(np.linalg.norm(points[order].mean(axis=0) - mean))

    order = asked("herding", pool=np.arange(400), labels=np.zeros(400), count=100, initial=5, look=sees(points))
    errors = [error(order[:count]) for count in (5, 20, 100)]
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < error(list(range(100))) / 5


def test_margin_asks_first_where_the_two_best_classes_are_closest() -> None:
    # Probabilities 9:1:0, 5:4:1, 6:3:1, 1:1:0 -> margins 0.8, 0.1, 0.3, 0.
    logits = np.log(np.array([[1, 1, 98], [9, 1, 1e-9], [5, 4, 1], [6, 3, 1], [1, 1, 1e-9]]))
    assert asked("margin", pool=np.arange(5), count=5, look=sees(np.zeros((5, 2)), logits)) == [0, 4, 2, 3, 1]


def test_entropy_asks_first_where_all_classes_are_alike() -> None:
    # In bits: 0.5:0.5:0 is 1, 0.6:0.3:0.1 is 1.3, thirds are 1.58, a certain one is 0.
    logits = [[0, 0, 0], [0, 0, -1000], list(np.log([0.6, 0.3, 0.1])), [0, 0, 0], [1000, 0, 0]]
    assert asked("entropy", pool=np.arange(5), count=5, look=sees(np.zeros((5, 2)), logits)) == [0, 3, 2, 1, 4]


def test_margin_leaves_equal_rows_in_the_order_of_the_pool() -> None:
    assert asked("margin", pool=np.array([3, 5, 1, 0, 4, 2]), look=sees(np.zeros((6, 2)))) == [3, 5, 1, 0, 4, 2]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_smaller_budgets_are_the_beginning_of_larger_ones(strategy: str) -> None:
    generator = np.random.default_rng(4)
    labels, pool = generator.integers(0, 5, 200), generator.permutation(200)[:120]
    look = sees(generator.normal(size=(200, 6)), generator.normal(size=(200, 5)))
    orders = [
        asking_order(strategy, pool=pool, labels=labels, count=count, initial=20, look=look)
        for count in (0, 7, 20, 21, 64, 120)
    ]
    for smaller, larger in itertools.pairwise(orders):
        assert smaller.tolist() == larger[: len(smaller)].tolist()
    assert [len(order) for order in orders] == [0, 7, 20, 21, 64, 120]
    assert sorted(orders[-1].tolist()) == sorted(pool.tolist())
    if strategy in LOOKING:
        assert orders[-1][:20].tolist() == pool[:20].tolist()


@pytest.mark.parametrize("strategy", LOOKING)
def test_a_large_pool_is_ordered_without_a_table_of_all_pairs(strategy: str) -> None:
    # 60,000 rows: all pairs would be 29 GB.
    generator = np.random.default_rng(5)
    look = sees(generator.normal(size=(60_000, 8)), generator.normal(size=(60_000, 10)))
    order = asked(strategy, pool=np.arange(60_000), labels=np.zeros(60_000), count=60, initial=10, look=look)
    assert len(set(order)) == 60


def test_what_cannot_be_ordered_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"'margins'; known: random, .*, margin, entropy"):
        asked("margins")
    with pytest.raises(InputError, match="7 rows to ask about, and the pool has 6"):
        asked("random", count=7)
    with pytest.raises(InputError, match="selection herding looks at a student"):
        asked("herding")
    with pytest.raises(InputError, match="1 or more"):
        asked("margin", initial=0, look=sees(np.zeros((6, 2))))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("first")
    np.save(folder / "rows.npy", np.arange(300))
    return TrainConfig(
        dataset="digits",
        student="zoo:mlp",
        out=folder / "run",
        loss="kl",
        cache="no-such-cache",
        missing="label-only",
        answer_rows=folder / "rows.npy",
        rows=folder / "rows.npy",
        epochs=20,
        tensorboard=False,
        threads=1,
    )


def test_a_first_student_is_trained_without_any_teacher_and_read_back(config: TrainConfig) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    look = first_student(config)(np.arange(300, 700))
    assert torch.equal(torch.get_rng_state(), state)
    assert (look.features.shape, look.logits.shape) == ((400, 128), (400, 10))
    labels = open_train_test("digits")[0].labels
    # Never saw these rows; 10 % would be guessing.
    assert (look.logits.argmax(axis=1) == labels[300:700]).mean() > 0.8
    (results,) = config.out.rglob("results.json")
    written = results.stat().st_mtime_ns
    again = first_student(config)(np.array([699, 300]))
    assert results.stat().st_mtime_ns == written
    np.testing.assert_allclose(again.logits, look.logits[[399, 0]], rtol=1e-5, atol=1e-5)


def test_a_first_student_that_diverges_is_trained_more_slowly(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []

    def diverging(tried: TrainConfig) -> RunResult:
        rates.append(tried.lr)
        if len(rates) < 3:
            raise DivergedError("the loss is nan")
        return train(tried)

    monkeypatch.setattr("student_trainer.first_student.train", diverging)
    look = first_student(replace(config, out=tmp_path / "run", lr=1.0, epochs=2))(np.arange(300))
    assert np.isfinite(look.logits).all()
    assert rates == pytest.approx([1.0, 0.1, 0.01])


def test_a_first_student_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rows="):
        first_student(TrainConfig(dataset="digits", student="zoo:mlp", out=tmp_path / "run"))


@pytest.mark.parametrize("strategy", LOOKING)
def test_every_strategy_orders_the_digits_by_a_real_first_student(strategy: str, config: TrainConfig) -> None:
    pool, labels = np.arange(1000), open_train_test("digits")[0].labels
    order = asking_order(strategy, pool=pool, labels=labels, count=400, initial=300, look=first_student(config))
    assert len(np.unique(order)) == 400
    assert order[300:].tolist() != pool[300:400].tolist()

"""The index from (view, row) to slot: with and without known rows, dense and sparse views, learned at once or not."""

import numpy as np
import pytest

from cache.slot_index import SlotIndex


@pytest.mark.parametrize("num_rows", [0, 8, 1000])
@pytest.mark.parametrize("views", [[0, 0, 0, 0], [0, 0, 1, 1], [1, 2, 3, 4], [7, 7, 7, 7]])
def test_finds_what_it_learned_whether_or_not_the_number_of_rows_is_known(num_rows: int, views: list[int]) -> None:
    index = SlotIndex(num_rows=num_rows)
    rows = np.array([3, 1, 0, 7])

    index.extend(rows, np.array(views), first_slot=10)

    assert [index.slot_of(int(row), view) for row, view in zip(rows, views, strict=True)] == [10, 11, 12, 13]
    assert index.slot_of(3, 99) is None
    assert index.slot_of(2, views[0]) is None
    assert sum(index.counts().values()) == 4


def test_the_first_slot_of_two_stays() -> None:
    index = SlotIndex(num_rows=0)
    index.extend(np.array([5, 5]), np.array([0, 0]), first_slot=0)
    index.extend(np.array([5]), np.array([0]), first_slot=2)

    assert index.slot_of(5, 0) == 0


def test_slots_of_many_views_at_once() -> None:
    index = SlotIndex(num_rows=4)
    index.extend(np.array([0, 1, 2, 3, 0]), np.array([0, 0, 0, 0, 6]), first_slot=0)

    assert index.slots_of(np.array([0, 3, 0, 1]), view=np.array([6, 0, 0, 6])).tolist() == [4, 3, 0, -1]
    assert index.rows_of(6).tolist() == [0]

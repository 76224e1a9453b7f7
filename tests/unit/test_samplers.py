"""Batches with several samples of each class."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from shared.errors import InputError
from student_trainer.order import epoch_batches
from student_trainer.samplers import PerClassSampler, per_class_batches

BALANCED = np.arange(400) % 20
"""20 classes of 20 samples."""
UNEVEN = np.repeat([7, 3, 9, 1], [100, 40, 3, 1])


def batches_of(
    labels: np.ndarray, *, batch: int = 32, per_class: int = 5, epoch: int = 0, seed: int = 0
) -> list[np.ndarray]:
    return per_class_batches(labels, batch=batch, per_class=per_class, least=3, seed=seed, epoch=epoch)


def test_a_batch_holds_five_samples_of_each_class_drawn() -> None:
    for positions in batches_of(BALANCED)[:-1]:
        sizes = list(Counter(BALANCED[positions].tolist()).values())
        assert sizes == [5] * 6 + [2]


@pytest.mark.parametrize("labels", [BALANCED, UNEVEN])
@pytest.mark.parametrize("batch", [8, 32, 142, 1000])
def test_steps_and_sizes_are_those_of_the_usual_epoch_and_no_batch_repeats_a_sample(
    labels: np.ndarray, batch: int
) -> None:
    found = batches_of(labels, batch=batch)
    usual = epoch_batches(count=len(labels), batch=batch, least=3, seed=0, epoch=0)
    assert [len(positions) for positions in found] == [len(positions) for positions in usual]
    for positions in found:
        assert positions.dtype == np.int64
        assert len(set(positions.tolist())) == len(positions)
        assert 0 <= positions.min() <= positions.max() < len(labels)


def test_classes_of_one_size_are_seen_alike_and_nearly_every_sample_once() -> None:
    seen = np.concatenate(batches_of(BALANCED))
    per_class = Counter(BALANCED[seen].tolist())
    assert set(per_class) == set(range(20))
    assert max(per_class.values()) - min(per_class.values()) <= 5
    assert len(set(seen.tolist())) >= 0.9 * len(BALANCED)


def test_small_classes_are_drawn_as_often_as_large_ones() -> None:
    seen = Counter(UNEVEN[np.concatenate(batches_of(UNEVEN, batch=8))].tolist())
    assert min(seen.values()) >= 15
    large = [positions for epoch in range(20) for positions in batches_of(UNEVEN, batch=8, epoch=epoch)]
    assert set(np.concatenate(large).tolist()) == set(range(len(UNEVEN)))


def test_batches_follow_from_seed_and_epoch_alone() -> None:
    def text(**which: int) -> str:
        return str([positions.tolist() for positions in batches_of(BALANCED, **which)])

    assert text() == text()
    assert len({text(), text(epoch=1), text(seed=1)}) == 3


def test_a_loader_of_ones_own_goes_through_the_epochs() -> None:
    sampler = PerClassSampler(torch.from_numpy(BALANCED), batch=32, least=3, seed=4)
    loader = DataLoader(TensorDataset(torch.arange(400)), batch_sampler=sampler)
    passes = [[positions.tolist() for (positions,) in loader] for _ in range(2)]
    for epoch, found in enumerate(passes):
        assert found == [positions.tolist() for positions in batches_of(BALANCED, seed=4, epoch=epoch)]
        assert len(found) == len(loader)
    sampler.set_epoch(1)
    assert [positions.tolist() for (positions,) in loader] == passes[1]


def test_no_samples_of_a_class_are_refused() -> None:
    with pytest.raises(InputError, match="per_class=0: draw at least 1"):
        batches_of(BALANCED, per_class=0)

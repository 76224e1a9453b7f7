"""What stands between the maps of student and teacher: drawn as published, refused where it does not fit."""

import math

import pytest
import torch
from map_batches import batch_of, started
from torch import nn

from shared.errors import InputError
from student_trainer.losses import build_loss
from student_trainer.losses.connectors import conv_norm, drawn

SHAPES = [(4, 8, 8), (6, 4, 4)]
CONNECTED = {"ab": SHAPES, "ofd": SHAPES, "review": SHAPES, "ft": SHAPES[1:], "srrl": SHAPES[1:]}
PAIRED = {**{name: CONNECTED[name] for name in ("ab", "ofd", "review", "ft")}, "fitnets": SHAPES, "vid": SHAPES}
"""Losses with a part for each pair of maps."""


def test_weights_are_distributed_as_torch_draws_them() -> None:
    layer = drawn(lambda: nn.Conv2d(8, 64, 3), generator=torch.Generator().manual_seed(2))
    bound = 1 / math.sqrt(8 * 9)
    for parameter in layer.parameters():
        assert float(parameter.detach().abs().max()) <= bound
    assert float(layer.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.03)


def test_a_1x1_connector_starts_with_the_published_variance() -> None:
    connector = conv_norm(64, 128, generator=torch.Generator().manual_seed(2))
    assert float(connector.get_parameter("0.weight").detach().std()) == pytest.approx(math.sqrt(2 / 128), rel=0.03)
    assert "0.bias" not in connector.state_dict()
    assert bool((connector.get_parameter("1.weight") == 1).all())


@pytest.mark.parametrize("name", sorted(CONNECTED))
def test_another_seed_draws_other_weights(name: str) -> None:
    batch = batch_of(CONNECTED[name], [(5, 8, 8), (7, 4, 4)][-len(CONNECTED[name]) :])
    first, same, other = (started(name, batch, seed=seed).state_dict() for seed in (0, 0, 1))
    drawn_names = [key for key in first if key.endswith(".weight") and first[key].ndim == 4]
    assert drawn_names
    for key in drawn_names:
        assert torch.equal(first[key], same[key])
        assert not torch.equal(first[key], other[key])


@pytest.mark.parametrize("name", PAIRED)
def test_maps_of_other_channels_than_announced_are_refused(name: str) -> None:
    shapes = PAIRED[name]
    loss = started(name, batch_of(shapes, shapes))
    wider = [(channels + 1, height, width) for channels, height, width in shapes]
    with pytest.raises(InputError, match=rf"{name}: \(student, teacher\) maps have .* channels; start\(\) was told"):
        loss(batch_of(wider, shapes))


@pytest.mark.parametrize("name", ["ab", "ofd", "ft", "srrl"])
def test_one_sample_is_too_few_where_a_map_is_one_place(name: str) -> None:
    batch = batch_of([(4, 1, 1)], [(5, 1, 1)], count=1)
    with pytest.raises(InputError, match="needs batches of at least 2 samples"):
        started(name, batch)(batch)


@pytest.mark.parametrize(("name", "shapes"), {**CONNECTED, **PAIRED}.items())
def test_a_loss_that_was_not_started_is_refused(name: str, shapes: list[tuple[int, int, int]]) -> None:
    with pytest.raises(InputError, match=rf"{name} has no trainable parts yet: call loss.start"):
        build_loss(name)(batch_of(shapes, shapes))


@pytest.mark.parametrize("name", PAIRED)
def test_maps_that_are_announced_for_one_side_alone_are_refused(name: str) -> None:
    batch = batch_of(PAIRED[name], [])
    with pytest.raises(InputError, match=rf"{name}: \d maps of the student and 0 of the teacher are announced"):
        started(name, batch)

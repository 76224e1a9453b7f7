"""FitNets: which regressor leads from which map to which, that it is trained, saved and drawn from the seed."""

from collections.abc import Mapping
from io import BytesIO
from types import MappingProxyType

import pytest
import torch
from torch import Tensor, nn

from shared.errors import InputError
from student_trainer.losses import DistillBatch, TrainingFacts, build_loss
from student_trainer.losses.base import DistillLoss
from student_trainer.losses.facts import MapShape
from student_trainer.losses.fitnets import convolution
from student_trainer.losses.trained_pairs import drawn_layer


def started(
    name: str,
    student: MapShape,
    teacher: MapShape,
    *,
    seed: int = 3,
    hyper: Mapping[str, object] = MappingProxyType({}),
) -> DistillLoss:
    loss = build_loss(name, **hyper)
    rows = torch.arange(4)
    loss.start(
        TrainingFacts(
            seed=seed,
            classes=2,
            rows=rows,
            labels=rows % 2,
            student_width=student[0],
            teacher_width=teacher[0],
            student_maps=(student,),
            teacher_maps=(teacher,),
        )
    )
    return loss


def batch_of(student: MapShape, teacher: MapShape, *, count: int = 4, seed: int = 0) -> DistillBatch:
    generator = torch.Generator().manual_seed(seed)
    own, other = (torch.randn(count, *shape, generator=generator) for shape in (student, teacher))
    return DistillBatch(
        student_logits=torch.zeros(count, 2),
        student_maps=(own.requires_grad_(),),
        teacher_maps=(other,),
        student_features=own.mean(dim=(2, 3)),
        teacher_features=other.mean(dim=(2, 3)),
    )


@pytest.mark.parametrize(
    ("student", "teacher", "kind", "kernel"),
    [
        ((4, 8, 8), (6, 8, 8), nn.Conv2d, (1, 1)),
        ((4, 8, 8), (6, 4, 4), nn.Conv2d, (3, 3)),
        ((4, 4, 4), (6, 8, 8), nn.ConvTranspose2d, (4, 4)),
        ((4, 8, 7), (6, 5, 6), nn.Conv2d, (4, 2)),
        ((4, 8, 4), (6, 4, 4), nn.Conv2d, (5, 1)),
        ((4, 9, 9), (6, 1, 1), nn.Conv2d, (9, 9)),
    ],
)
def test_every_regressor_gives_the_teachers_shape(
    student: MapShape, teacher: MapShape, kind: type[nn.Module], kernel: tuple[int, int]
) -> None:
    layer = convolution(student, teacher, generator=torch.Generator())
    assert isinstance(layer, kind)
    assert layer.kernel_size == kernel
    assert layer(torch.zeros(2, *student)).shape == (2, *teacher)
    loss, batch = started("fitnets", student, teacher), batch_of(student, teacher)
    loss(batch).backward()
    assert all(one.grad is not None and one.grad.isfinite().all() for one in loss.parameters())


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((4, 4, 4), (6, 7, 7)), ((4, 2, 8), (6, 8, 2)), ((4, 8, 2), (6, 2, 8)), ((4, 4, 8), (6, 8, 8))],
)
def test_sizes_without_a_regressor_are_refused_with_both_shapes(student: MapShape, teacher: MapShape) -> None:
    with pytest.raises(InputError) as caught:
        started("fitnets", student, teacher)
    assert f"{list(student)} to a teacher map {list(teacher)}" in str(caught.value)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d, nn.Linear])
def test_weights_are_spread_as_torch_spreads_them(kind: type[nn.Module]) -> None:
    sizes = (40, 60) if kind is nn.Linear else (40, 60, 3)
    ours = drawn_layer(kind, *sizes, generator=torch.Generator().manual_seed(0))  # type: ignore[type-var]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        theirs = kind(*sizes)
    for name, one in theirs.named_parameters():
        assert float(ours.get_parameter(name).detach().abs().max()) == pytest.approx(
            float(one.detach().abs().max()), rel=0.1
        )
        assert float(ours.get_parameter(name).detach().std()) == pytest.approx(float(one.detach().std()), rel=0.25)


PARTS: tuple[tuple[str, dict[str, object]], ...] = (("fitnets", {}), ("fitnets", {"on": "features"}), ("vid", {}))


@pytest.mark.parametrize(("name", "hyper"), PARTS)
def test_one_seed_gives_one_set_of_weights_and_leaves_torchs_own_numbers_alone(
    name: str, hyper: dict[str, object]
) -> None:
    shapes: tuple[MapShape, MapShape] = ((4, 8, 8), (6, 4, 4))
    before = torch.get_rng_state()
    first, again, other = (flat(started(name, *shapes, seed=seed, hyper=hyper)) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def flat(loss: DistillLoss) -> Tensor:
    return torch.cat([one.detach().flatten() for one in loss.parameters()])


@pytest.mark.parametrize(("name", "hyper"), PARTS)
def test_trained_parts_go_on_in_another_object_to_the_same_bits(name: str, hyper: dict[str, object]) -> None:
    shapes: tuple[MapShape, MapShape] = ((4, 8, 8), (6, 4, 4))
    whole, stopped = (started(name, *shapes, hyper=hyper) for _ in range(2))
    train(whole, range(4), shapes)
    train(stopped, range(2), shapes)
    saved = BytesIO()
    torch.save(stopped.state_dict(), saved)
    saved.seek(0)
    resumed = started(name, *shapes, seed=99, hyper=hyper)
    resumed.load_state_dict(torch.load(saved))
    train(resumed, range(2, 4), shapes)
    assert not torch.equal(flat(whole), flat(stopped))
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def train(loss: DistillLoss, steps: range, shapes: tuple[MapShape, MapShape]) -> None:
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    for step in steps:
        optimizer.zero_grad()
        loss(batch_of(*shapes, seed=step)).backward()
        optimizer.step()


def test_features_of_other_widths_than_announced_are_refused() -> None:
    batch = batch_of((4, 8, 8), (6, 4, 4))
    with pytest.raises(InputError, match=r"4 wide here and the teacher's 6: call loss\.start"):
        build_loss("fitnets", on="features")(batch)
    with pytest.raises(InputError, match=r"4 wide; start\(\) was told 5"):
        started("fitnets", (5, 8, 8), (6, 4, 4), hyper={"on": "features"})(batch)


def test_one_number_per_channel_is_too_few_for_batch_norm() -> None:
    loss = started("fitnets", (4, 3, 3), (6, 1, 1))
    with pytest.raises(InputError, match="at least 2 samples"):
        loss(batch_of((4, 3, 3), (6, 1, 1), count=1))
    assert loss(batch_of((4, 3, 3), (6, 1, 1), count=2)).isfinite()


def test_training_the_regressor_lowers_the_loss() -> None:
    shapes: tuple[MapShape, MapShape] = ((4, 8, 8), (6, 4, 4))
    loss, batch = started("fitnets", *shapes, hyper={"use_relu": False}), batch_of(*shapes)
    before = float(loss(batch).detach())
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        value = loss(batch)
        value.backward()
        optimizer.step()
    assert float(value.detach()) < 0.9 * before

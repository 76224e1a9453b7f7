"""CRD: which negatives it draws, what it remembers, and what it says where it cannot work."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from shared.errors import InputError
from student_trainer.losses import DistillBatch, TrainingFacts, build_loss, negatives
from student_trainer.losses.crd import CRD
from student_trainer.losses.negatives import Negatives

ROWS = torch.tensor([40, 7, 19, 3, 88, 21, 5, 60, 11, 2, 33, 70])
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 0, 2, 1, 0])
FACTS = TrainingFacts(seed=5, classes=3, rows=ROWS, labels=LABELS, student_width=4, teacher_width=6)


def started(facts: TrainingFacts = FACTS, **hyper: object) -> CRD:
    loss = build_loss("crd", **{"negatives": 7, "width": 8} | hyper)
    assert isinstance(loss, CRD)
    loss.start(facts)
    return loss


def batch_of(*positions: int, seed: int = 0) -> DistillBatch:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(len(positions), width, generator=generator) for width in (4, 6))
    return DistillBatch(
        student_logits=torch.zeros(len(positions), 3),
        rows=ROWS[list(positions)],
        student_features=student.requires_grad_(),
        teacher_features=teacher,
    )


def drawn(count: int, *, times: int = 1, facts: TrainingFacts = FACTS) -> Tensor:
    """Counts [times, N, N] of negatives of every row."""
    source = Negatives(rows_N=facts.rows, labels_N=facts.labels, count=count)
    return torch.stack([source.draw(torch.arange(len(facts.rows)), seed=seed) for seed in range(times)])


@pytest.mark.parametrize("count", [1, 5, 6, 7, 500])
def test_negatives_are_as_many_as_asked_and_of_other_classes(count: int) -> None:
    counts = drawn(count, times=3)
    assert counts.sum(dim=2).eq(count).all()
    assert counts[:, LABELS[:, None] == LABELS].eq(0).all()


def test_negatives_are_distinct_where_every_class_leaves_enough_and_repeated_else() -> None:
    assert drawn(6, times=20).max() == 1  # the largest class has 6 of the 12 rows
    assert drawn(7, times=20)[:, LABELS == 0].max() > 1


def test_a_large_class_repeats_its_negatives_and_no_other_class_does() -> None:
    counts = drawn(7, times=40)  # class 0 leaves 6 rows, classes 1 and 2 leave 9
    repeats = counts.amax(dim=(0, 2)) > 1
    assert repeats.tolist() == (LABELS == 0).tolist()
    others = (LABELS[:, None] != LABELS) & (LABELS != 0)[:, None]
    assert set(counts[:, others].flatten().tolist()) == {0.0, 1.0}
    deviation = (7 / 9 * 2 / 9 / 40) ** 0.5
    assert float((counts.mean(dim=0)[others] - 7 / 9).abs().max()) < 5 * deviation


WAYS = (negatives.repeated_by_row, negatives.repeated_by_draw)


@pytest.mark.parametrize("way", WAYS)
def test_repeated_draws_hit_every_place_but_the_own_class_equally_often(way: Callable[..., Tensor]) -> None:
    sizes = torch.tensor([1, 4, 8, 2]).repeat(2000)
    counts = way(sizes, rows=9, count=30, seed=0)
    assert counts.dtype == torch.float32
    assert counts.sum(dim=1).eq(30).all()
    is_other = torch.arange(9) >= sizes[:, None]
    assert counts[~is_other].eq(0).all()
    for size in (1, 4, 2):
        found = counts[sizes == size][:, size:].double()
        share = 1 / (9 - size)
        deviation = (30 * share * (1 - share) / len(found)) ** 0.5
        assert float((found.mean(dim=0) - 30 * share).abs().max()) < 5 * deviation
        torch.testing.assert_close(found.var(), found.new_tensor(30 * share * (1 - share)), rtol=0.1, atol=0)


@pytest.mark.parametrize("count", [3, 40])
def test_every_row_of_another_class_is_drawn_equally_often(count: int) -> None:
    times = 3000
    counts = drawn(count, times=times)
    others = (LABELS[:, None] != LABELS).double()
    expected = count * others / others.sum(dim=1, keepdim=True)
    deviation = counts.double().var(dim=0).clamp(min=1e-9).sqrt() / times**0.5
    assert float(((counts.double().mean(dim=0) - expected).abs() / deviation)[others > 0].max()) < 5


def test_another_step_and_another_seed_draw_other_negatives() -> None:
    counts = drawn(5, times=2)
    assert not torch.equal(counts[0], counts[1])
    values = [float(started(replace(FACTS, seed=seed))(batch_of(0, 1)).detach()) for seed in (5, 5, 6)]
    assert values[0] == values[1] != values[2]


def test_rows_are_found_in_whatever_order_the_training_has_them() -> None:
    source = Negatives(rows_N=ROWS, labels_N=LABELS, count=3)
    wanted = torch.tensor([4, 0, 11, 9, 4])
    assert source.positions(ROWS[wanted]).tolist() == wanted.tolist()


@pytest.mark.parametrize("row", [0, 41, 1000])
def test_a_row_that_the_training_does_not_have_is_named(row: int) -> None:
    batch = replace(batch_of(0, 1), rows=torch.tensor([40, row]))
    with pytest.raises(InputError, match=rf"row {row} is not among the 12 training rows that start\(\) was told"):
        started()(batch)


def written_out(loss: CRD, batch: DistillBatch, contrast: Tensor) -> float:
    """The loss as the paper's formula, sample by sample in float64."""
    state = {name: tensor.double() for name, tensor in loss.state_dict().items() if isinstance(tensor, Tensor)}
    total, count, rows = 0.0, contrast.shape[1] - 1, len(ROWS)
    for side, other in (("student", "teacher"), ("teacher", "student")):
        features = getattr(batch, f"{side}_features").detach().double()
        embedded = features @ state[f"embed_{side}.weight"].T + state[f"embed_{side}.bias"]
        embedded = embedded / embedded.norm(dim=1, keepdim=True)
        scores = [
            [float((vector @ state[f"memory_{other}"][position]) / 0.07) for position in line]
            for vector, line in zip(embedded, contrast.tolist(), strict=True)
        ]
        likelihoods = torch.tensor(scores, dtype=torch.float64).exp()
        likelihoods = likelihoods / (likelihoods.mean() * rows)
        noise = count / rows
        total -= float((likelihoods[:, 0] / (likelihoods[:, 0] + noise)).log().sum())
        total -= float((noise / (likelihoods[:, 1:] + noise)).log().sum())
    return total / len(contrast)


def test_the_first_batch_gives_the_papers_formula_with_its_own_constant() -> None:
    loss, batch = started(), batch_of(3, 8)
    contrast = torch.tensor([[3, 1, 2, 4, 5, 9, 1, 1], [8, 10, 2, 4, 5, 9, 1, 2]])
    expected = written_out(loss, batch, contrast)
    assert float(loss(batch, contrast=contrast).detach()) == pytest.approx(expected, rel=1e-5)


def test_drawn_negatives_count_as_often_as_they_were_drawn() -> None:
    loss, given = started(), started()
    assert loss.negatives is not None
    batch = batch_of(3, 8)
    seed = started().next_seed()
    counts = loss.negatives.draw(torch.tensor([3, 8]), seed=seed).long()
    contrast = torch.stack(
        [
            torch.cat([torch.tensor([position]), torch.arange(12).repeat_interleave(line)])
            for position, line in zip((3, 8), counts, strict=True)
        ]
    )
    torch.testing.assert_close(loss(batch), given(batch, contrast=contrast))


def test_a_training_step_moves_the_memories_of_its_rows_only() -> None:
    loss = started(momentum=0.25)
    before = {name: getattr(loss, name).clone() for name in ("memory_student", "memory_teacher")}
    batch = batch_of(2, 6)
    embedded = {
        "memory_student": loss.embed_student(batch.student_features).detach(),
        "memory_teacher": loss.embed_teacher(batch.teacher_features).detach(),
    }
    loss(batch).backward()
    others = [position for position in range(12) if position not in (2, 6)]
    for name, old in before.items():
        moved = getattr(loss, name)
        assert torch.equal(moved[others], old[others])
        expected = 0.25 * old[[2, 6]] + 0.75 * embedded[name] / embedded[name].norm(dim=1, keepdim=True)
        torch.testing.assert_close(moved[[2, 6]], expected / expected.norm(dim=1, keepdim=True))


def test_evaluation_leaves_the_memories_alone() -> None:
    loss = started()
    before = loss.memory_student.clone()
    with torch.no_grad():
        loss(batch_of(2, 6))
    loss.eval()
    loss(batch_of(2, 6))
    assert torch.equal(loss.memory_student, before)


def test_the_constants_are_those_of_the_first_batch_for_ever_and_part_of_the_state() -> None:
    loss = started()
    loss(batch_of(2, 6))
    first = loss.state_dict()["_extra_state"]["log_z"]
    assert set(first) == {"student", "teacher"}
    loss(batch_of(1, 3, seed=9))
    assert loss.state_dict()["_extra_state"]["log_z"] == first
    loss.start(FACTS)
    assert loss.state_dict()["_extra_state"]["log_z"] == {}


def test_both_embeddings_are_trained_and_the_memories_are_not() -> None:
    loss = started()
    loss(batch_of(0, 1, 2)).backward()
    names = {name for name, parameter in loss.named_parameters() if parameter.grad is not None}
    assert names == {f"embed_{side}.{kind}" for side in ("student", "teacher") for kind in ("weight", "bias")}
    assert {"memory_student", "memory_teacher"} <= set(loss.state_dict())


def test_on_logits_both_embeddings_take_the_classes() -> None:
    facts = replace(FACTS, student_width=None, teacher_width=None)
    loss = started(facts, on="logits")
    assert (loss.embed_student.in_features, loss.embed_teacher.in_features) == (3, 3)
    assert loss.needs == ("teacher_logits", "rows")


def test_without_a_start_it_says_what_to_call() -> None:
    with pytest.raises(InputError, match=r"call loss.start\(TrainingFacts\(...\)\) once before training"):
        build_loss("crd")(batch_of(0, 1))


def test_facts_that_do_not_suffice_are_refused() -> None:
    with pytest.raises(InputError, match="give student_width and teacher_width in TrainingFacts"):
        started(replace(FACTS, teacher_width=None))
    with pytest.raises(InputError, match="all 12 rows have one"):
        started(replace(FACTS, labels=torch.zeros(12, dtype=torch.int64)))


def test_features_of_another_width_than_announced_are_refused() -> None:
    with pytest.raises(InputError, match=r"crd: teacher features are 5 wide; start\(\) was told 6"):
        started()(replace(batch_of(0, 1), teacher_features=torch.zeros(2, 5)))

"""Losses on CUDA: the values and gradients of the CPU, for whatever is not drawn on the device."""

import pytest
import torch
from loss_cases import SMALL, case_of, fitting, ready
from torch import Tensor

from student_trainer.losses import LOSSES
from student_trainer.losses.negatives import Negatives

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")

ROWS, CLASSES, BATCH = SMALL.rows, SMALL.classes, 8


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in float32 on both sides."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def steps(name: str, device: str) -> list[Tensor]:
    """(value, gradients) of two steps, so that what the first one left behind counts."""
    loss, found = ready(name, {}).to(device), []
    options = {"contrast": torch.arange(BATCH * 17).view(BATCH, 17) % ROWS} if name == "crd" else {}
    for step in range(2):
        case = case_of(loss, count=BATCH, sizes=fitting(name), seed=step, device=device)
        value = loss(case.batch, **options)
        gradients = torch.autograd.grad(value, [*case.student.values(), *loss.parameters()], allow_unused=True)
        found += [value.detach(), *(item for item in gradients if item is not None)]
    return [tensor.cpu() for tensor in found]


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_loss_gives_on_cuda_what_it_gives_on_the_cpu(name: str) -> None:
    for found, expected in zip(steps(name, "cuda"), steps(name, "cpu"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [10, 1000])
def test_negatives_drawn_on_cuda_are_of_other_classes_and_as_many_as_asked(count: int) -> None:
    rows = torch.arange(ROWS)
    negatives = Negatives(rows_N=rows, labels_N=rows % CLASSES, count=count).to("cuda")
    counts = negatives.draw(rows.cuda(), seed=3).cpu()
    assert counts.sum(dim=1).eq(count).all()
    assert counts[(rows % CLASSES)[:, None] == rows % CLASSES].eq(0).all()


def test_a_state_saved_on_cuda_goes_on_there() -> None:
    first, resumed = ready("crd", {}).to("cuda"), ready("crd", {}).to("cuda")
    first(case_of(first, device="cuda").batch)
    resumed.load_state_dict(first.state_dict())
    batch = case_of(first, seed=1, device="cuda").batch
    torch.testing.assert_close(resumed(batch), first(batch))

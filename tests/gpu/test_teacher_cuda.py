"""Teachers on CUDA: the same id, answers close to the CPU's, every precision."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shared.teacher import load_teacher

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def images(count: int) -> list[NDArray[np.uint8]]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))


@pytest.mark.parametrize("spec", ["zoo:wrn_40_2", "zoo:MobileNetV2", "torchvision:resnet18"])
def test_float32_on_cuda_agrees_with_the_cpu_and_has_its_id(spec: str) -> None:
    on_cpu = load_teacher(spec, classes=10, device="cpu")
    on_cuda = load_teacher(spec, classes=10, device="cuda")
    assert on_cpu.id == on_cuda.id
    for name, values in on_cpu.answer(images(8)).items():
        # TF32 would be a hundred times further away.
        np.testing.assert_allclose(on_cuda.answer(images(8))[name], values, rtol=1e-4, atol=1e-5 * np.abs(values).max())


def test_float32_stays_float32_when_the_process_trains_in_tf32_and_training_keeps_its_choice() -> None:
    teacher = load_teacher("torchvision:resnet18", classes=10, device="cuda")
    plain = teacher.answer(images(4))["logits"]
    before = torch.get_float32_matmul_precision()
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        again = teacher.answer(images(4))["logits"]
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_array_equal(plain, again)


@pytest.mark.parametrize(("precision", "error"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_lower_precision_runs_on_cuda(precision: str, error: float) -> None:
    exact = load_teacher("zoo:wrn_16_2", classes=10, device="cuda").answer(images(64))["logits"]
    rough = load_teacher("zoo:wrn_16_2", classes=10, device="cuda", precision=precision).answer(images(64))["logits"]
    assert 0 < np.abs(rough - exact).max() < error * np.abs(exact).max()


def test_auto_picks_cuda_and_close_gives_its_memory_back() -> None:
    before = torch.cuda.memory_allocated()
    teacher = load_teacher("zoo:wrn_40_2", classes=10, device="auto")
    assert torch.cuda.memory_allocated() > before
    teacher.answer(images(2))
    teacher.close()
    assert torch.cuda.memory_allocated() - before < 1_000_000

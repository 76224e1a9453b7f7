"""What only CUDA has: batches that overlap, graphs, several devices, memory that does not suffice."""

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cache.history_report import describe_history
from cache.writer import CacheWriter
from shared.datasets.base import ArrayDataset, SplitFacts
from shared.errors import TeacherFailedError
from shared.replicas import replicas_of
from shared.teacher import TorchTeacher, load_teacher
from teacher_server.answering import Answering
from teacher_server.fill import fill
from teacher_server.settings import AnsweringSettings
from teacher_server.warm_up import warm_up

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
several = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")


def images(count: int, *, seed: int = 0) -> list[NDArray[np.uint8]]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))


def load(device: str = "cuda", *, precision: str = "float32", compiled: bool = False) -> TorchTeacher:
    teacher = load_teacher("zoo:wrn_16_2", classes=10, device=device, precision=precision, compiled=compiled)
    assert isinstance(teacher, TorchTeacher)
    return teacher


def test_batches_begun_one_behind_the_other_give_each_its_own_answers() -> None:
    teacher = load()
    batches = [images(64, seed=seed) for seed in range(12)]
    expected = [teacher.answer(batch) for batch in batches]
    begun = [teacher.start(batch) for batch in batches]
    for said, one in zip(expected, begun, strict=True):
        for name, values in one.result().items():
            np.testing.assert_array_equal(values, said[name])


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_graph_gives_what_the_network_gives_also_behind_another_and_in_another_thread(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Graphs need no compiler: they are tested where triton is not installed, too.
    monkeypatch.setattr("shared.models.compiling.torch.compile", lambda network, **_: network)
    plain, teacher = load(precision=precision), load(precision=precision, compiled=True)
    warm_up(teacher, batch_images=64, partial=True, compiled=True, datasets=[])
    counts = (64, 7, 64, 1, 33, 100)
    with ThreadPoolExecutor(1) as thread:
        begun = [thread.submit(teacher.start, images(count, seed=count)).result() for count in counts]
        said = [thread.submit(one.result).result() for one in begun]
    for count, one in zip(counts, said, strict=True):
        for name, values in plain.answer(images(count, seed=count)).items():
            scale = np.abs(values).max()
            np.testing.assert_allclose(one[name], values, atol=scale * (1e-5 if precision == "float32" else 0.05))


def test_a_really_compiled_teacher_answers_as_it_does_uncompiled() -> None:
    pytest.importorskip("triton", reason="torch.compile needs triton on CUDA")
    teacher, expected = load(compiled=True), load().answer(images(5))
    warm_up(teacher, batch_images=8, partial=True, compiled=True, datasets=[])
    for name, values in teacher.answer(images(5)).items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-3, atol=1e-4 * np.abs(expected[name]).max())


def test_memory_that_does_not_suffice_fails_the_batch_and_the_next_one_is_answered() -> None:
    teacher = load()
    _, total = torch.cuda.mem_get_info()
    in_use = torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction((in_use + 64 * 2**20) / total)
    try:
        with pytest.raises(TeacherFailedError, match="use a smaller --batch"):
            teacher.answer(images(8192))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(teacher.answer(images(4))["logits"]) == 4


def test_a_device_that_asserts_is_lost_and_one_refused_launch_is_not() -> None:
    # In a process of its own: nothing there can use the device afterwards.
    program = """
import torch
from shared.begun_answers import named_failures
from shared.errors import DeviceLostError
try:
    with named_failures("cuda:0 any", images=1):
        raise torch.AcceleratorError("CUDA error: invalid configuration argument")
except torch.AcceleratorError:
    print("works")
try:
    with named_failures("cuda:0 any", images=1):
        torch.zeros(3, device="cuda")[torch.tensor([7], device="cuda")].cpu()
except DeviceLostError:
    print("lost")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert ended.stdout.split() == ["works", "lost"], ended.stderr


@several
def test_every_device_computes_and_every_row_is_one_call(tmp_path: Path) -> None:
    pixels = np.stack(images(2000))
    facts = SplitFacts(name="tiny/train", classes=("a",), labels=np.zeros(2000, dtype=np.int64), view_policy="crop1")
    dataset = ArrayDataset(facts, pixels=pixels)
    teacher = load_teacher("zoo:wrn_16_2", classes=10, device="cuda:all")
    devices = [replica.device for replica in replicas_of(teacher)]
    assert len(devices) == torch.cuda.device_count()
    writer = CacheWriter.open(tmp_path / "cache")
    cache = writer.open_cache(teacher.description, dataset.description)

    async def run() -> None:
        settings = AnsweringSettings(batch_images=16, max_delay_s=0.0)
        async with Answering(writer, teacher=teacher, settings=settings) as answering:
            counts = await fill(
                answering,
                dataset=dataset,
                cache=cache,
                rows=np.arange(2000),
                views=(0,),
                run="default",
                batch_images=16,
                progress=lambda _: None,
            )
        assert counts.teacher_calls == 2000

    asyncio.run(run())
    writer.close()
    teacher.close()
    assert {call["device"] for call in describe_history(tmp_path / "cache")["calls"]} == set(devices)

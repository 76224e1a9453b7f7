"""Devices by name, float32 that stays float32, memory that does not suffice, compiled shapes, and glibc's memory."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shared.begun_answers import named_failures
from shared.devices import pick_devices
from shared.errors import DeviceLostError, InputError, TeacherFailedError
from shared.malloc import keep_freed_memory
from shared.models import compiling
from shared.models.exact_float32 import ExactFloat32
from shared.replicas import replicas_of
from shared.teacher import TorchTeacher, load_teacher
from teacher_server.warm_up import batch_sizes, warm_up


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("cpu", ("cpu",)),
        ("auto", ("cuda:2",)),
        ("cuda", ("cuda:2",)),
        ("cuda:3", ("cuda:3",)),
        ("cuda:3, cuda:0", ("cuda:3", "cuda:0")),
        ("cuda:all", ("cuda:0", "cuda:1", "cuda:2", "cuda:3")),
        ("cpu,cpu", ("cpu", "cpu")),
    ],
)
def test_devices_are_named(text: str, devices: tuple[str, ...]) -> None:
    assert pick_devices(text) == devices


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cuda:4", "sees 4 CUDA devices"),
        ("cuda:1,cuda:1", "names a CUDA device twice"),
        ("cuda:2,cuda", "names a CUDA device twice"),
        ("cpu,cuda:0", "mixes CPU and CUDA"),
        ("cuda:0,cuda:all", "use it alone"),
        ("cuda:0,", "unknown device ''; use auto, cpu"),
        ("cuda:-1", "unknown device 'cuda:-1'"),
        ("cuda:", "unknown device 'cuda:'"),
        ("cuda:²", "unknown device"),
    ],
)
def test_devices_that_make_no_sense_are_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        pick_devices(text)


@pytest.fixture
def in_tf32() -> Iterator[tuple[Any, Any]]:
    """The process's choice for convolutions and for products of matrices."""
    backends = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "tf32"
    yield backends
    for backend, precision in zip(backends, before, strict=True):
        backend.fp32_precision = precision


def test_float32_stays_exact_until_the_last_thread_has_left(in_tf32: tuple[Any, Any]) -> None:
    exact, first_in, first_may_leave = ExactFloat32(), threading.Event(), threading.Event()

    def first() -> None:
        with exact:
            first_in.set()
            assert first_may_leave.wait(timeout=10)

    thread = threading.Thread(target=first)
    thread.start()
    assert first_in.wait(timeout=10)
    with exact:
        first_may_leave.set()
        thread.join()
        assert [backend.fp32_precision for backend in in_tf32] == ["ieee", "ieee"]
    assert [backend.fp32_precision for backend in in_tf32] == ["tf32", "tf32"]


@pytest.mark.parametrize("legacy", ["highest", "high", "medium"])
def test_both_ways_to_choose_tf32_agree_within_and_are_as_before_afterwards(legacy: str) -> None:
    def told() -> tuple[object, ...]:
        cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        return torch.get_float32_matmul_precision(), cuda.allow_tf32, cudnn.allow_tf32, cuda.fp32_precision

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(legacy)
    try:
        chosen = told()
        with ExactFloat32():
            assert told() == ("highest", False, False, "ieee")
        assert told() == chosen
    finally:
        torch.set_float32_matmul_precision(before)


def images(count: int, *, side: int = 8) -> list[NDArray[np.uint8]]:
    return list(np.random.default_rng(1).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def load(*, device: str = "cpu", compiled: bool = False) -> Any:
    return load_teacher("zoo:resnet8", classes=4, device=device, compiled=compiled)


def test_replicas_are_one_teacher_and_share_no_weights() -> None:
    teacher = load(device="cpu,cpu")
    first, second = replicas_of(teacher)
    assert first.id == second.id == teacher.id == load().id
    np.testing.assert_array_equal(first.answer(images(3))["logits"], second.answer(images(3))["logits"])
    # Hooks that record maps are put on the network: one that two threads shared would mix their answers up.
    assert isinstance(first, TorchTeacher)
    assert isinstance(second, TorchTeacher)
    assert first._network.model is not second._network.model
    teacher.close()


def test_memory_that_does_not_suffice_is_told_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = load()

    def forward(*_: object) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB")

    monkeypatch.setattr(teacher._network.model, "forward", forward)
    with pytest.raises(TeacherFailedError, match=r"cpu has too little memory .* 6 images: use a smaller --batch, such"):
        teacher.answer(images(6))
    with pytest.raises(InputError, match=r"before the first question: .* smaller --batch, such as 32"):
        warm_up(teacher, batch_images=64, partial=True, compiled=True, datasets=[])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a device that does not work")
@pytest.mark.parametrize(
    ("said", "kind"),
    [("CUDA error: out of memory", TeacherFailedError), ("CUDA error: unspecified launch failure", DeviceLostError)],
)
def test_an_error_of_a_device_that_works_no_more_is_no_error_of_one_batch(said: str, kind: type[Exception]) -> None:
    with pytest.raises(TeacherFailedError, match="cuda:0 H200") as told, named_failures("cuda:0 H200", images=4):
        raise torch.AcceleratorError(f"{said}\nCUDA kernel errors might be reported later")
    assert told.type is kind


@pytest.mark.parametrize(
    ("batch", "partial", "compiled", "on_cpu", "sizes"),
    [
        (256, True, False, True, (1,)),
        (256, True, False, False, (1, 256)),
        (256, True, True, True, (1, 8, 32, 256)),
        (32, True, True, False, (1, 8, 32)),
        (256, False, True, False, (256,)),
    ],
)
def test_batches_to_warm_up_with(
    batch: int, partial: bool, compiled: bool, on_cpu: bool, sizes: tuple[int, ...]
) -> None:
    assert batch_sizes(batch, partial=partial, compiled=compiled, on_cpu=on_cpu) == sizes


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stands for torch.compile, whose compiler takes half a minute; remembers the sizes of batches that it ran."""
    ran: list[int] = []

    def stand_in(network: Callable[[Any], Any], **options: object) -> Callable[[Any], Any]:
        assert options == {"dynamic": False}

        def run(batch: Any) -> Any:
            ran.append(len(batch))
            return network(batch)

        return run

    monkeypatch.setattr(compiling.torch, "compile", stand_in)
    return ran


def test_a_compiled_teacher_fills_batches_up_and_drops_what_filled_them(quick_compiler: list[int]) -> None:
    plain, teacher = load(), load(compiled=True)
    warm_up(teacher, batch_images=16, partial=True, compiled=True, datasets=[])
    teacher.warm_up((1, 8, 16), size=(8, 8))
    quick_compiler.clear()
    sizes = {1: 1, 2: 8, 8: 8, 9: 16, 16: 16}
    for count in sizes:
        answers = teacher.answer(images(count))
        for name, expected in plain.answer(images(count)).items():
            np.testing.assert_allclose(answers[name], expected, rtol=1e-4, atol=1e-5)
    assert quick_compiler == list(sizes.values())
    # Shapes that it was not compiled for, and outputs besides, are answered without the compiler.
    quick_compiler.clear()
    assert len(teacher.answer(images(17))["logits"]) == 17
    assert len(teacher.answer(images(3, side=12))["logits"]) == 3
    assert len(teacher.answer(images(3), ["maps.0"])["maps.0"]) == 3
    assert quick_compiler == []


def test_a_network_of_one_batch_size_is_compiled_once(quick_compiler: list[int]) -> None:
    teacher = load(compiled=True)
    teacher._network = replace(teacher._network, batch=4)
    teacher.warm_up((1, 8), size=(8, 8))
    # Compiled, then one blank batch of 1 and two that hold 8.
    assert quick_compiler == [4] * (1 + 1 + 2)


def test_what_cannot_be_compiled_is_refused_before_it_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(_: object) -> None:
        raise RuntimeError("backend='inductor' raised:\nNo working C++ compiler found")

    monkeypatch.setattr(compiling.torch, "compile", lambda *_, **__: no_compiler)
    with pytest.raises(InputError, match=r"batches of 2 images .*C\+\+ compiler.* or leave out --compile") as caught:
        warm_up(load(compiled=True), batch_images=2, partial=False, compiled=True, datasets=[])
    assert "\n" not in str(caught.value)


@pytest.mark.soak
def test_a_really_compiled_teacher_answers_as_it_does_uncompiled() -> None:
    teacher = load(device="cpu,cpu", compiled=True)
    warm_up(teacher, batch_images=4, partial=True, compiled=True, datasets=[])
    expected = load().answer(images(3, side=32))
    for replica in replicas_of(teacher):
        for name, values in replica.answer(images(3, side=32)).items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.soak
def test_without_a_compiler_the_real_one_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("/nonexistent/g++",))
    with pytest.raises(InputError, match="a C\\+\\+ compiler such as g\\+\\+: install it, or leave out --compile"):
        warm_up(load(compiled=True), batch_images=3, partial=False, compiled=True, datasets=[])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_memory_that_was_freed_is_kept_unless_the_user_has_chosen() -> None:
    program = """
import ctypes, resource, sys
from shared.malloc import keep_freed_memory
assert keep_freed_memory(sys.argv[1:]) == (len(sys.argv) == 1)
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def touch():
    blocks = [libc.malloc(40_000_000) for _ in range(2)]
    for block in blocks: ctypes.memset(block, 1, 40_000_000)
    for block in blocks: libc.free(ctypes.c_void_p(block))
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

    def faults(*environment: str) -> int:
        command = [sys.executable, "-c", program, *environment]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults() < 100
    assert faults("PATH", "MALLOC_ARENA_MAX") > 10_000
    assert not keep_freed_memory(["LD_PRELOAD"])

"""What a training changes of torch's global state, and gives back: random generators and the number of threads."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_torch_state(*, threads: int | None, device: torch.device) -> Iterator[None]:
    """Give the caller's random generators and thread count back afterwards."""
    before = torch.get_num_threads()
    cuda = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        try:
            if threads is not None:
                torch.set_num_threads(threads)
            yield
        finally:
            torch.set_num_threads(before)


def seed_torch(seed: int, *, device: torch.device) -> None:
    """As `torch.manual_seed`, which without CUDA spends milliseconds on noting where it was called from."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)

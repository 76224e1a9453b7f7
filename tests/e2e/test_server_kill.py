"""A server under load is killed again and again: every client's history is held against the ledger and the disk.

The points are drawn from a seed: named places of a life and writes, syncs and renames of the ledger and of the Zarr
files (tests/faults/killed_server.py), moments from outside; some lives are asked to stop instead.
"""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from disk_faults import FaultyProcesses
from history_checks import broken_promises
from killed_server import KilledServer, draw_death

STORES = 24
LIVES = 11
"""Of each store in the long test: 264 points, of which some 230 are kills."""


def kill_again_and_again(server: KilledServer, *, seed: int, lives: int, again: str) -> None:
    """``again`` is the command line that repeats it."""
    chance = random.Random(seed)
    for life in range(1, lives + 1):
        server.live(life, death=draw_death(chance))
    server.live_to_the_end(lives + 1)
    history = server.history
    assert len(history.answered()) > lives, "the clients were hardly answered"
    broken = broken_promises(history)
    assert not broken, "\n".join([f"seed {seed}, again: {again}", *map(str, server.deaths), *broken[:20]])


@pytest.fixture
def killed_server(faulty: FaultyProcesses, make_images: Callable, memory_path: Path) -> Callable[[int], KilledServer]:
    """A cache in memory, of 24 pictures."""
    pictures = make_images(memory_path / "pictures", count=24)
    return lambda seed: KilledServer(memory_path, pictures=pictures, faulty=faulty, seed=seed)


def test_no_kill_under_load_breaks_a_promise(killed_server: Callable) -> None:
    again = "pytest tests/e2e/test_server_kill.py -k test_no_kill_under_load"
    kill_again_and_again(killed_server(2), seed=2, lives=6, again=again)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(100, 100 + STORES))
def test_no_kill_of_many_under_load_breaks_a_promise(killed_server: Callable, seed: int) -> None:
    again = f"pytest tests/e2e/test_server_kill.py -m soak -k 'of_many and {seed}'"
    kill_again_and_again(killed_server(seed), seed=seed, lives=LIVES, again=again)

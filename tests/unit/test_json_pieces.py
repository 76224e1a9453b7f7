"""Large answers: the same JSON as in one piece, while the loop goes on."""

import asyncio
from collections.abc import Callable
from time import perf_counter
from timeit import timeit
from typing import Any

import numpy as np
import pytest
from orjson import OPT_SERIALIZE_NUMPY, dumps

from teacher_server.beside import run_beside
from teacher_server.json_pieces import PIECE_NUMBERS, write_object
from teacher_server.oip_tensors import pack_answer
from teacher_server.replies import answer_reply

MANY = np.random.default_rng(0).standard_normal((2048, 1024), dtype=np.float32)


@pytest.mark.parametrize(
    "shape", [(0, 3), (2, 0), (1, 1), (300, 100), (3, PIECE_NUMBERS + 1), (2, 3, PIECE_NUMBERS), (2 * PIECE_NUMBERS,)]
)
def test_an_array_in_pieces_is_the_json_of_the_whole(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    text = bytearray()
    write_object(text, {"a": "b", "rows": [1, 2]}, {"x": array, "y": array})
    assert text == dumps({"a": "b", "rows": [1, 2], "x": array, "y": array}, option=OPT_SERIALIZE_NUMPY)


def as_answer() -> object:
    return answer_reply({"logits": MANY}, fields={"teacher": "x"}, teacher_calls=0, accept="")


def as_model() -> object:
    return pack_answer({"logits": MANY}, fields={"model_name": "x"}, binary=())


async def longest_wait_s(work: Callable[[], Any]) -> float:
    """How long the loop stood still while ``work`` was done beside it."""
    waits = [0.0]

    async def tick() -> None:
        before_s = perf_counter()
        while True:
            await asyncio.sleep(0.001)
            now_s = perf_counter()
            waits.append(now_s - before_s)
            before_s = now_s

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.005)
    await run_beside(MANY.nbytes, work)
    await asyncio.sleep(0.002)
    ticking.cancel()
    return max(waits)


@pytest.mark.parametrize("work", [as_answer, as_model])
def test_others_are_answered_while_a_large_answer_is_written(work: Callable[[], object]) -> None:
    at_once_s = min(timeit(lambda: dumps({"x": MANY}, option=OPT_SERIALIZE_NUMPY), number=1) for _ in range(3))
    # Other processes may make one attempt wait.
    assert min(asyncio.run(longest_wait_s(work)) for _ in range(3)) < at_once_s / 2

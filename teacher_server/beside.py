"""Work that would stop everyone else: done beside the loop where there is much of it, at once where there is little."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Result = TypeVar("Result")

LITTLE_BYTES = 128 * 2**10
"""Hashed or copied in about the time that a change of threads takes, 0.1 ms."""


async def run_beside(
    size_bytes: int, work: Callable[Given, Result], *given: Given.args, **named: Given.kwargs
) -> Result:
    """The result of ``work``, which takes time in proportion to ``size_bytes``."""
    if size_bytes <= LITTLE_BYTES:
        return work(*given, **named)
    return await asyncio.to_thread(work, *given, **named)

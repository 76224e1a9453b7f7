"""Who may begin a fill, and whose is next; no server, and a ledger that answers when it is told to."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from cache.payer import Payer
from shared.errors import DiskFullError, UnavailableError
from teacher_server.fill_turns import Turns
from teacher_server.fills import Fills
from teacher_server.settings import AnsweringSettings


class Ledger:
    """Says that nothing bounds a payer, once it may, or that it cannot tell."""

    def __init__(self) -> None:
        self.may_say = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self.trouble: DiskFullError | None = DiskFullError("no room")

    def remaining(self, *_: object, **__: object) -> None:
        asyncio.run_coroutine_threadsafe(self.may_say.wait(), self.loop).result()
        if self.trouble is not None:
            raise self.trouble


def fills_of(ledger: Ledger) -> Fills:
    answering: Any = SimpleNamespace(batches_under_way=3, died=asyncio.Event(), trouble=None)
    writer: Any = ledger
    return Fills(answering, writer=writer, settings=AnsweringSettings(), teacher="t", shared=True)


async def left() -> None:
    raise UnavailableError("the client left")


async def start(fills: Fills, owner: str) -> None:
    # Nothing but the payer: costing would fail on it.
    job: Any = SimpleNamespace(payer=Payer(owner, "default"))
    await fills.start(job, fill_id=None, check_wanted=left)


def test_those_that_are_costed_take_places_too_and_nothing_unbounded_is_costed() -> None:
    async def story() -> None:
        ledger = Ledger()
        fills = fills_of(ledger)
        begun = [asyncio.create_task(start(fills, owner)) for owner in ["ada"] * 8 + ["bob"] * 8]
        await asyncio.sleep(0)
        for owner in ("ada", "eve"):
            with pytest.raises(UnavailableError, match="waiting already"):
                await asyncio.wait_for(start(fills, owner), 5)
        ledger.may_say.set()
        ended = await asyncio.gather(*begun, return_exceptions=True)
        assert {type(error) for error in ended} == {DiskFullError}
        ledger.trouble = None
        async with fills._planning.turn("somebody"):
            with pytest.raises(UnavailableError, match="the client left"):
                await asyncio.wait_for(start(fills, "ada"), 5)

    asyncio.run(story())


def test_owners_take_turns_and_none_has_more_than_its_share() -> None:
    order: list[str] = []

    async def story() -> None:
        turns, go_on = Turns(2, share=1), asyncio.Event()

        async def work(name: str) -> None:
            async with turns.turn(name[0]):
                order.append(name)
                await go_on.wait()

        names = ("a1", "a2", "a3", "b1", "b2", "c1")
        tasks = {name: asyncio.create_task(work(name)) for name in names}
        await asyncio.sleep(0)
        assert order == ["a1", "b1"]
        tasks["a2"].cancel()
        go_on.set()
        await asyncio.gather(*tasks.values(), return_exceptions=True)

    asyncio.run(story())
    assert sorted(order) == ["a1", "a3", "b1", "b2", "c1"]
    assert order.index("c1") < order.index("b2")

"""One life of a server that answers until it is killed: ``teacher-server serve`` with a teacher that leaves traces.

The arguments: a JSON object (see `Plan`), then those of ``teacher-server``. Before the teacher computes, it appends a
line per image to a side file: when, which run and key owner pay, which key. Of one image it never says the same twice,
so that an answer that was computed again shows. The process kills itself at the n-th passage of one named place.
"""

import asyncio.selector_events
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import cache.folding
from cache.stage import Stage
from cache.writer import CacheWriter
from shared.fake_teacher import FakeTeacher
from shared.identity import pixel_key
from teacher_server.cli import main
from teacher_server.store import Store

Plan = dict[str, Any]
"""``side``: the side file. ``place``, ``at``: where to die, at which passage. ``forward_s``: the longest forward.
``fold_s``: seconds between folds. ``seed``."""

plan: Plan = json.loads(sys.argv.pop(1))
chance = random.Random(plan["seed"])
payers: dict[bytes, Any] = {}
"""Who pays for a key that is asked about."""
passages = {"left": plan["at"]}
lock = threading.Lock()


def is_last(place: str) -> bool:
    if place != plan["place"]:
        return False
    with lock:
        passages["left"] -= 1
        return bool(passages["left"] == 0)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def passing(place: str) -> None:
    if is_last(place):
        die()


def between(owner: Any, name: str, *, before: str = "", after: str = "") -> None:
    """Places on both sides of a function."""
    work = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        passing(before)
        result = work(*arguments, **named)
        passing(after)
        return result

    setattr(owner, name, wrapped)


def leave_traces() -> None:
    side = os.open(plan["side"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    answer = FakeTeacher.answer

    def answered(self: FakeTeacher, images: Any, outputs: Any = ()) -> Any:
        for image in images:
            key = pixel_key(image)
            os.write(side, f"{time.monotonic():.6f} {payers[key].run} {payers[key].owner} {key.hex()}\n".encode())
            passing("forward")
        time.sleep(chance.uniform(0, plan["forward_s"]))
        said = answer(self, images, outputs)
        for logits in said["logits"]:
            logits[0] = chance.randrange(2048)
        passing("answered")
        return said

    setattr(FakeTeacher, "answer", answered)  # noqa: B010 - mypy refuses to assign to a method


def remember_payers() -> None:
    claim = Store.claim

    async def claimed(self: Store, cache: Any, *, payer: Any, keys: list[bytes]) -> Any:
        payers.update(dict.fromkeys(keys, payer))
        return await claim(self, cache, payer=payer, keys=keys)

    setattr(Store, "claim", claimed)  # noqa: B010 - as above


def fold_often() -> None:
    opened: Callable[..., CacheWriter] = CacheWriter.open

    def fold(writer: CacheWriter) -> None:
        try:
            while True:
                time.sleep(plan["fold_s"])
                writer.fold()
        except Exception:
            # It was closed.
            return

    def open_and_fold(path: Any) -> CacheWriter:
        writer = opened(path)
        threading.Thread(target=fold, args=(writer,), daemon=True).start()
        return writer

    setattr(CacheWriter, "open", open_and_fold)  # noqa: B010 - as above


def tear_replies() -> None:
    transport: Any = asyncio.selector_events._SelectorSocketTransport  # type: ignore[attr-defined]
    write = transport.write

    def torn(self: Any, data: Any) -> None:
        if is_last("replying"):
            self._sock.send(bytes(data)[: len(data) // 2])
            die()
        write(self, data)

    transport.write = torn


if __name__ == "__main__":
    between(CacheWriter, "reserve_all", after="reserved")
    between(Stage, "write", after="committing")
    between(CacheWriter, "commit_all", after="committed")
    between(CacheWriter, "alias", after="aliased")
    between(CacheWriter, "set_budget", after="budget")
    between(cache.folding, "fold_block", before="folding", after="folded")
    leave_traces()
    remember_payers()
    fold_often()
    tear_replies()
    print(f"pid {os.getpid()}", flush=True)
    main()

"""One life of a writer: opens a cache, commits batches of several sizes, folds now and then, closes.

Arguments: the cache's folder, a number that no other life has, a seed, and maybe words: ``leave`` ends without folding
anything, as one that was killed after its last batch; ``small`` keeps to small batches. It prints ``open``,
``ack NUMBER ROW...`` once rows are acknowledged, and ``closed``. Every row divisible by 7 shows the pixels of the row
before it.
"""

import os
import random
import sys
from hashlib import sha256

import numpy as np

from cache.handle import CacheHandle
from cache.writer import CacheWriter
from shared.descriptions import DatasetDescription, TeacherDescription

TEACHER = TeacherDescription(
    id="fake-000000000000", arch="fake", weights="", preprocessing={}, precision="float32", classes=4, features=2
)
DATASET = DatasetDescription(
    name="toy/train", rows=400_000, classes=("a", "b", "c", "d"), fingerprint="f", view_policy="crop1"
)
BATCHES = 10
SIZES = (1, 3, 16, 800)


def picture(row: int) -> int:
    return row - 1 if row % 7 == 0 and row else row


def commit(writer: CacheWriter, cache: CacheHandle, rows: list[int], *, number: int) -> None:
    fresh: dict[bytes, list[int]] = {}
    known = []
    for row in rows:
        key = sha256(str(picture(row)).encode()).digest()
        place = writer.find(TEACHER.id, key)
        if place is None:
            fresh.setdefault(key, []).append(row)
        else:
            known.append((row, 0, row % 4, place))
    if known:
        writer.alias(cache, run="default", items=known)
        print("ack", "known", *(row for row, *_ in known), flush=True)
    if not fresh:
        return
    reservation = writer.reserve(run="default", cache=cache, calls=len(fresh))
    firsts = [group[0] for group in fresh.values()]
    said = np.array([[picture(row) % 2048, number, row // 2048, 2] for row in firsts], dtype=np.float32)
    writer.commit(
        cache,
        run="default",
        reservation=reservation,
        keys=np.frombuffer(b"".join(fresh), dtype=np.uint8).reshape(-1, 32),
        rows=firsts,
        views=[0] * len(firsts),
        labels=[row % 4 for row in firsts],
        outputs={"logits": said, "features": said[:, :2]},
        aliases=[(row, 0, row % 4, at) for at, group in enumerate(fresh.values()) for row in group[1:]],
    )
    print("ack", number, *(row for group in fresh.values() for row in group), flush=True)


def main() -> None:
    path, number, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    leave = "leave" in sys.argv[4:]
    sizes = SIZES[:-1] if "small" in sys.argv[4:] else SIZES
    chance = random.Random(seed)
    with CacheWriter.open(path) as writer:
        cache = writer.open_cache(TEACHER, DATASET)
        print("open", flush=True)
        missing = np.flatnonzero(~cache.present()).tolist()
        for _ in range(BATCHES):
            size = chance.choice(sizes)
            rows, missing = missing[:size], missing[size:]
            commit(writer, cache, rows, number=number)
            if not leave and chance.random() < 0.3:
                writer.fold()
        if leave:
            os._exit(0)
    print("closed", flush=True)


if __name__ == "__main__":
    main()

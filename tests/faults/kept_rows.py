"""What must be true of a cache that commit_rows.py wrote, however often it died or its disk failed."""

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import commit_rows
import numpy as np
import zarr
from commit_rows import DATASET, SIZES, TEACHER, picture
from disk_faults import Outcome

from cache.reader import CacheReader
from cache.verify import find_damage
from cache.writer import CacheWriter

COMMIT_ROWS = Path(commit_rows.__file__).read_text()


@dataclass
class Told:
    """What the processes said before they died."""

    acknowledged: set[int] = field(default_factory=set)
    numbers: dict[int, int] = field(default_factory=dict)
    """Row -> the life that paid for it."""
    ends: int = 0
    """Processes that did not end well."""

    def hear(self, outcome: Outcome) -> None:
        self.ends += outcome.code != 0
        for line in outcome.out.splitlines():
            kind, *words = line.split()
            if kind == "ack":
                rows = [int(word) for word in words[1:]]
                self.acknowledged |= set(rows)
                if words[0] != "known":
                    self.numbers |= dict.fromkeys(rows, int(words[0]))


def check_store(path: Path, *, told: Told) -> None:
    check_torn(path)
    with CacheWriter.open(path) as writer:
        cache = writer.open_cache(TEACHER, DATASET)
        present = set(np.flatnonzero(cache.present()).tolist())
        assert told.acknowledged <= present
        assert cache.num_slots == len(present), "a row was kept twice"
        counts = writer.ledger_counts()
        distinct = {picture(row) for row in present}
        assert counts["teacher_calls"] == counts["runs"]["default"]["charged"] == len(distinct)
        assert 0 <= counts["attempts"] - counts["teacher_calls"] <= told.ends * max(SIZES)
    assert not list(path.rglob("*.partial"))
    assert not list(find_damage(path))
    group = zarr.open_group(str(cache.folder), mode="r")
    arrays: dict[str, Any] = {name: array[:] for name, array in group.members()}
    assert {len(array) for array in arrays.values()} == {len(present)}
    rows = arrays["rows"].tolist()
    assert arrays["logits"][:, 0].tolist() == [picture(row) % 2048 for row in rows]
    assert [bytes(key) for key in arrays["keys"]] == [sha256(str(picture(row)).encode()).digest() for row in rows]
    kept = dict(zip(rows, arrays["logits"][:, 1].tolist(), strict=True))
    assert {row: kept[row] for row in told.numbers} == told.numbers, "an acknowledged answer was computed again"
    with CacheReader.open(path) as reader:
        answers = reader.gather(sorted(present))["logits"]
    said: dict[int, bytes] = {}
    for row, answer in zip(sorted(present), answers, strict=True):
        assert said.setdefault(picture(row), answer.tobytes()) == answer.tobytes()


def check_torn(path: Path) -> None:
    """Before anybody recovers: what a reader without the ledger sees is whole, every slot its own."""
    if not list(path.glob("data.zarr/*/*/*/zarr.json")):
        return
    assert not list(find_damage(path)), "what a crash leaves is no damage"
    with CacheReader.open(path) as reader:
        slots = np.arange(reader.num_slots)
        rows, _ = reader.rows_and_views(slots)
        assert len(set(rows.tolist())) == len(rows)
        logits = reader.gather(rows)["logits"] if len(rows) else np.zeros((0, 4))
        assert logits[:, 0].tolist() == [picture(row) % 2048 for row in rows.tolist()]
        keys = [sha256(str(picture(row)).encode()).digest() for row in rows.tolist()]
        assert [bytes(key) for key in reader.slot_keys(slots)] == keys

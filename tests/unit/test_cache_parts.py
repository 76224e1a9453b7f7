"""The small parts of a cache: indices, chunk sizes, checksums, locks, atomic files.

Shape key: B rows asked for, n keys.
"""

import json
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import key_index, layout, slot_index
from cache.arrays import ChunkwiseArray, open_own_array
from cache.atomic_file import read_json, write_atomic, write_json
from cache.checksum import add_segment, check_segments, drop_segments, read_segments
from cache.fold import write_chunks
from cache.key_index import KeyIndex
from cache.layout import ArraySpec, dataset_folder, output_specs
from cache.ledger import Ledger
from cache.ledger_schema import SLOT_BITS
from cache.lock import WriterLock
from cache.payer import Payer
from cache.slot_index import SlotIndex
from shared.errors import CacheLockedError, CorruptCacheError, DiskFullError, InputError, UnknownNameError

ROWS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), unique=True, max_size=60)


@settings(max_examples=60, deadline=None)
@given(
    pairs=ROWS,
    loaded=st.integers(0, 60),
    merge_at=st.integers(1, 5),
    piece=st.integers(1, 70),
    table_from=st.sampled_from([0, 2, 8, 1000]),
)
def test_a_slot_index_agrees_with_a_dictionary(
    pairs: list[tuple[int, int]], *, loaded: int, merge_at: int, piece: int, table_from: int
) -> None:
    """With tables for no view but 0, for some, and for all."""
    index = SlotIndex(num_rows=31)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slot_index, "MERGE_AT", merge_at)
        patch.setattr(slot_index, "PIECE", piece)
        patch.setattr(slot_index, "TABLE_FROM", table_from)
        rows = np.array(pairs, dtype=np.int64).reshape(-1, 2)[:loaded]
        index.extend(rows[:, 0], rows[:, 1], first_slot=0)
        for slot, (row, view) in enumerate(pairs[loaded:], start=len(rows)):
            index.add(row, view, slot=slot)
    truth = {pair: slot for slot, pair in enumerate(pairs)}
    asked = [(row, view) for row in range(31) for view in range(5)]
    expected = [truth.get(pair, -1) for pair in asked]
    assert [index.slot_of(*pair) for pair in asked] == [truth.get(pair) for pair in asked]
    rows_B, views_B = np.array(asked, dtype=np.int64).T
    assert index.slots_of(rows_B, view=views_B).tolist() == expected
    for view in range(5):
        present = sorted(row for row, of_view in pairs if of_view == view)
        assert index.rows_of(view).tolist() == present
        assert index.counts().get(view, 0) == len(present)
        one = index.slots_of(np.arange(31), view=view)
        assert one.tolist() == [truth.get((row, view), -1) for row in range(31)]


def test_of_two_slots_of_one_row_the_first_counts() -> None:
    # The last needs more bits than one number has.
    for row, view in ((3, 0), (3, 2), ((1 << 39) - 1, 2), ((1 << 39) - 1, (1 << 22) - 1)):
        index = SlotIndex(num_rows=0)
        index.extend(np.array([row, 1, row]), np.array([view] * 3), first_slot=0)
        index.extend(np.array([row]), np.array([view]), first_slot=3)
        assert index.slot_of(row, view) == 0
        assert index.counts() == {view: 2}


def test_an_index_of_many_sparse_views_is_small() -> None:
    """3 % of a million rows under each of 40 views, in no order."""
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.choice(10**6, 30_000, replace=False) for _ in range(40)])
    views = np.repeat(np.arange(1, 41), 30_000)
    order = rng.permutation(len(rows))
    rows, views = rows[order], views[order]
    tracemalloc.start()
    index = SlotIndex(num_rows=10**6)
    index.extend(rows, views, first_slot=0)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 4 * 10**6 + 13 * len(rows)
    assert peak < 2 * 4 * 10**6 + 60 * len(rows)
    asked = rng.permutation(len(rows))[:1000]
    np.testing.assert_array_equal(index.slots_of(rows[asked], view=views[asked]), asked)


def test_uploads_grow_a_slot_index() -> None:
    index = SlotIndex(num_rows=0)
    for row in range(100):
        index.add(row, 0, slot=row)
    assert index.num_rows == 100
    assert index.slot_of(99, 0) == 99
    assert index.slot_of(100, 0) is None


def test_a_key_index_tells_keys_with_a_common_beginning_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_index, "MERGE_AT", 7)
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 256, (300, 32), dtype=np.uint8)
    keys[:, :8] %= 2
    keys[:50, :8] = 255
    # Two caches in turn, as places are numbered.
    numbers = [((at // 30 % 2) << SLOT_BITS) + at for at in range(300)]
    known = {number: keys[at].tobytes() for at, number in enumerate(numbers)}
    index = KeyIndex(known.__getitem__)
    index.extend(keys[:100], base=7 << SLOT_BITS, first_slot=0, without=range(100))
    for at, number in enumerate(numbers):
        index.add(keys[at].tobytes(), number)
    assert [index.get(key.tobytes()) for key in keys] == numbers
    assert index.get(bytes([255] * 32)) is None
    assert len(index) == 300


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_keys_learned_at_once_are_found_but_for_those_left_out(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(key_index, "PIECE", piece)
    keys = np.random.default_rng(0).integers(0, 2, (30, 32), dtype=np.uint8)
    index = KeyIndex(lambda number: keys[number - (3 << SLOT_BITS) - 40].tobytes())
    index.extend(keys, base=3 << SLOT_BITS, first_slot=40, without={41, 60})
    found = [index.get(key.tobytes()) for key in keys]
    assert found == [None if at in (1, 20) else (3 << SLOT_BITS) + 40 + at for at in range(30)]


@pytest.mark.parametrize(
    ("width", "chunk_slots"),
    [(1, 8192), (1000, 8192), (4096, 8192), (4097, 4096), (64 * 56 * 56, 128), (2**26, 1)],
)
def test_chunks_are_powers_of_two_within_64_mebibytes(width: int, chunk_slots: int) -> None:
    spec = ArraySpec(name="maps.1", dtype="float16", shape=(width,))
    assert spec.chunk_slots == chunk_slots
    assert chunk_slots == 1 or spec.chunk_bytes <= 64 * 2**20


@pytest.mark.parametrize("max_chunk_bytes", [2**26, 2**12])
def test_what_was_written_in_chunks_is_read_by_slots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_chunk_bytes: int
) -> None:
    """With the small limit a block has several chunks, and none of them is a whole number of pages."""
    monkeypatch.setattr(layout, "MAX_CHUNK_BYTES", max_chunk_bytes)
    spec = ArraySpec(name="features", dtype="float16", shape=(3,))
    count = 9000
    values = np.random.default_rng(0).standard_normal((count, 3)).astype(np.float16)
    for start in range(0, count, 8192):
        write_chunks(tmp_path, spec=spec, block=values[start : start + 8192], start=start, first=start)
    array = open_own_array(tmp_path, spec=spec, slots=count)
    assert isinstance(array, ChunkwiseArray) == (max_chunk_bytes == 2**12)
    slots = np.random.default_rng(1).integers(0, count, 100)
    out = np.empty((100, 3), dtype=np.float16)
    array.take(slots, out=out)
    np.testing.assert_array_equal(out, values[slots])
    np.testing.assert_array_equal(array.head(count), values)
    assert not array.head(count).flags.writeable or isinstance(array, ChunkwiseArray)


def test_checksums_cover_what_was_folded_and_nothing_else(tmp_path: Path) -> None:
    values = np.arange(30, dtype=np.int64)
    add_segment(tmp_path, first=0, values=values[:10])
    add_segment(tmp_path, first=10, values=values[10:25])
    # An interrupted fold left the second segment behind; the fold is done again, further.
    add_segment(tmp_path, first=10, values=values[10:30])
    assert [(segment.first, segment.end) for segment in read_segments(tmp_path)] == [(0, 10), (10, 30)]
    check_segments(tmp_path, first=0, values=values)
    check_segments(tmp_path, first=10, values=values[10:])
    changed = values.copy()
    changed[12] += 1
    with pytest.raises(CorruptCacheError, match="slots 10 to 29"):
        check_segments(tmp_path, first=0, values=changed)
    drop_segments(tmp_path, beyond=10)
    with pytest.raises(CorruptCacheError, match="no checksum for slots 10 to 29"):
        check_segments(tmp_path, first=0, values=values)


def test_a_crc32c_is_the_published_one(tmp_path: Path) -> None:
    """RFC 3720, B.4: 32 bytes of zeros."""
    add_segment(tmp_path, first=0, values=np.zeros(32, dtype=np.uint8))
    assert read_segments(tmp_path)[0].crc32c == 0x8A9136AA


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "document.json"
    write_json(path, {"a": 1})
    stamp = path.stat().st_mtime_ns
    write_json(path, {"a": 1})
    assert path.stat().st_mtime_ns == stamp

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(DiskFullError, match="make room"):
        write_atomic(path, [b"new"])
    assert json.loads(path.read_bytes()) == {"a": 1}


def test_a_damaged_document_is_named(tmp_path: Path) -> None:
    for text in ("{", "[]"):
        (tmp_path / "zarr.json").write_text(text)
        with pytest.raises(CorruptCacheError, match=r"zarr\.json"):
            read_json(tmp_path / "zarr.json")


def test_names_that_are_no_folders_are_refused(tmp_path: Path) -> None:
    for teacher in ("../escape", "a/b", "", ".hidden", "newline\n"):
        with pytest.raises(InputError, match="cannot be a folder"):
            dataset_folder(tmp_path, teacher=teacher, dataset="a/b")
    for dataset in ("a", "a/../b", "A/b", "a/b/c"):
        with pytest.raises(UnknownNameError):
            dataset_folder(tmp_path, teacher="t", dataset=dataset)


def test_outputs_that_cannot_be_kept_are_refused() -> None:
    with pytest.raises(InputError, match="float16, float32"):
        output_specs({"logits": "int4"}, classes=3, features=2)
    with pytest.raises(InputError, match="keeps logits"):
        output_specs({"features": "float16"}, classes=3, features=2)
    first, second = output_specs({"features": "float16", "logits": "float32"}, classes=3, features=2)
    assert (first.name, first.dtype, second.shape) == ("logits", "float32", (2,))
    assert replace(first, dtype="float16").slot_bytes == 6


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib, cache.lock;"
        "lock = cache.lock.WriterLock(pathlib.Path(sys.argv[1])); print(1, flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == "1\n"
    with pytest.raises(CacheLockedError, match=f"process {holder.pid} "):
        WriterLock(tmp_path)
    holder.kill()
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()
    WriterLock(tmp_path).release()


PAYER = Payer("local", "default")


def test_charges_add_up_over_transactions(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for number in range(3):
        with ledger.transaction():
            ledger.charges.stage(PAYER, [number, 10_000 + number])
        ledger.charges.note(PAYER, [20 + number, number])
        assert ledger.charges.charged("default") == 3 * (number + 1)
    ledger.close()
    again = Ledger(tmp_path)
    assert again.charges.charged("default") == 9
    again.close()


def test_charges_of_a_transaction_that_failed_are_forgotten(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.charges.note(PAYER, [3])
    with pytest.raises(KeyboardInterrupt), ledger.transaction():
        ledger.charges.stage(PAYER, [1, 2, 3])
        raise KeyboardInterrupt
    assert ledger.charges.charged("default") == 1
    with ledger.transaction():
        ledger.charges.stage(PAYER, [5])
    assert ledger.charges.charged("default") == 2
    ledger.close()
    again = Ledger(tmp_path)
    assert again.charges.charged("default") == 2
    again.close()

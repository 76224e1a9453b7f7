"""The command `logit-cache`, as a process, beside a writer and without one; and what imports cost."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cache.checksum import add_segment
from cache.info import describe_cache
from cache.reader import CacheReader
from cache.verify import find_damage
from cache.writer import CacheWriter
from cache.zarr_documents import group_document
from shared.descriptions import DatasetDescription, TeacherDescription
from shared.errors import CorruptCacheError


def logit_cache(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from cache.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[CacheWriter]:
    """A writer that is still open: 3 answers in Zarr, 2 more in the journal, 1 attempt that brought nothing."""
    teacher = TeacherDescription(
        id="fake-000000000000", arch="fake", weights="", preprocessing={}, precision="float32", classes=4, features=2
    )
    dataset = DatasetDescription(
        name="toy/train", rows=10, classes=("a", "b", "c", "d"), fingerprint="f", view_policy="crop1"
    )
    with CacheWriter.open(tmp_path / "store") as writer:
        cache = writer.open_cache(teacher, dataset)
        writer.ensure_run("study", 50)
        for rows, view, calls in (([0, 1, 2], 0, 3), ([5, 6], 4, 3)):
            reservation = writer.reserve(run="study", cache=cache, calls=calls)
            writer.commit(
                cache,
                run="study",
                reservation=reservation,
                keys=np.array([[row] * 32 for row in rows], dtype=np.uint8),
                rows=rows,
                views=[view] * len(rows),
                labels=[0] * len(rows),
                outputs={"logits": np.ones((len(rows), 4)), "features": np.ones((len(rows), 2))},
            )
            if view == 0:
                writer.fold()
        yield writer


def expected(size: int, cache_size: int, *, slots: int, present: dict[str, int], attempts: int, calls: int) -> object:
    return {
        "format": 1,
        "bytes": size,
        "attempts": attempts,
        "teacher_calls": calls,
        "budgets": {
            "default": {"budget": None, "attempts": 0, "teacher_calls": 0, "charged": 0},
            "study": {"budget": 50, "attempts": attempts, "teacher_calls": calls, "charged": calls},
        },
        "caches": [
            {
                "teacher": "fake-000000000000",
                "dataset": "toy/train",
                "rows": 10,
                "classes": 4,
                "view_policy": "crop1",
                "slots": slots,
                "folded": 3,
                "present": present,
                "outputs": {
                    "logits": {"dtype": "float16", "shape": [4]},
                    "features": {"dtype": "float16", "shape": [2]},
                },
                "attempts": attempts,
                "teacher_calls": calls,
                "bytes": cache_size,
            }
        ],
    }


def sizes(described: dict) -> tuple[int, int]:
    return described["bytes"], described["caches"][0]["bytes"]


def test_info_shows_what_is_committed_while_the_writer_runs(writer: CacheWriter) -> None:
    done = logit_cache("info", "--json", writer.path)
    assert done.returncode == 0, done.stderr
    described = json.loads(done.stdout)
    assert described == expected(*sizes(described), slots=5, present={"0": 3, "4": 2}, attempts=6, calls=5)
    assert described["caches"][0]["bytes"] > 8192 * (4 + 2) * 2
    assert writer.info()["caches"] == described["caches"]


def test_info_works_without_the_ledger_and_writes_nothing(writer: CacheWriter, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(writer.path / "data.zarr", copy / "data.zarr")
    before = sorted(copy.rglob("*"))
    described = json.loads(logit_cache("info", "--json", copy).stdout)
    assert described == expected(*sizes(described), slots=3, present={"0": 3}, attempts=3, calls=3)
    assert sorted(copy.rglob("*")) == before


def test_info_of_a_closed_cache_writes_nothing(writer: CacheWriter) -> None:
    writer.close()
    before = {file: file.stat().st_mtime_ns for file in writer.path.rglob("*")}
    described = json.loads(logit_cache("info", "--json", writer.path).stdout)
    assert (described["attempts"], described["caches"][0]["folded"]) == (6, 5)
    assert {file: file.stat().st_mtime_ns for file in writer.path.rglob("*")} == before


def test_people_get_tables_and_lines(writer: CacheWriter) -> None:
    shown = logit_cache("info", writer.path).stdout
    for part in ("fake-000000000000", "toy/train", "0: 3/10, 4: 2/10", "study", "50"):
        assert part in shown
    listed = logit_cache("ls", writer.path).stdout
    assert listed.startswith("fake-000000000000  toy/train  5 answers")
    assert listed.count("\n") == 1


def test_a_wrong_path_and_a_locked_cache_have_their_exit_codes(writer: CacheWriter, tmp_path: Path) -> None:
    done = logit_cache("info", tmp_path / "nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "is not a cache" in done.stderr
    assert done.stderr.count("\n") == 1
    done = logit_cache("fold", writer.path)
    assert done.returncode == 4
    assert "is being written by process" in done.stderr
    writer.close()
    assert logit_cache("fold", writer.path).returncode == 0


def test_verify_finds_a_flipped_bit_wherever_it_is(writer: CacheWriter) -> None:
    writer.close()
    assert logit_cache("verify", writer.path).returncode == 0
    group = writer.path / "data.zarr" / "fake-000000000000" / "toy" / "train"
    for name in ("keys", "logits"):
        chunk = next((group / name).glob("c.*"))
        data = bytearray(chunk.read_bytes())
        data[1] ^= 4
        chunk.write_bytes(data)
    done = logit_cache("verify", writer.path)
    assert done.returncode == 5
    assert [("keys" in line, "logits" in line) for line in done.stdout.splitlines()] == [(False, True), (True, False)]
    assert "2 findings" in done.stderr


@pytest.mark.parametrize("damage", ["not a database", "cut short", "empty", "scrambled"])
def test_a_damaged_ledger_is_an_error_everywhere_and_never_a_new_one(writer: CacheWriter, damage: str) -> None:
    writer.close()
    ledger = writer.path / "ledger.sqlite3"
    data = ledger.read_bytes()
    scrambled = data[:4096] + bytes(byte ^ 0x5A for byte in data[4096:])
    ledger.write_bytes(
        {"not a database": b"x" * len(data), "cut short": data[: len(data) // 2], "empty": b"", "scrambled": scrambled}[
            damage
        ]
    )
    damaged = ledger.read_bytes()
    for work in (
        lambda: describe_cache(writer.path),
        lambda: CacheReader.open(writer.path, journal=True),
        lambda: CacheWriter.open(writer.path),
    ):
        with pytest.raises(CorruptCacheError, match=r"ledger\.sqlite3 is (damaged|empty)") as caught:
            work()
        assert caught.value.exit_code == 5
    assert [line for line in find_damage(writer.path) if "ledger.sqlite3" in line]
    assert ledger.read_bytes() == damaged
    with CacheReader.open(writer.path) as reader:
        assert reader.num_slots == 5


def test_verify_compares_lengths_values_and_ledger(writer: CacheWriter) -> None:
    writer.close()
    group = writer.path / "data.zarr" / "fake-000000000000" / "toy" / "train"
    logits = np.fromfile(group / "logits" / "c.0.0", dtype="<f2").reshape(-1, 4)
    logits[4, 1] = np.nan
    logits.tofile(group / "logits" / "c.0.0")
    add_segment(group / "logits", first=3, values=logits[3:5])
    (finding,) = find_damage(writer.path)
    assert "not finite in slots 0 to 4" in finding
    document = group / "rows" / "zarr.json"
    document.write_text(document.read_text().replace("    5\n", "    3\n", 1))
    findings = list(find_damage(writer.path))
    assert [part for line in findings for part in ("3 slots, its group says 5", "up to 4, but only 3") if part in line]
    assert len(findings) == 3
    attributes = group / "zarr.json"
    document = json.loads(attributes.read_text())["attributes"] | {"slots": 6}
    attributes.write_text(json.dumps(group_document(document)))
    assert [line for line in find_damage(writer.path) if "says 6 slots" in line]


def test_verify_misses_a_cache_whose_zarr_group_is_gone(writer: CacheWriter) -> None:
    writer.close()
    (writer.path / "data.zarr" / "fake-000000000000" / "toy" / "train" / "zarr.json").unlink()
    assert [line for line in find_damage(writer.path) if "toy/train" in line]


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("cache.writer", {"torch", "zarr", "typer", "rich", "sklearn"}),
        ("cache.reader", {"torch", "zarr", "typer", "rich", "sklearn"}),
        ("cache.cli", {"torch", "zarr"}),
    ],
)
def test_importing_a_cache_module_stays_light(module: str, forbidden: set[str]) -> None:
    script = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert not forbidden & set(done.stdout.split())

"""`logit-cache repair`, `backup`, `rm`, `export`, `import` and `merge`, as processes, on real caches."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet
import pytest
import toy_cache
from safetensors.numpy import load_file
from toy_cache import (
    BLOCK,
    OTHER,
    TEACHER,
    ask,
    check_answers,
    costs,
    flip,
    group_of,
    keys_of,
    logit_cache,
    refused,
    said,
    succeed,
)

from cache.info import describe_cache
from cache.reader import CacheReader
from cache.repair import repair_cache
from cache.writer import CacheWriter
from shared.datasets.spec import open_dataset
from shared.errors import MissingRowsError
from shared.fake_teacher import FakeTeacher


@pytest.fixture(scope="module")
def two_blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """17,000 answers: two whole blocks and a tail; copied by tests, never changed."""
    path = tmp_path_factory.mktemp("cache") / "store"
    ask(path, range(17_000), budget=20_000)
    return path


@pytest.fixture
def store(two_blocks: Path, tmp_path: Path) -> Path:
    """A copy of `two_blocks`."""
    shutil.copytree(two_blocks, tmp_path / "store")
    return tmp_path / "store"


# repair


def test_repair_takes_out_the_damaged_block_keeps_it_aside_and_forgets_no_call(store: Path) -> None:
    flip(group_of(store) / "logits" / "c.1.0")
    assert logit_cache("verify", store).returncode == 5
    shown = succeed("repair", store)
    assert "8192 answers lost, 8808 kept" in shown
    assert "lost: rows 8192 view 0, 8193 view 0" in shown
    check_answers(store, [*range(BLOCK), *range(2 * BLOCK, 17_000)])
    with CacheReader.open(store) as reader, pytest.raises(MissingRowsError):
        reader.gather([0, BLOCK])
    assert costs(store) == (17_000, 17_000, 17_000)
    (kept,) = (store / "quarantine").glob("*/*/*/*/logits/c.1.0")
    assert np.fromfile(kept, dtype="<f2").reshape(-1, 4)[1].tolist() == [8193 % 2048, 4, 0, 3]
    assert "nothing to repair" in succeed("repair", store)
    # Asked again, it is called again and charged again.
    ask(store, range(BLOCK, BLOCK + 100))
    assert costs(store) == (17_100, 17_100, 17_100)
    check_answers(store, [*range(BLOCK + 100), *range(2 * BLOCK, 17_000)])


@pytest.mark.parametrize("damage", ["short", "gone", "key", "checksums"])
def test_repair_copes_with_files_that_are_short_gone_or_without_checksums(store: Path, damage: str) -> None:
    folder = group_of(store)
    if damage == "short":
        os.truncate(folder / "features" / "c.2.0", 1000)
    elif damage == "gone":
        (folder / "labels" / "c.2").unlink()
    elif damage == "key":
        flip(folder / "keys" / "c.2.0")
    else:
        (folder / "rows" / "crc32c.json").write_text("{}")
    if damage == "checksums":
        assert "0 answers lost, 17000 kept" in succeed("repair", "--keep-unchecked", store)
        check_answers(store, range(17_000))
    else:
        assert "616 answers lost, 16384 kept" in succeed("repair", store)
        check_answers(store, range(2 * BLOCK))
    ask(store, range(17_000, 17_010))
    assert logit_cache("verify", store).returncode == 0


def test_repair_writes_documents_anew_and_loses_nothing(store: Path) -> None:
    (group_of(store) / "zarr.json").write_text("{")
    (group_of(store) / "rows" / "zarr.json").unlink()
    assert logit_cache("verify", store).returncode == 5
    shown = succeed("repair", store)
    assert "0 answers lost, 17000 kept" in shown
    assert shown.count("written anew") == 2
    check_answers(store, range(17_000))


def test_repair_refuses_what_it_cannot_mend(store: Path, tmp_path: Path) -> None:
    assert "is not a cache" in refused("verify", tmp_path / "nowhere")
    assert "no ledger" in refused("repair", tmp_path / "nowhere")
    with CacheWriter.open(store):
        assert "is being written by process" in refused("repair", store, code=4)
        assert "is being written by process" in refused("rm", store, TEACHER.id, "--yes", code=4)
    ledger = store / "ledger.sqlite3"
    ledger.write_bytes(ledger.read_bytes()[:4096] + os.urandom(8192))
    assert "restore it from a" in refused("repair", store, code=5)


def test_repair_leaves_what_the_journal_holds(tmp_path: Path) -> None:
    """A server that was killed: 100 answers in Zarr, 50 in the journal only."""
    path = tmp_path / "store"
    ask(path, range(100))
    script = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from toy_cache import CacheWriter, TEACHER, TRAIN, commit
writer = CacheWriter.open(sys.argv[1])
commit(writer, writer.open_cache(TEACHER, TRAIN), range(100, 150), run="study")
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script, str(path), str(Path(toy_cache.__file__).parent)], timeout=60)
    assert done.returncode == -signal.SIGKILL
    flip(group_of(path) / "logits" / "c.0.0")
    assert "100 answers lost, 0 kept" in succeed("repair", path)
    succeed("fold", path)
    check_answers(path, range(100, 150))
    assert costs(path) == (150, 150, 150)


@pytest.mark.timeout(300)
def test_a_repair_killed_anywhere_loses_nothing_that_is_sound(store: Path, tmp_path: Path) -> None:
    flip(group_of(store) / "logits" / "c.1.0")
    outcomes = []
    for kill_at in (30, 90, 110, 120, 128, 136, 144, 1000):
        path = tmp_path / f"store{kill_at}"
        shutil.copytree(store, path)
        outcomes.append(logit_cache("repair", path, kill_at=kill_at).returncode)
        assert costs(path) == (17_000, 17_000, 17_000)
        repair_cache(path)
        check_answers(path, [*range(BLOCK), *range(2 * BLOCK, 17_000)])
        assert costs(path) == (17_000, 17_000, 17_000)
        assert len(list((path / "quarantine").glob("*/*/*/*/logits/c.1.0"))) == 1
        assert not (path / "staging").exists()
    assert outcomes == [*[-signal.SIGKILL] * 7, 0]


# rm


def test_what_is_removed_stays_counted_and_its_budget_does_not_come_back(
    tmp_path: Path, run_server_command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    path = tmp_path / "store"
    fill = ["fill", "--teacher", "fake:10", "--dataset", "digits/train", "--cache", str(path), "--sample", "40"]
    assert run_server_command(*fill, "--budget", "50").returncode == 0
    (entry,) = describe_cache(path)["caches"]
    assert "say --yes" in refused("rm", path, entry["teacher"])
    assert "it has fake-" in refused("rm", path, "wrn_40_2", "--yes")
    assert "40 teacher calls stay counted" in succeed("rm", path, f"{entry['teacher']}/digits/train", "--yes")
    described = describe_cache(path)
    assert (described["attempts"], described["teacher_calls"], described["caches"]) == (40, 40, [])
    assert not list((path / "data.zarr").glob("*/"))
    done = run_server_command(*fill, "--budget", "50")
    assert done.returncode == 3, done.stderr
    assert run_server_command(*fill, "--budget", "80").returncode == 0
    counts = describe_cache(path)["budgets"]["default"]
    assert counts == {"budget": 80, "attempts": 80, "teacher_calls": 80, "charged": 80}
    assert [entry["teacher_calls"] for entry in describe_cache(path)["caches"]] == [40]


def test_an_answer_that_another_data_set_shares_survives_its_first_owner(tmp_path: Path) -> None:
    path = tmp_path / "store"
    ask(path, range(100))
    # The same pixels, in another data set: no call.
    ask(path, range(50, 120), dataset=OTHER)
    assert costs(path) == (120, 120, 120)
    succeed("rm", path, f"{TEACHER.id}/toy/train", "--yes")
    check_answers(path, range(50, 120), dataset=OTHER)
    ask(path, range(50, 130), dataset=OTHER)
    assert costs(path) == (130, 130, 130)
    ask(path, range(100), run="second")
    # 50 were gone and are called again; the other 50 are answered by the data set that stayed.
    assert costs(path, "second") == (50, 50, 100)


@pytest.mark.parametrize("kill_at", [10, 24, 36, 44, 52, 58])
def test_a_removal_killed_anywhere_is_done_or_not_done(tmp_path: Path, kill_at: int) -> None:
    path = tmp_path / "store"
    ask(path, range(100))
    ask(path, range(200, 250), dataset=OTHER)
    done = logit_cache("rm", path, f"{TEACHER.id}/toy/train", "--yes", kill_at=kill_at)
    assert done.returncode == -signal.SIGKILL
    ask(path, range(250, 251), dataset=OTHER)
    names = [entry["dataset"] for entry in describe_cache(path)["caches"]]
    assert names in (["toy/other"], ["toy/other", "toy/train"])
    assert costs(path) == (151, 151, 151)
    check_answers(path, range(200, 251), dataset=OTHER)
    if "toy/train" in names:
        check_answers(path, range(100))
    else:
        assert not group_of(path).exists()


# backup


@pytest.mark.timeout(300)
def test_backups_of_a_server_at_work_hold_every_answer_given_before_they_began(
    tmp_path: Path, launch_server: Callable[..., object], make_images: Callable[..., Path]
) -> None:
    pictures = make_images(tmp_path / "pictures", count=1200)
    path = tmp_path / "store"
    server = launch_server(path, "--dataset", f"folder:{pictures}/train")
    acknowledged: list[int] = []
    stop = threading.Event()

    def work() -> None:
        with httpx.Client() as client:
            for row in range(1200):
                if stop.is_set():
                    return
                body = {"dataset": "pictures/train", "rows": [row]}
                reply = client.post(f"{server.url}/v1/logits", json=body, timeout=30)  # type: ignore[attr-defined]
                assert reply.status_code == 200
                acknowledged.append(row)

    client = threading.Thread(target=work)
    client.start()
    copies = []
    try:
        for number in range(3):
            # Each begins in the middle of the work.
            while client.is_alive() and len(acknowledged) < 20 * (number + 1):
                time.sleep(0.01)
            before = list(acknowledged)
            succeed("backup", path, tmp_path / f"copy{number}")
            copies.append((tmp_path / f"copy{number}", before))
    finally:
        stop.set()
        client.join()
    assert len(acknowledged) > len(copies[0][1]) > 0
    teacher, dataset = FakeTeacher(classes=10), open_dataset(f"folder:{pictures}/train")
    for copy, before in copies:
        assert succeed("verify", copy).endswith("is sound\n")
        with CacheReader.open(copy) as reader:
            kept = np.flatnonzero(reader.present())
            assert set(before) <= set(kept.tolist())
            expected = teacher.answer(dataset.images(kept))["logits"].astype(np.float16)
            np.testing.assert_array_equal(reader.gather(kept)["logits"], expected)
        described = describe_cache(copy)
        assert described["teacher_calls"] == len(kept)
        assert 0 <= described["attempts"] - len(kept) <= 1
    # A backup is a cache: it can be written.
    with CacheWriter.open(copies[-1][0]) as writer:
        writer.ensure_run("later", 5)
    assert "exists" in refused("backup", path, copies[0][0])
    assert "lies in the cache" in refused("backup", path, path / "copy")


def test_a_damaged_cache_is_not_copied(store: Path, tmp_path: Path) -> None:
    flip(group_of(store) / "logits" / "c.1.0")
    assert "damaged" in refused("backup", store, tmp_path / "copy", code=5)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["store"]


@pytest.mark.parametrize("kill_at", [15, 90, 160])
def test_a_backup_killed_in_the_middle_is_no_backup(two_blocks: Path, tmp_path: Path, kill_at: int) -> None:
    assert logit_cache("backup", two_blocks, tmp_path / "copy", kill_at=kill_at).returncode == -signal.SIGKILL
    assert not (tmp_path / "copy").exists()
    succeed("backup", two_blocks, tmp_path / "copy")
    check_answers(tmp_path / "copy", range(17_000))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["copy"]


# export


def read_export(file: Path) -> dict[str, np.ndarray]:
    if file.suffix == ".safetensors":
        return load_file(file)
    if file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as opened:
            return dict(opened)
    table = pyarrow.parquet.read_table(file)
    arrays = {name: table[name].to_numpy() for name in ("rows", "views", "labels")}
    arrays["keys"] = np.frombuffer(b"".join(table["keys"].to_pylist()), dtype=np.uint8).reshape(-1, 32)
    for name in ("logits", "features"):
        chunks = table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        arrays[name] = chunks.reshape(len(table), -1)
    return arrays


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "parquet"])
def test_an_export_holds_what_was_said_and_who_said_it(two_blocks: Path, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"answers.{suffix}"
    assert "17000 answers" in succeed("export", two_blocks, file)
    arrays = read_export(file)
    assert {name: (str(array.dtype), array.shape) for name, array in arrays.items() if name != "metadata"} == {
        "rows": ("int64", (17_000,)),
        "views": ("int32", (17_000,)),
        "labels": ("int64", (17_000,)),
        "keys": ("uint8", (17_000, 32)),
        "logits": ("float16", (17_000, 4)),
        "features": ("float16", (17_000, 2)),
    }
    rows = arrays["rows"]
    assert sorted(rows.tolist()) == list(range(17_000))
    np.testing.assert_array_equal(arrays["logits"].astype(np.float32), said(rows)["logits"])
    np.testing.assert_array_equal(arrays["features"].astype(np.float32), said(rows)["features"])
    np.testing.assert_array_equal(arrays["keys"], keys_of(rows.tolist()))
    assert arrays["labels"].tolist() == (rows % 4).tolist()
    metadata = {
        "npz": lambda: json.loads(str(arrays["metadata"])),
        "safetensors": lambda: json.loads(file.read_bytes()[8 : 8 + int.from_bytes(file.read_bytes()[:8], "little")])[
            "__metadata__"
        ],
        "parquet": lambda: {
            key.decode(): value.decode() for key, value in pyarrow.parquet.read_schema(file).metadata.items()
        },
    }[suffix]()
    assert json.loads(metadata["teacher"])["id"] == TEACHER.id
    assert json.loads(metadata["dataset"])["fingerprint"] == "f"
    assert metadata["teacher_calls"] == "17000"
    assert "exists" in refused("export", two_blocks, file)
    assert [entry.name for entry in tmp_path.iterdir()] == [file.name]


def test_what_cannot_be_exported_is_said_in_one_line(store: Path, tmp_path: Path) -> None:
    assert "use one of .safetensors, .npz, .parquet" in refused("export", store, tmp_path / "answers.csv")
    assert "folder that exists" in refused("export", store, tmp_path / "no" / "answers.npz")
    assert "not of wrn_40_2" in refused("export", store, tmp_path / "a.npz", "--teacher", "wrn_40_2")
    script = "import sys; sys.modules['pyarrow'] = None; from cache.cli import main; main()"
    command = [sys.executable, "-c", script, "export", str(store), str(tmp_path / "a.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "pip install 'teachonce[parquet]'" in done.stderr
    flip(group_of(store) / "features" / "c.0.0")
    assert "nothing was exported" in refused("export", store, tmp_path / "a.npz", code=5)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["store"]


def test_an_export_comes_back_as_the_same_cache_that_cost_no_calls(two_blocks: Path, tmp_path: Path) -> None:
    succeed("export", two_blocks, tmp_path / "a.safetensors")
    assert "17000 answers imported" in succeed("import", tmp_path / "copy", tmp_path / "a.safetensors")
    check_answers(tmp_path / "copy", range(17_000))
    described = describe_cache(tmp_path / "copy")
    assert (described["attempts"], described["teacher_calls"]) == (0, 0)
    assert described["caches"][0]["teacher"] == TEACHER.id
    assert "0 answers imported" in succeed("import", tmp_path / "copy", tmp_path / "a.safetensors")
    assert "imported: 17000 answers from a.safetensors" in succeed("info", tmp_path / "copy")

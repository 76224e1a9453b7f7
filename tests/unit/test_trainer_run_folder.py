"""The run's folder: never mixed with another run, never half written."""

from pathlib import Path

import pytest
import torch

from shared.errors import CorruptCacheError, IdentityError, InputError
from student_trainer.run_folder import RunFolder

RECORD = {"settings": {"lr": 0.05, "seed": 0, "milestones": (1.0, 2.0)}}


def test_a_run_in_the_folder_is_not_overwritten(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").enter(RECORD, resume=False)
    with pytest.raises(InputError, match="already holds a run: continue it with --resume, or choose another --out"):
        RunFolder(tmp_path / "run").enter(RECORD, resume=False)


def test_a_folder_of_something_else_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    for resume in (False, True):
        with pytest.raises(InputError, match="is not a run; choose another --out"):
            RunFolder(tmp_path).enter(RECORD, resume=resume)


def test_fetched_rows_may_lie_in_the_folder_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "run" / "cache").mkdir(parents=True)
    RunFolder(tmp_path / "run").enter(RECORD, resume=False)


def test_resuming_with_other_settings_names_them(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.enter(RECORD, resume=True)
    folder.enter(RECORD, resume=True)
    with pytest.raises(IdentityError, match=r"lr was 0\.05, is 0\.1; give the settings of config.json"):
        folder.enter({"settings": {**RECORD["settings"], "lr": 0.1}}, resume=True)


def test_a_write_that_fails_leaves_the_state_before(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save_state({"epoch": 1, "student": {"weight": torch.ones(2)}})
    with pytest.raises((AttributeError, TypeError, RuntimeError, OSError)):
        folder.save_state({"epoch": 2, "student": lambda: None})
    state = folder.load_state()
    assert state is not None
    assert state["epoch"] == 1
    assert not list(tmp_path.glob("*.partial"))


def test_a_damaged_state_says_what_to_do(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save_state({"epoch": 1})
    path = tmp_path / "state.pt"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CorruptCacheError, match=r"state\.pt.*remove it"):
        folder.load_state()


def test_lines_of_epochs_that_run_again_are_dropped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for epoch in (1, 2, 3):
        folder.append_metrics({"epoch": epoch})
    folder.keep_metrics(epochs=2)
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == ['{"epoch": 1}', '{"epoch": 2}']


@pytest.mark.parametrize("name", ["config.json", "results.json", "state.pt"])
def test_a_file_of_something_else_says_what_to_do(tmp_path: Path, name: str) -> None:
    folder = RunFolder(tmp_path)
    folder.enter(RECORD, resume=True)
    (tmp_path / name).write_bytes(b"garbage")
    with pytest.raises(CorruptCacheError, match=rf"cannot read .*{name}: it is damaged; remove it"):
        folder.enter(RECORD, resume=True)
        folder.load_results()
        folder.load_state()

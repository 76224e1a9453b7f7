"""What a training says about its options before it opens anything."""

import logging
from pathlib import Path

import pytest

from shared.errors import InputError
from student_trainer.config import TrainConfig
from student_trainer.objective import read_objective


def config(**changes: object) -> TrainConfig:
    settings = {"dataset": "digits", "student": "zoo:resnet8", "out": Path("run"), **changes}
    return TrainConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "ignored"),
    [
        ({"loss": "ce", "teacher": "fake:10"}, ["--teacher"]),
        ({"loss": "ce", "cache": "CACHE"}, ["--cache"]),
        ({"loss": "ce", "cache": "CACHE", "missing": "skip"}, []),
        ({"loss": "ce", "missing": "skip", "teacher_views": "1-3"}, ["--teacher-views", "--missing"]),
        ({"cache": "CACHE", "mirror": Path("m"), "api_key_file": Path("k")}, ["--api-key-file", "--mirror"]),
        ({"cache": "http://localhost:1", "mirror": Path("m"), "api_key_file": Path("k")}, []),
        ({"cache": "CACHE", "missing": "label-only", "teacher_views": "1-3"}, []),
    ],
)
def test_an_option_without_effect_is_warned_of(
    changes: dict[str, object], ignored: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="student_trainer"):
        read_objective(config(**changes))
    assert [record.getMessage().split()[0] for record in caplog.records] == ignored


def test_a_teacher_online_runs_in_one_process() -> None:
    with pytest.raises(InputError, match="--teacher runs in one process: use --devices 1, or a cache"):
        read_objective(config(teacher="fake:10", devices=2))

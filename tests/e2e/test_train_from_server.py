"""Trainings from a running server: every row is asked for once, and then never again."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache.reader import CacheReader
from cache.writer import CacheWriter
from shared.client import TeacherClient
from shared.datasets.spec import open_dataset
from shared.descriptions import TeacherDescription
from shared.errors import (
    IdentityError,
    InputError,
    OutputNotCachedError,
    UnauthorizedError,
    UnknownNameError,
    UnreachableError,
)
from shared.fake_teacher import FakeTeacher
from student_trainer.loop import TrainConfig, train
from student_trainer.progress import Quiet
from student_trainer.server_process import serving

ROWS = 40


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, TeacherClient]]:
    folder = tmp_path_factory.mktemp("served")
    options = ["--teacher=fake:10", "--dataset=digits", f"--cache={folder / 'cache'}", "--run=trainer"]
    with serving(options, log=folder / "server.log") as client:
        yield str(client._http.base_url), client


@pytest.fixture
def config(server: tuple[str, TeacherClient], tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        dataset="digits",
        student="zoo:resnet8",
        cache=server[0],
        run_name="trainer",
        sample=ROWS,
        val=0.0,
        epochs=2,
        batch=16,
        tensorboard=False,
        out=tmp_path / "run",
    )


class Fetches(Quiet):
    """Remembers what was fetched."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int]] = []

    def fetch(self, *, done: int, total: int, teacher_calls: int) -> None:
        self.seen.append((done, total, teacher_calls))


def asked(client: TeacherClient) -> int:
    counts = client.run("trainer")
    return int(counts["teacher_calls"])


def test_rows_are_fetched_once_and_a_second_training_asks_for_nothing(
    config: TrainConfig, server: tuple[str, TeacherClient], tmp_path: Path
) -> None:
    mirror = tmp_path / "mirror"
    fetches, again = Fetches(), Fetches()
    result = train(replace(config, mirror=mirror), progress=fetches)
    assert fetches.seen == [(ROWS, ROWS, ROWS)]
    assert asked(server[1]) == ROWS
    assert (result.teacher_calls, result.charged) == (ROWS, ROWS)
    # The second goes to an address where nobody answers.
    offline = replace(config, mirror=mirror, cache="http://127.0.0.1:9", out=tmp_path / "second")
    second = train(offline, progress=again)
    assert again.seen == []
    assert second.test_accuracy_last == result.test_accuracy_last
    assert (second.teacher_calls, second.charged) == (0, ROWS)
    reader = CacheReader.open(mirror)
    assert reader.present().sum() == ROWS
    assert set(reader.outputs) == {"logits", "features"}


def test_a_larger_sample_asks_for_the_rows_that_are_new(config: TrainConfig, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    train(replace(config, mirror=mirror, epochs=1))
    fetches = Fetches()
    train(replace(config, mirror=mirror, epochs=1, sample=ROWS + 8, out=tmp_path / "more"), progress=fetches)
    assert fetches.seen[-1][:2] == (8, 8)


def test_validation_rows_are_not_asked_for(config: TrainConfig) -> None:
    result = train(replace(config, val=0.25, epochs=1))
    assert (result.rows, result.val_rows) == (30, 10)
    assert CacheReader.open(config.out / "cache").present().sum() == 30


def test_a_run_with_its_rows_inside_resumes_without_the_server(config: TrainConfig) -> None:
    train(replace(config, epochs=1))
    (config.out / "results.json").unlink()
    settings = json.loads((config.out / "config.json").read_text())["settings"]
    assert settings["teacher_id"].startswith("fake-")
    assert train(replace(config, epochs=1, resume=True)).rows == ROWS


def test_no_server_is_one_clear_error(config: TrainConfig) -> None:
    with pytest.raises(UnreachableError, match=r"no teacher server at http://127\.0\.0\.1:9") as raised:
        train(replace(config, cache="http://127.0.0.1:9"))
    assert raised.value.exit_code == 2
    assert not config.out.exists()


def test_another_teacher_than_expected_is_refused_before_a_row_is_asked_for(
    config: TrainConfig, server: tuple[str, TeacherClient]
) -> None:
    before = asked(server[1])
    with pytest.raises(IdentityError, match=r"the server's teacher is fake-.*, not wrn_40_2"):
        train(replace(config, expect_teacher="wrn_40_2", sample=200))
    assert asked(server[1]) == before


OTHER = """
import numpy as np
from shared.datasets.spec import open_dataset

def other(split):
    data = open_dataset(f"digits/{split}")
    return [(255 - data.image(row), int(data.labels[row])) for row in range(data.num_rows)]
"""


def test_other_images_under_the_same_name_are_refused(
    config: TrainConfig, server: tuple[str, TeacherClient], tmp_path: Path
) -> None:
    (tmp_path / "other.py").write_text(OTHER)
    before = asked(server[1])
    with pytest.raises(IdentityError, match=r"the server's digits/train \(1437 rows.*is not the local one"):
        train(replace(config, dataset=f"digits=python:{tmp_path / 'other.py'}:other"))
    assert asked(server[1]) == before


def test_a_data_set_that_is_not_served_is_named(config: TrainConfig) -> None:
    with pytest.raises(
        UnknownNameError, match="the server has no data set mine/train; it serves digits/train, digits/test"
    ):
        train(replace(config, dataset="mine=digits"))


def test_a_server_with_keys_wants_one(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# the only one\n0123456789abcdef0123\n")
    options = ["--teacher=fake:10", "--dataset=digits", f"--cache={tmp_path / 'cache'}", f"--api-key-file={keys}"]
    with serving(options, log=tmp_path / "server.log") as client:
        config = TrainConfig(
            dataset="digits",
            student="zoo:resnet8",
            cache=str(client._http.base_url),
            sample=16,
            val=0.0,
            epochs=1,
            tensorboard=False,
            out=tmp_path / "run",
        )
        with pytest.raises(UnauthorizedError):
            train(config)
        digests = tmp_path / "digests"
        digests.write_text('{"name": "ada"}\n')
        with pytest.raises(InputError, match="a server's file of digests"):
            train(replace(config, api_key_file=digests))
        assert train(replace(config, api_key_file=keys)).rows == 16


def test_a_start_killed_before_its_first_answer_is_no_obstacle(config: TrainConfig) -> None:
    CacheWriter.open(config.out / "cache").close()
    assert train(replace(config, epochs=1)).charged == ROWS


def test_answers_of_another_teacher_in_the_run_stop_it_before_a_row_is_asked_for(
    config: TrainConfig, server: tuple[str, TeacherClient]
) -> None:
    digits, other = open_dataset("digits/train"), FakeTeacher(classes=10)
    description = replace(other.description, id="another-0123456789ab", arch="another")
    with CacheWriter.open(config.out / "cache") as writer:
        writer.adopt(
            writer.open_cache(description, digits.description, {"logits": "float16"}),
            keys=digits.keys[:1],
            rows=[0],
            views=[0],
            labels=digits.labels[:1],
            outputs={"logits": other.answer([digits.image(0)])["logits"]},
        )
    before = asked(server[1])
    with pytest.raises(
        IdentityError, match=r"holds answers of another-0123456789ab, and the server's teacher is .*--expect-teacher"
    ):
        train(replace(config, epochs=1))
    assert asked(server[1]) == before
    result = train(replace(config, epochs=1, expect_teacher=other.id))
    assert result.teacher == other.id


def test_a_loss_without_a_teacher_asks_the_server_for_nothing(config: TrainConfig) -> None:
    assert train(replace(config, loss="ce", cache="http://127.0.0.1:9", epochs=1)).rows == ROWS


def test_rows_fetched_before_are_asked_for_by_name(config: TrainConfig) -> None:
    with pytest.raises(InputError, match=r"--missing skip uses what was fetched before.*leave --missing out to fetch"):
        train(replace(config, missing="skip"))


@pytest.fixture(scope="module")
def with_maps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, TeacherClient]]:
    """A server that keeps logits, and one map of a network."""
    folder = tmp_path_factory.mktemp("maps")
    options = ["--teacher=zoo:resnet8", "--dataset=digits", f"--cache={folder / 'cache'}", "--run=trainer"]
    with serving([*options, "--outputs=logits,maps.2", "--device=cpu"], log=folder / "server.log") as client:
        yield str(client._http.base_url), client


@pytest.fixture
def of_maps(config: TrainConfig, with_maps: tuple[str, TeacherClient], tmp_path: Path) -> TrainConfig:
    return replace(config, cache=with_maps[0], loss="fitnets", mirror=tmp_path / "mirror", epochs=1, test=False)


def test_a_mirror_goes_on_with_its_outputs_where_the_next_loss_needs_fewer(
    of_maps: TrainConfig, tmp_path: Path
) -> None:
    train(of_maps)
    fetches = Fetches()
    train(replace(of_maps, loss="kl", sample=ROWS + 8, out=tmp_path / "more"), progress=fetches)
    assert fetches.seen[-1][:2] == (8, 8)
    assert set(CacheReader.open(tmp_path / "mirror").outputs) == {"logits", "maps.2"}
    # All rows have the map, too.
    train(replace(of_maps, sample=ROWS + 8, cache="http://127.0.0.1:9", out=tmp_path / "again"))


@pytest.mark.parametrize("rows", [ROWS, ROWS + 8])
def test_a_mirror_that_lacks_an_output_is_what_is_named_before_a_row_is_asked_for(
    rows: int, of_maps: TrainConfig, with_maps: tuple[str, TeacherClient], tmp_path: Path
) -> None:
    train(replace(of_maps, loss="kl"))
    before = asked(with_maps[1])
    expected = rf"{tmp_path / 'mirror'}.* holds logits, and the loss needs maps\.2.*; give another --mirror FOLDER"
    with pytest.raises(OutputNotCachedError, match=expected):
        train(replace(of_maps, sample=rows, out=tmp_path / "lacks"))
    assert asked(with_maps[1]) == before
    train(replace(of_maps, sample=rows, mirror=tmp_path / "another", out=tmp_path / "works"))


def test_a_server_that_lacks_an_output_is_named_with_the_fill_before_a_row_is_asked_for(
    of_maps: TrainConfig, with_maps: tuple[str, TeacherClient]
) -> None:
    before = asked(with_maps[1])
    expected = (
        r"the server at http.* holds logits, maps\.2, and the loss needs maps\.1, maps\.3; stop the server, add it on"
        r" its machine with `teacher-server fill --cache CACHE .*--add-outputs maps\.1,maps\.3`"
    )
    with pytest.raises(OutputNotCachedError, match=expected):
        train(replace(of_maps, loss="vid", sample=200))
    assert asked(with_maps[1]) == before


def test_rows_cannot_be_added_to_a_mirror_with_more_than_the_server_keeps(
    of_maps: TrainConfig, with_maps: tuple[str, TeacherClient], tmp_path: Path
) -> None:
    teacher = TeacherDescription(**with_maps[1].cache()["teachers"][0]["description"])
    digits = open_dataset("digits/train")
    with CacheWriter.open(tmp_path / "mirror") as writer:
        kept = {"logits": np.zeros((1, 10), np.float16), "features": np.zeros((1, 64), np.float16)}
        writer.adopt(
            writer.open_cache(teacher, digits.description, dict.fromkeys(kept, "float16")),
            keys=digits.keys[:1],
            rows=[0],
            views=[0],
            labels=digits.labels[:1],
            outputs=kept,
        )
    before = asked(with_maps[1])
    with pytest.raises(InputError, match=r"mirror holds logits, features, and the server at .* keeps no features, so"):
        train(replace(of_maps, loss="kl"))
    assert asked(with_maps[1]) == before

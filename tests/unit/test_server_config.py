"""Options of `teacher-server serve` from the command line, the environment and a file, in this order."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from shared.errors import InputError
from teacher_server import serve
from teacher_server.cli import app
from teacher_server.opening import TeacherOptions, open_teacher

FILE = """
teacher = "fake:10"
dataset = ["digits", "folder:/some pictures"]
run = "paper=5"
port = 1111
batch = 11
queue = 1111
max_body_mb = 2
download = true
"""


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command would serve; nothing listens."""
    seen: dict[str, Any] = {}

    def serve_nothing(settings: Any, **rest: Any) -> list[int]:
        seen.update(rest, settings=settings)
        return []

    monkeypatch.setattr(serve, "serve_until_signal", serve_nothing)
    return seen


def run_serve(*arguments: str, **environment: str) -> Any:
    return CliRunner().invoke(app, ["serve", *arguments], env=environment)


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(
    served: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "server.toml"
    file.write_text(FILE)
    environment = {"TEACHONCE_CONFIG": str(file), "TEACHONCE_CACHE": "from-env", "TEACHONCE_QUEUE": "2222"}
    ran = run_serve("--batch", "33", TEACHONCE_BATCH="22", TEACHONCE_ALLOWED_HOST="a.example b.example", **environment)
    assert ran.exit_code == 0, (ran.output, ran.exception)
    settings = served["settings"]
    assert settings.answering.batch_images == 33
    assert settings.answering.queue_images == 2222
    assert served["port"] == 1111
    assert settings.deadline_s == 60
    assert settings.max_body_bytes == 2 * 2**20
    assert settings.allowed_hosts == {"a.example", "b.example"}
    assert served["teacher"].spec == "fake:10"
    assert served["cache"] == Path("from-env")
    assert list(served["datasets"]) == ["digits", "folder:/some pictures"]
    assert served["budgets"].runs == {"paper": 5}
    assert served["download"] is True


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", "did you mean 'port'?"),
        ("zzzzzz = 1", "known: allowed-host, api-key-file"),
        ("config = 'x'", "unknown option 'config'"),
        ("port = true", "port cannot be True"),
        ("download = 1", "download must be true or false"),
        ("max_body_mb = 1\nmax-body-mb = 2", "there twice"),
        ("dataset = [{}]", "dataset cannot be {}"),
        ("port = 1\nport = 2", "is not TOML"),
        (None, "cannot read --config"),
    ],
)
def test_a_file_with_a_mistake_is_refused(served: dict[str, Any], tmp_path: Path, text: str | None, words: str) -> None:
    file = tmp_path / "server.toml"
    if text is not None:
        file.write_text(text)
    ran = run_serve("--teacher", "fake:10", "--cache", "c", "--config", str(file))
    assert isinstance(ran.exception, InputError)
    assert words in str(ran.exception)
    assert str(file) in str(ran.exception)
    assert not served


def test_values_of_a_file_are_checked_as_those_of_the_command_line(served: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text("port = 70000")
    ran = run_serve("--teacher", "fake:10", "--cache", "c", "--config", str(file))
    assert ran.exit_code == 2
    assert "--port" in ran.output
    assert not served


@pytest.mark.usefixtures("served")
def test_what_a_fake_teacher_would_ignore_and_a_run_named_twice_are_refused() -> None:
    options = TeacherOptions(spec="fake:10", device="cuda", precision="bfloat16", threads=2, trust_export=True)
    with pytest.raises(InputError, match=r"drop --device, --precision, --trust-export$"):
        open_teacher(options, datasets=[])
    open_teacher(TeacherOptions(spec="fake:10", device="cpu"), datasets=[])
    ran = run_serve("--teacher", "fake:10", "--cache", "c", "--run", "web=5", "--run", "web=9")
    assert isinstance(ran.exception, InputError)
    assert "names 'web' twice" in str(ran.exception)

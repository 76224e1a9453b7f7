"""The image and the compose file, checked by their own linters, and the traps of this repository's names."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parent.parent.parent
TOOLS = Path(sys.executable).parent
PACKAGES = ("shared", "cache", "teacher_server", "student_trainer")


def run_tool(*command: str) -> None:
    result = subprocess.run([str(TOOLS / command[0]), *command[1:]], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def compose() -> dict:
    return yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())


def test_the_dockerfile_passes_its_linter() -> None:
    run_tool("hadolint", "Dockerfile")


def test_the_compose_file_matches_the_compose_schema() -> None:
    run_tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")


def test_the_server_has_a_health_check_and_a_named_volume_at_data() -> None:
    file = compose()
    assert file["services"]["server"]["healthcheck"]["test"][0] == "CMD"
    assert "data:/data" in file["services"]["server"]["volumes"]
    assert "data" in file["volumes"]


@pytest.mark.parametrize("service", ["server", "trainer"])
def test_no_volume_can_hide_a_package(service: str) -> None:
    targets = [
        volume.split(":")[-2 if volume.endswith(":ro") else -1] for volume in compose()["services"][service]["volumes"]
    ]
    assert all(Path(target).name not in PACKAGES and not target.startswith("/app") for target in targets)


def test_the_trainer_reads_the_volume_and_needs_no_server() -> None:
    trainer = compose()["services"]["trainer"]
    assert "data:/data:ro" in trainer["volumes"]
    assert "depends_on" not in trainer


@pytest.mark.parametrize("name", [".gitignore", ".dockerignore"])
def test_ignore_rules_are_anchored_and_keep_the_packages(name: str) -> None:
    rules = [line for line in (REPOSITORY / name).read_text().splitlines() if line and not line.startswith("#")]
    unanchored = [
        rule
        for rule in rules
        if not rule.lstrip("!").startswith("/") and rule not in ("__pycache__/", "**/__pycache__")
    ]
    assert unanchored == []
    if name == ".gitignore":
        ignored = subprocess.run(["git", "check-ignore", *PACKAGES], cwd=REPOSITORY, capture_output=True, text=True)
        assert ignored.stdout == ""

"""The image and the compose file, checked by their own linters, and the traps of this repository's names."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from teacher_server.cli import app

REPOSITORY = Path(__file__).resolve().parent.parent.parent
TOOLS = Path(sys.executable).parent
PACKAGES = ("shared", "cache", "teacher_server", "student_trainer")
OURS = ("server", "server-gpu", "trainer", "trainer-gpu")
SETTING = re.compile(r"^(?:# )?(\w+)=(.*)$", flags=re.MULTILINE)


def run_tool(*command: str) -> None:
    result = subprocess.run([str(TOOLS / command[0]), *command[1:]], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def compose() -> dict:
    return yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())


def services() -> dict[str, dict]:
    return compose()["services"]


def stages() -> dict[str, str]:
    """Instructions of the Dockerfile by stage."""
    parts = re.split(r"^FROM \S+ AS (\w+)$", (REPOSITORY / "Dockerfile").read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_dockerfile_passes_its_linter() -> None:
    run_tool("hadolint", "Dockerfile")


def test_the_compose_file_matches_the_compose_schema() -> None:
    run_tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")


def test_the_server_has_a_health_check_and_a_named_volume_at_data() -> None:
    file = compose()
    assert file["services"]["server"]["healthcheck"]["test"][0] == "CMD"
    assert "data:/data" in file["services"]["server"]["volumes"]
    assert "data" in file["volumes"]


def test_a_plain_up_starts_the_server_for_cpus_and_only_that() -> None:
    settings = dict(SETTING.findall((REPOSITORY / ".env").read_text()))
    chosen = settings["COMPOSE_PROFILES"]
    assert [name for name, service in services().items() if chosen in service["profiles"]] == ["server"]
    assert subprocess.run(["git", "check-ignore", ".env"], cwd=REPOSITORY, capture_output=True).returncode == 1


def test_the_server_for_gpus_reserves_them_and_cannot_run_beside_the_other() -> None:
    cpu, gpu = services()["server"], services()["server-gpu"]
    device = gpu["deploy"]["resources"]["reservations"]["devices"][0]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert "deploy" not in cpu
    assert gpu["profiles"] == ["gpu"]
    assert (gpu["ports"], gpu["volumes"], gpu["healthcheck"]) == (cpu["ports"], cpu["volumes"], cpu["healthcheck"])
    differing = {name for name in gpu["environment"] if gpu["environment"][name] != cpu["environment"].get(name)}
    assert differing == {"TEACHONCE_DEVICE"}
    # Prometheus asks for this name.
    assert gpu["networks"]["default"]["aliases"] == ["server"]
    scraped = yaml.safe_load((REPOSITORY / "deploy/prometheus.yml").read_text())["scrape_configs"][0]
    assert scraped["static_configs"][0]["targets"] == ["server:8000"]
    assert scraped["authorization"]["credentials_file"] == f"/run/secrets/{services()['prometheus']['secrets'][0]}"


def test_every_setting_is_an_option_of_serve_and_every_required_one_is_given() -> None:
    options = get_command(app).commands["serve"].params  # type: ignore[attr-defined]
    variables = {f"TEACHONCE_{option.name.upper()}" for option in options}
    required = {f"TEACHONCE_{option.name.upper()}" for option in options if option.required}
    given = services()["server-gpu"]["environment"]
    assert given.keys() <= variables
    assert required <= {name for name, value in given.items() if value}
    # Of the compose file itself: what is mounted, and which port is published.
    own = {"COMPOSE_PROFILES", "TEACHONCE_IMAGES", "TEACHONCE_PORT"}
    assert {name for name, _ in SETTING.findall((REPOSITORY / ".env").read_text())} <= variables | own


@pytest.mark.parametrize("name", services())
def test_every_container_is_confined_and_reached_from_this_machine_only(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert name in OURS or re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", service["image"])
    mounted = [volume.split(":")[0] for volume in service.get("volumes", ()) if volume.startswith("./deploy")]
    assert all((REPOSITORY / path).exists() for path in mounted)


def test_no_key_is_committed_or_built_in() -> None:
    ignored = subprocess.run(["git", "check-ignore", "deploy/metrics-key"], cwd=REPOSITORY, capture_output=True)
    assert ignored.returncode == 0
    assert compose()["secrets"]["metrics-key"]["file"].endswith("./deploy/metrics-key}")
    assert "deploy" not in (REPOSITORY / ".dockerignore").read_text()


def test_a_change_of_code_leaves_the_layers_of_the_libraries_alone() -> None:
    found = stages()
    assert re.findall(r"^COPY (.*)$", found["python"] + found["libraries"], flags=re.MULTILINE) == [
        "--from=pins /pins/torch.txt ./",
        "--from=pins /pins/wanted.txt ./",
        "requirements.lock ./",
    ]
    assert not re.search("^(COPY|ADD) ", found["app"], flags=re.MULTILINE)
    assert re.findall(r"^USER (.*)$", found["app"], flags=re.MULTILINE) == ["10001"]


@pytest.mark.parametrize("service", OURS)
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

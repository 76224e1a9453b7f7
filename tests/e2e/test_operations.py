"""The guide for operators: every command of it that needs no Docker engine runs here, in order."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parent.parent.parent
GUIDE = (REPOSITORY / "docs/operations.md").read_text()


def commands() -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```", GUIDE, flags=re.MULTILINE | re.DOTALL)
    return [line for line in "".join(blocks).splitlines() if not line.startswith("docker compose ")]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_every_command_of_the_guide_works_in_order(tmp_path: Path) -> None:
    port = free_port()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    server: subprocess.Popen[str] | None = None
    try:
        for line in commands():
            command = line.replace("8000", str(port))
            if " serve " in command:
                server = subprocess.Popen(
                    command.split(), cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
                )
                assert server.stdout is not None
                assert server.stdout.readline() == f"listening on http://127.0.0.1:{port}\n"
                continue
            result = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True)
            assert result.returncode == 0, f"{command}\n{result.stderr.decode()}"
            assert b'"error"' not in result.stdout, f"{command}\n{result.stdout.decode()}"
        assert server is not None
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=30) == 0
    finally:
        if server is not None:
            server.kill()
            server.wait()


def test_the_guide_names_services_profiles_and_alerts_that_exist() -> None:
    services = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]
    named = re.findall(r"^docker compose (?:exec|run)(?: -T| --rm)? ([a-z]+)", GUIDE, flags=re.MULTILINE)
    assert named
    assert set(named) <= services.keys()
    profiles = {profile for service in services.values() for profile in service["profiles"]}
    assert set(re.findall(r"--profile ([a-z]+)", GUIDE)) <= profiles
    groups = yaml.safe_load((REPOSITORY / "deploy/alerts.yml").read_text())["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"]}
    assert alerts == set(re.findall(r"\bTeacher[A-Z]\w+", GUIDE))

"""The README, followed by a new user: every command of it runs here, or is `make` or docker compose (named below)."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parent.parent.parent
README = (REPOSITORY / "README.md").read_text()
ELSEWHERE = ("make demo", "make test", "make rti", "docker compose")
"""Run by the user's first two commands, and by hand with a Docker engine."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = "".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith(ELSEWHERE)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(url: str, *, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=1) as reply:
                if reply.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"no server at {url}")


def check_block(block: str, *, folder: Path, environment: dict[str, str]) -> None:
    result = subprocess.run([sys.executable, "-c", block], cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "logits" in result.stdout


@pytest.mark.timeout(900)
def test_every_command_of_the_readme_works_in_order(tmp_path: Path) -> None:
    port = free_port()
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(tmp_path / "home"),
    }
    (tmp_path / "recipes").symlink_to(REPOSITORY / "recipes")
    server: subprocess.Popen[bytes] | None = None
    ran = []
    try:
        for line in commands():
            # One epoch shows that it works; that more of them train is shown elsewhere.
            command = re.sub(r"--epochs \d+", "--epochs 1", line.replace("8000", str(port)))
            if " serve " in command:
                server = subprocess.Popen(command.split(), cwd=tmp_path, env=environment)
                wait_until_ready(f"http://127.0.0.1:{port}/readyz", process=server)
            else:
                result = subprocess.run(
                    ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400
                )
                assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
                # A fill that did not fail has an error of null.
                assert not (command.startswith("curl") and '"error":"' in result.stdout), f"{command}\n{result.stdout}"
            ran.append(command.split()[0])
        for block in blocks("python"):
            if "8000" in block:
                check_block(block.replace("8000", str(port)), folder=tmp_path, environment=environment)
    finally:
        if server is not None:
            server.terminate()
            assert server.wait(timeout=30) == 0
    assert {"student-trainer", "teacher-server", "logit-cache", "curl"} <= set(ran)
    for block in blocks("python"):
        if "8000" not in block:
            check_block(block, folder=tmp_path, environment=environment)


def test_the_commands_run_elsewhere_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"^make ([a-z]+)", "".join(blocks("bash")), flags=re.MULTILINE)) <= targets
    services = set(yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"])
    named = re.findall(
        r"^docker compose (?:exec|run --rm|up [^#]*?--wait) ([a-z]+)", "".join(blocks("bash")), flags=re.MULTILINE
    )
    assert named
    assert set(named) <= services

"""A real server from the outside: where it may listen, one per cache, quick to start without torch."""

import signal
from collections.abc import Callable
from pathlib import Path

import httpx

ANYWHERE = "0.0.0.0"  # noqa: S104  # refused, which is what the test is about


def test_another_address_than_loopback_needs_a_key(run_server_command: Callable, tmp_path: Path) -> None:
    ran = run_server_command(
        "serve", "--teacher", "fake:10", "--cache", str(tmp_path / "store"), "--host", ANYWHERE, "--port", "0"
    )
    assert ran.returncode == 2
    assert "--api-key-file" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert not (tmp_path / "store").exists()


def test_a_second_server_on_one_cache_ends_with_4(
    launch_server: Callable, run_server_command: Callable, tmp_path: Path
) -> None:
    first = launch_server(tmp_path / "store")
    ran = run_server_command("serve", "--teacher", "fake:10", "--cache", str(tmp_path / "store"), "--port", "0")
    assert ran.returncode == 4
    assert str(first.process.pid) in ran.stderr
    assert httpx.get(f"{first.url}/readyz").status_code == 200


def test_a_taken_port_is_said_at_once(launch_server: Callable, run_server_command: Callable, tmp_path: Path) -> None:
    first = launch_server(tmp_path / "store")
    port = first.url.rpartition(":")[2]
    ran = run_server_command("serve", "--teacher", "fake:10", "--cache", str(tmp_path / "other"), "--port", port)
    assert ran.returncode == 2
    assert "--port" in ran.stderr


def test_a_fake_teacher_is_served_without_the_libraries_that_take_seconds_to_load(
    launch_server: Callable, tmp_path: Path, pictures: Path
) -> None:
    server = launch_server(tmp_path / "store", "--dataset", f"folder:{pictures}")
    assert server.ask([0, 1]).status_code == 200
    loaded = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "numpy" in loaded
    # numcodecs stands for zarr, which has no compiled part of its own.
    slow = ("torch", "torchvision", "sklearn", "scipy", "matplotlib", "numcodecs")
    assert [name for name in slow if f"/{name}/" in loaded] == []


def test_ctrl_c_ends_a_server_with_130(launch_server: Callable, tmp_path: Path) -> None:
    server = launch_server(tmp_path / "store")
    assert server.stop(signal.SIGINT) == 130
    assert "Traceback" not in server.log.read_text()

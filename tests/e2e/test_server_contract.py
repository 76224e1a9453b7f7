"""The OpenAPI document against the server that serves it, asked by schemathesis with all of its checks.

Whatever the document lists is asked: a new route needs no line here.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

ENDLESS = "/v1/status/events"
"""An answer that does not end while the server runs; `test_status` asks for it."""
EXCLUDED = "positive_data_acceptance,use_after_free"
"""The first is replaced in `openapi_checks`; a fill that was deleted is cancelled, and still told about."""
REFUSALS = [400, 401, 403, 404, 405, 406, 408, 409, 413, 415, 422, 428, 431]
"""Statuses that refuse what is wrong: its own list lacks that of a URL which is too long."""
CHECKS = Path(__file__).with_name("openapi_checks.py")


@pytest.mark.parametrize("examples", [1, pytest.param(200, marks=pytest.mark.soak)])
def test_the_server_does_what_its_openapi_document_says(launch_server: Callable, tmp_path: Path, examples: int) -> None:
    server = launch_server(tmp_path / "store", "--dataset", "digits")
    assert server.ask([0, 7], dataset="digits/train").status_code == 200  # so that GET finds one
    config = tmp_path / "schemathesis.toml"
    config.write_text(f"[checks.negative_data_rejection]\nexpected-statuses = {REFUSALS}\n")
    ran = subprocess.run(
        [
            str(Path(sys.executable).with_name("st")),
            *(
                "--config-file",
                str(config),
                "run",
                f"{server.url}/openapi.json",
                "--seed",
                "1",
                "--max-examples",
                str(examples),
            ),
            *("--checks", "all", "--exclude-checks", EXCLUDED, "--continue-on-failure"),
            *("--exclude-path", ENDLESS),
            *("--suppress-health-check", "all", "--generation-database", "none"),
        ],
        env=os.environ | {"SCHEMATHESIS_HOOKS": str(CHECKS)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    assert f"Tested: {sum(len(verbs) for path, verbs in paths.items() if path != ENDLESS)}" in ran.stdout
    assert httpx.get(f"{server.url}/readyz").status_code == 200

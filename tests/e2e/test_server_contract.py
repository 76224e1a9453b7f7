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

CHECKS = Path(__file__).with_name("openapi_checks.py")


@pytest.mark.parametrize("examples", [1, pytest.param(200, marks=pytest.mark.soak)])
def test_the_server_does_what_its_openapi_document_says(launch_server: Callable, tmp_path: Path, examples: int) -> None:
    server = launch_server(tmp_path / "store", "--dataset", "digits")
    assert server.ask([0, 7], dataset="digits/train").status_code == 200  # so that GET finds one
    ran = subprocess.run(
        [
            str(Path(sys.executable).with_name("st")),
            *("run", f"{server.url}/openapi.json", "--seed", "1", "--max-examples", str(examples)),
            *("--checks", "all", "--exclude-checks", "positive_data_acceptance", "--continue-on-failure"),
            *("--suppress-health-check", "all", "--generation-database", "none"),
        ],
        env=os.environ | {"SCHEMATHESIS_HOOKS": str(CHECKS)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    listed = len(httpx.get(f"{server.url}/openapi.json").json()["paths"])
    assert f"Tested: {listed + 1}" in ran.stdout  # one path has two verbs
    assert httpx.get(f"{server.url}/readyz").status_code == 200

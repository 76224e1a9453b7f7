"""``logit-cache fidelity``: what encodings take and cost, as a table and as JSON."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def logit_cache(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [str(Path(sys.executable).with_name("logit-cache")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_encodings_are_compared_on_the_caches_own_answers(
    run_server_command: Callable, pictures: Path, tmp_path: Path
) -> None:
    store = str(tmp_path / "store")
    options = ("--teacher", "fake:10", "--dataset", f"folder:{pictures}/train", "--cache", store)
    assert run_server_command("fill", *options).returncode == 0
    found = {one["encoding"]: one for one in json.loads(logit_cache("fidelity", store, "--json").stdout)}
    assert {name: one["bytes_per_row"] for name, one in found.items()} == {"float16": 20, "float32": 40, "int8": 18}
    assert found["float16"]["kl_tau4"] == 0 < found["int8"]["kl_tau4"] < 1e-4
    table = logit_cache("fidelity", store).stdout.splitlines()
    assert [line.split()[0] for line in table] == ["encoding", "float16", "float32", "int8"]
    assert f"{found['int8']['kl_tau4']:.2e}" in table[3]
    refused = logit_cache("fidelity", store, "--teacher", "nobody")
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr

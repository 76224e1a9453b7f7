"""Numbers of the authors' own code, for every test of a loss."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def golden(golden_path: Path) -> Any:
    sys.path.insert(0, str(golden_path))
    try:
        from golden_loader import Golden
    finally:
        sys.path.remove(str(golden_path))
    return Golden(golden_path)


@pytest.fixture(scope="session")
def facts(golden_path: Path) -> Any:
    return json.loads((golden_path / "facts.json").read_text())

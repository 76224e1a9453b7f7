"""Where tests find the golden vectors and real data, and how they start real commands."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_path() -> Path:
    """The folder of golden vectors, published tables and real data; tests that need it skip without it."""
    path = Path(os.environ.get("TEACHONCE_SHARED", REPOSITORY.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"no reference data at {path}: set TEACHONCE_SHARED")
    return path


@pytest.fixture(scope="session")
def golden_path(shared_path: Path) -> Path:
    """The golden vectors, numbers from the authors' own code."""
    return shared_path / "golden"

"""Which package may import which: shared <- cache <- {teacher_server, student_trainer}, and who may import torch."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("shared", "cache", "teacher_server", "student_trainer")
MAY_IMPORT = {
    "shared": {"shared"},
    "cache": {"shared", "cache"},
    "teacher_server": {"shared", "cache", "teacher_server"},
    "student_trainer": {"shared", "cache", "student_trainer"},
}
TORCH_FREE = ("shared/errors.py", "shared/schemas.py", "shared/identity.py", "shared/descriptions.py", "cache/")
"""Files and folders that never import torch, not even inside a function."""


def sources(package: str) -> list[Path]:
    return sorted((REPOSITORY / package).rglob("*.py"))


def imported_modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every module that a file names in an import, at the top, in a function, or by importlib."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield node.lineno, node.module or ""
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield node.lineno, argument.value


def violations(package: str, source: str) -> list[str]:
    allowed = MAY_IMPORT[package]
    found = []
    for line, module in imported_modules(ast.parse(source)):
        top = module.split(".")[0]
        if top in PACKAGES and top not in allowed:
            found.append(f"line {line} imports {module}")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    wrong = {
        path.relative_to(REPOSITORY): found
        for path in sources(package)
        if (found := violations(package, path.read_text()))
    }
    assert not wrong


def test_an_import_hidden_in_a_function_is_found() -> None:
    assert violations("cache", "def f():\n    from teacher_server.app import create_app\n")
    assert violations("teacher_server", "import importlib\nimportlib.import_module('student_trainer.loop')\n")
    assert not violations("student_trainer", "from cache.reader import CacheReader\n")


@pytest.mark.parametrize("place", TORCH_FREE)
def test_no_torch_where_numpy_is_enough(place: str) -> None:
    root = REPOSITORY / place
    wrong = []
    for path in [root] if root.is_file() else sources(place):
        for line, module in imported_modules(ast.parse(path.read_text())):
            if module.split(".")[0] in {"torch", "torchvision", "lightning_fabric"}:
                wrong.append(f"{path.relative_to(REPOSITORY)}:{line} imports {module}")
    assert not wrong


def test_the_trainer_never_imports_the_web_framework() -> None:
    for path in [*sources("student_trainer"), *sources("shared"), *sources("cache")]:
        modules = {module.split(".")[0] for _, module in imported_modules(ast.parse(path.read_text()))}
        assert not modules & {"fastapi", "starlette", "uvicorn"}, path


def test_a_teacher_forward_is_called_in_one_file_only() -> None:
    """`.answer(` and `.start(` on a teacher run it; the server's and the trainer's callers are named here."""
    callers = {
        path.relative_to(REPOSITORY).as_posix()
        for package in ("teacher_server", "student_trainer")
        for path in sources(package)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in ("answer", "start")
        and any(word in ast.unparse(node.value).lower() for word in ("teacher", "device"))
    }
    assert {caller for caller in callers if caller.startswith("teacher_server/")} == {
        "teacher_server/backfill.py",
        "teacher_server/replica.py",
    }
    assert {caller for caller in callers if caller.startswith("student_trainer/")} == {"student_trainer/targets.py"}


def test_every_package_on_disk_is_listed_for_the_wheel() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    listed = set(project["tool"]["setuptools"]["packages"])
    found = {
        path.parent.relative_to(REPOSITORY).as_posix().replace("/", ".")
        for package in PACKAGES
        for path in (REPOSITORY / package).rglob("__init__.py")
    }
    assert listed == found


def test_no_python_folder_lacks_its_init_file() -> None:
    folders = {path.parent for package in PACKAGES for path in sources(package)}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []

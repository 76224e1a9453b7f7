"""How much memory is free: the kernel's word, or the tightest limit of the groups this process is in."""

from pathlib import Path

import pytest

from shared.host_memory import host_free_bytes

GIB = 2**30


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, Path]:
    """8 GiB available; the process in group /a/b, with files as the kernel would show them."""
    (tmp_path / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {8 * GIB // 1024} kB\n")
    (tmp_path / "membership").write_text("0::/a/b\n")
    (tmp_path / "groups" / "a" / "b").mkdir(parents=True)
    return {
        "meminfo": tmp_path / "meminfo",
        "cgroups": tmp_path / "groups",
        "membership": tmp_path / "membership",
    }


def limit(group: Path, *, most: str, used: int, files: int) -> None:
    (group / "memory.max").write_text(most)
    (group / "memory.current").write_text(str(used))
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {files // 2}\nactive_file {files - files // 2}\n")


def test_without_a_limit_it_is_what_the_kernel_calls_available(machine: dict[str, Path]) -> None:
    limit(machine["cgroups"] / "a", most="max", used=GIB, files=0)
    assert host_free_bytes(**machine) == 8 * GIB


def test_a_limit_further_up_counts_and_pages_of_files_do_not(machine: dict[str, Path]) -> None:
    limit(machine["cgroups"] / "a" / "b", most=str(6 * GIB), used=GIB, files=0)
    limit(machine["cgroups"] / "a", most=str(3 * GIB), used=2 * GIB, files=GIB)
    assert host_free_bytes(**machine) == 2 * GIB


def test_it_is_never_negative_and_0_where_nothing_says(machine: dict[str, Path], tmp_path: Path) -> None:
    limit(machine["cgroups"] / "a" / "b", most="10", used=GIB, files=0)
    assert host_free_bytes(**machine) == 0
    assert host_free_bytes(meminfo=tmp_path / "none", cgroups=tmp_path / "none", membership=tmp_path / "none") == 0

"""How much memory of the host is free for this process to take."""

from collections.abc import Iterator, Sequence
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")
MEMBERSHIP = Path("/proc/self/cgroup")


def host_free_bytes(
    *,
    droppable: Sequence[str] = ("inactive_file", "active_file"),
    meminfo: Path = MEMINFO,
    cgroups: Path = CGROUPS,
    membership: Path = MEMBERSHIP,
) -> int:
    """What the kernel calls available, or what is left under the tightest memory limit of this process's groups.

    ``droppable`` names the kernel's counts of pages that are not taken, as it could drop them. 0 where nothing says (no
    Linux).
    """
    available = _fields(meminfo).get("MemAvailable", 0) * 1024
    return max(0, min([available, *_left(cgroups, membership=membership, droppable=droppable)]))


def _left(cgroups: Path, *, membership: Path, droppable: Sequence[str]) -> Iterator[int]:
    """Bytes left under each limit; pages that the kernel can drop are not counted as taken."""
    for folder in _own_groups(cgroups, membership=membership):
        for limit_name, usage_name, prefix in (
            ("memory.max", "memory.current", ""),  # cgroup v2
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),  # cgroup v1
        ):
            limit = _text(folder / limit_name)
            if limit.isdigit():
                counts = _fields(folder / "memory.stat")
                files = sum(counts.get(f"{prefix}{name}", 0) for name in droppable)
                yield int(limit) - max(0, int(_text(folder / usage_name) or 0) - files)


def _own_groups(cgroups: Path, *, membership: Path) -> Iterator[Path]:
    """This process's groups, each before the one that it is in. In a container the mounted root is the own one."""
    for line in _text(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = cgroups / "memory" if controllers else cgroups
        group = root / path.lstrip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))


def _fields(path: Path) -> dict[str, int]:
    """Numbers by name, of lines ``name[:] number ...``."""
    words = [line.replace(":", " ").split() for line in _text(path).splitlines()]
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdigit()}


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""

"""How much memory is free for this process to take, on a device or on the host."""

from collections.abc import Iterator
from pathlib import Path

import torch

CGROUPS = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")
MEMBERSHIP = Path("/proc/self/cgroup")


def free_bytes(device: torch.device) -> int:
    """Bytes that could be taken now; 0 where nothing says (no Linux)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return host_free_bytes()


def host_free_bytes(*, meminfo: Path = MEMINFO, cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """What the kernel calls available, or what is left under the tightest memory limit of this process's groups."""
    available = _fields(meminfo).get("MemAvailable", 0) * 1024
    return max(0, min([available, *_left(cgroups, membership=membership)]))


def _left(cgroups: Path, *, membership: Path) -> Iterator[int]:
    """Bytes left under each limit; files that the kernel could drop are not counted as taken."""
    for folder in _own_groups(cgroups, membership=membership):
        for limit_name, usage_name, idle in (
            ("memory.max", "memory.current", "inactive_file"),  # cgroup v2
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # cgroup v1
        ):
            limit = _text(folder / limit_name)
            if limit.isdigit():
                used = int(_text(folder / usage_name) or 0) - _fields(folder / "memory.stat").get(idle, 0)
                yield int(limit) - used


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

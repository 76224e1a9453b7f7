"""Which devices a teacher computes on, from ``--device``."""

from shared.errors import InputError


def pick_devices(text: str) -> tuple[str, ...]:
    """``cpu`` or ``cuda:N`` of every device named; ``auto`` is CUDA where there is one, ``cuda:all`` every CUDA device.

    Several, as in ``cuda:0,cuda:1``, are one replica each; ``cpu,cpu`` is a way to try that anywhere. Raises
    `InputError` for what is not there, for one CUDA device twice, and for CPU and CUDA together.
    """
    # torch takes seconds to import, and fake: teachers start without it.
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text == "auto":
        return (_current(),) if count else ("cpu",)
    if text == "cuda:all" and count:
        return tuple(f"cuda:{index}" for index in range(count))
    devices = tuple(_check(name.strip(), count=count) for name in text.split(","))
    on_cuda = [device for device in devices if device != "cpu"]
    if len(set(on_cuda)) < len(on_cuda):
        raise InputError(f"--device {text[:80]} names a CUDA device twice; name each once, or use cuda:all")
    if on_cuda and len(on_cuda) < len(devices):
        raise InputError(f"--device {text[:80]} mixes CPU and CUDA, which round differently; use one kind")
    return devices


def pick_device(text: str) -> str:
    """The one device named; `InputError` for several."""
    devices = pick_devices(text)
    if len(devices) > 1:
        raise InputError(f"one device computes here, {text[:80]!r} names {len(devices)}; use {devices[0]}")
    return devices[0]


def _check(device: str, *, count: int) -> str:
    kind, _, index = device.partition(":")
    numbered = index.isascii() and index.isdigit()
    if device != "cpu" and not (kind == "cuda" and (numbered or device in ("cuda", "cuda:all"))):
        raise InputError(
            f"unknown device {device[:40]!r}; use auto, cpu, cuda, cuda:N, several as in cuda:0,cuda:1, or cuda:all"
        )
    if kind == "cuda" and (not count or (numbered and int(index) >= count)):
        raise InputError(f"device {device} is not there: torch sees {count} CUDA devices; use cpu")
    if device == "cuda:all":
        raise InputError("cuda:all is every CUDA device already; use it alone")
    return _current() if device == "cuda" else device


def _current() -> str:
    import torch  # imported by now; see pick_devices

    return f"cuda:{torch.cuda.current_device()}"

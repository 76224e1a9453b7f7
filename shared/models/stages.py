"""Stages of any network, told by a forward pass of a blank image.

A stage is what runs one after another at one size. Modules that shrink the image more than twofold are looked into;
pooling, and what is left of one place, is no stage.

Shape key: B images, C channels, H height, W width.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shared.errors import InputError
from shared.models.features import evaluating

LEAST_STAGES = 2
"""With fewer, a network has none: what a vision transformer's patch embedding gives is no map."""
CLEAR_SIZE = (128, 128)
"""Where a network takes any size, stages are told apart at this one."""
FAILURES = (RuntimeError, ValueError, AssertionError, TypeError)
"""What networks raise for a size that they do not take."""


def run_blank(model: nn.Module, *, sizes: Sequence[tuple[int, int]]) -> None:
    """One forward pass in evaluation mode at the first of the sizes that works; `InputError` where none does."""
    for size in sizes:
        try:
            _run(model, size=size)
        except FAILURES:
            # A network may take only the last of the sizes.
            continue
        return
    raise InputError(f"{type(model).__name__} takes no images of {', '.join(f'{h} x {w}' for h, w in sizes)}")


def _run(model: nn.Module, *, size: tuple[int, int]) -> None:
    first = next((tensor for tensor in model.parameters() if tensor.is_floating_point()), torch.zeros(()))
    with evaluating(model), torch.no_grad():
        model(torch.zeros(1, 3, *size, device=first.device, dtype=first.dtype))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    """One call of a module."""

    turn: int
    """When it ended."""
    before: int | None
    """Height of the map that it took; None for anything else."""
    after: int | None
    """Height of the map that it gave."""


def find_stages(model: nn.Module, *, sizes: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """Names of the modules that stages end with, told by a forward pass at the first of the sizes that works."""
    for size in sizes:
        try:
            calls = _watch(model, size=size)
        except FAILURES:
            # A network may take only the last of the sizes.
            continue
        return _ends_of_stages(model, calls=calls)
    return ()


def _watch(model: nn.Module, *, size: tuple[int, int]) -> Mapping[str, list[_Call]]:
    """Every call of every module, by name."""
    calls: dict[str, list[_Call]] = {}
    turns = iter(range(10**9))

    def watcher(name: str) -> object:
        def watch(_module: nn.Module, arguments: tuple[object, ...], output: object) -> None:
            taken = arguments[0] if arguments else None
            call = _Call(turn=next(turns), before=_height(taken), after=_height(output))
            calls.setdefault(name, []).append(call)

        return watch

    handles = [module.register_forward_hook(watcher(name)) for name, module in model.named_modules() if name]
    try:
        # A square: what has its channels last is none, and is not taken for a map.
        _run(model, size=(max(size), max(size)))
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _height(value: object) -> int | None:
    """Of a square map [B, C, H, W] with more than one place."""
    is_map = isinstance(value, Tensor) and value.ndim == 4 and value.shape[2] == value.shape[3] > 1
    return int(value.shape[2]) if is_map and isinstance(value, Tensor) else None


def _ends_of_stages(model: nn.Module, *, calls: Mapping[str, list[_Call]]) -> tuple[str, ...]:
    """The last module of each run of one size."""
    ends: list[tuple[int, str]] = []
    for call, name in sorted(_steps(model, prefix="", calls=calls), key=lambda step: step[0].turn):
        if call.after is None:
            continue
        if ends and ends[-1][0] == call.after:
            ends.pop()
        ends.append((call.after, name))
    return tuple(name for _, name in ends) if len(ends) >= LEAST_STAGES else ()


def _steps(module: nn.Module, *, prefix: str, calls: Mapping[str, list[_Call]]) -> Iterator[tuple[_Call, str]]:
    """Modules that run once and shrink the image at most twofold."""
    for short, child in module.named_children():
        name = f"{prefix}{short}"
        made = calls.get(name, [])
        leaf = next(child.children(), None) is None
        once = made[0] if len(made) == 1 else None
        keeps = once is not None and once.after is not None and (once.before or 0) <= 2 * once.after
        if once is not None and (keeps or leaf):
            if "pool" not in type(child).__name__.lower():
                yield once, name
        elif not leaf:
            yield from _steps(child, prefix=f"{name}.", calls=calls)

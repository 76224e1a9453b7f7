"""Feature maps of any network, taken from the same forward pass as its logits.

A network with a method ``maps(x)`` that its forward calls (all of the zoo) says itself what they are. Of any other, a
stage is what runs one after another at one size: map K is what the K-th stage ends with. Modules that shrink the image
more than twofold are looked into; pooling, and what is left of one place, is no map.

Shape key: B images, C channels, D feature width, H height, W width, K map.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

SHORTCUTS = ("downsample", "shortcut")
"""Parts of the names of batch norms that are beside the main path."""
LEAST_STAGES = 2
"""With fewer, a network has no maps: what a vision transformer's patch embedding gives is none."""
CLEAR_SIZE = (128, 128)
"""Where a network takes any size, stages are told apart at this one."""


class MapRecorder:
    """The maps of one network."""

    def __init__(self, model: nn.Module, *, image_size: tuple[int, int] | None, free_size: bool) -> None:
        """``image_size``: one that the network takes; ``free_size``: it may take others as well."""
        self._model = model
        self._names: tuple[str, ...] | None = None
        if not callable(getattr(model, "maps", None)):
            sizes = [CLEAR_SIZE, image_size] if free_size else [image_size]
            self._names = _find_stages(model, sizes=[size for size in sizes if size is not None])

    @contextmanager
    def recording(self, *, copies: bool = True) -> Iterator[list[Tensor]]:
        """The maps [B, C, H, W] of the forward pass within, f0 first; ``copies`` are safe from what runs in place."""
        kept: list[Tensor] = []
        if self._names is None:
            own = self._model.maps  # a method that nn.Module does not declare

            def recorded(x: Tensor) -> Sequence[Tensor]:
                found: Sequence[Tensor] = own(x)  # type: ignore[operator]  # checked to be callable
                kept.extend(found)
                return found

            # On this one object, for this call only.
            self._model.__dict__["maps"] = recorded
            try:
                yield kept
            finally:
                del self._model.__dict__["maps"]
            return

        def keep(_module: nn.Module, _arguments: object, output: Tensor) -> None:
            kept.append(output.clone() if copies else output)

        handles = [self._model.get_submodule(name).register_forward_hook(keep) for name in self._names]
        try:
            yield kept
        finally:
            for handle in handles:
                handle.remove()

    def margins(self, images_B3HW: Tensor) -> dict[int, Tensor]:
        """OFD's margin [C] of map K, for maps that a batch norm can be named for.

        That is the one that takes the map (before its activation), else the last that ran before the map was made, on
        the main path and with its channels.
        """
        turns = _Turns()
        calls: list[_NormCall] = []
        noting = _noting_norms(self._model, calls=calls, turns=turns)
        with self.recording(copies=False) as maps, noting, torch.no_grad(), turns:
            self._model(images_B3HW)
        norms = {number: _norm_of(one, calls=calls, made=turns.of(one)) for number, one in enumerate(maps)}
        return {number: ofd_margin(norm) for number, norm in norms.items() if norm is not None}


def attention_of(map_BCHW: Tensor) -> Tensor:
    """Zagoruyko and Komodakis 2017: ``normalize(mean_c(f^2))`` over places, float32 [B, H x W]."""
    return functional.normalize(map_BCHW.float().square().mean(dim=1).flatten(1), dim=1)


def ofd_margin(norm: nn.BatchNorm2d) -> Tensor:
    """Heo et al. 2019: the mean of what is negative after a batch norm, ``E[x | x < 0]`` of N(beta, gamma^2), [C].

    ``beta - s * phi(beta / s) / Phi(-beta / s)`` with s = |gamma|; as published, -3 s where less than 0.001 is below 0.
    """
    scale, mean = norm.weight.detach().double().abs(), norm.bias.detach().double()
    ratio = mean / scale
    below = torch.special.ndtr(-ratio)
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    return torch.where(below > 0.001, mean - scale * density / below, -3 * scale).float()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    """One call of a module."""

    turn: int
    """When it ended."""
    before: int | None
    """Height of the map that it took; None for anything else."""
    after: int | None
    """Height of the map that it gave."""


def _find_stages(model: nn.Module, *, sizes: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    for size in sizes:
        try:
            calls = _watch(model, size=size)
        except (RuntimeError, ValueError, AssertionError, TypeError):
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

    first = next((tensor for tensor in model.parameters() if tensor.is_floating_point()), torch.zeros(()))
    # A square: what has its channels last is none, and is not taken for a map.
    images = torch.zeros(1, 3, max(size), max(size), device=first.device, dtype=first.dtype)
    handles = [module.register_forward_hook(watcher(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            model(images)
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


class _Turns(TorchFunctionMode):
    """Counts operations, and remembers at which one a tensor was made."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self._made: dict[int, tuple[int, Tensor]] = {}

    def of(self, tensor: Tensor) -> int:
        """The turn that made a tensor."""
        return self._made.get(id(tensor), (self.now, tensor))[0]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what is asked, and count it."""
        result = func(*args, **(kwargs or {}))
        self.now += 1
        if isinstance(result, Tensor):
            # Kept alive, so that no later tensor gets its id.
            self._made.setdefault(id(result), (self.now, result))
        return result


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _NormCall:
    """A batch norm that runs."""

    name: str
    norm: nn.BatchNorm2d
    taken: Tensor
    turn: int
    """Operations before it."""


@contextmanager
def _noting_norms(model: nn.Module, *, calls: list[_NormCall], turns: _Turns) -> Iterator[None]:
    def noter(name: str, norm: nn.BatchNorm2d) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            calls.append(_NormCall(name=name, norm=norm, taken=arguments[0], turn=turns.now))

        return note

    norms = [(name, one) for name, one in model.named_modules() if isinstance(one, nn.BatchNorm2d) and one.affine]
    handles = [norm.register_forward_pre_hook(noter(name, norm)) for name, norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _norm_of(one: Tensor, *, calls: Sequence[_NormCall], made: int) -> nn.BatchNorm2d | None:
    taking = [call.norm for call in calls if call.taken is one]
    if taking:
        return taking[0]
    main = [call for call in calls if call.turn < made and not any(part in call.name for part in SHORTCUTS)]
    return next((call.norm for call in reversed(main) if call.norm.num_features == one.shape[1]), None)

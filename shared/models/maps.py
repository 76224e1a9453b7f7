"""Feature maps of any network, taken from the same forward pass as its logits.

A network with a method ``maps(x)`` that its forward calls (all of the zoo) says itself what they are. Of any other,
map K is what the K-th of its `stages` ends with.

Shape key: B images, C channels, D feature width, H height, W width, K map.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from shared.errors import InputError
from shared.models.activations import ActivationWatch, Before
from shared.models.stages import CLEAR_SIZE, find_stages, run_blank
from shared.outputs import ATTENTION, MAPS, PREACTS

SHORTCUTS = ("downsample", "shortcut")
"""Parts of the names of batch norms that are beside the main path."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """Maps of a forward pass, of the kinds that were asked for."""

    maps: Sequence[Tensor] = ()
    preacts: Sequence[Tensor] = ()
    """The same before their activation."""

    @property
    def count(self) -> int:
        """How many maps the network has; 0 where none were asked for."""
        return max(len(self.maps), len(self.preacts))


class MapRecorder:
    """The maps of one network."""

    def __init__(self, model: nn.Module, *, image_size: tuple[int, int] | None, free_size: bool) -> None:
        """``image_size``: one that the network takes; ``free_size``: it may take others as well."""
        self._model = model
        self._names: tuple[str, ...] | None = None
        self._sizes = [size for size in (image_size, CLEAR_SIZE if free_size else None) if size is not None]
        self._steps: tuple[tuple[int, ...], ...] | None = None
        self._listeners: list[Callable[[Tensor], None]] = []
        self._attached = False
        if not callable(getattr(model, "maps", None)):
            # Small images leave too few places to tell stages apart.
            self._names = find_stages(model, sizes=self._sizes[::-1])

    @contextmanager
    def recording(self, *, copies: bool = True, before_activation: bool = False) -> Iterator[list[Tensor]]:
        """The maps [B, C, H, W] of the forward pass within, f0 first; ``copies`` are safe from what runs in place.

        With ``before_activation``, each as it was before the activation that it is the result of. A map that is none,
        and that a norm and then an activation take, as the norm gives it; any other as it is. Raises `InputError`
        where activations run in another order than the first time.
        """
        kept: list[Tensor] = []
        copies = copies and self._names is not None
        if before_activation:
            with self._recording_before(kept, copies=copies):
                yield kept
        else:
            with self._telling(lambda one: kept.append(one.clone() if copies else one)):
                yield kept

    @contextmanager
    def recording_for(self, names: Sequence[str]) -> Iterator[Recorded]:
        """What the outputs ``maps.K``, ``preacts.K`` and ``attention.K`` of the forward pass within are made of."""
        before = [name.startswith(PREACTS) for name in names]
        with (
            _if(any(before), self.recording(before_activation=True)) as preacts,
            _if(not all(before), self.recording()) as maps,
        ):
            yield Recorded(maps=maps, preacts=preacts)

    @contextmanager
    def _recording_before(self, kept: list[Tensor], *, copies: bool) -> Iterator[None]:
        if self._steps is None:
            self._steps = self._find_steps()
        plan = self._steps

        def settle(found: list[Before]) -> None:
            if tuple(one.steps for one in found) != plan:
                raise InputError(
                    f"{type(self._model).__name__} runs other activations than when it was first looked at, so that"
                    " its maps before activation are not known: use its maps, or have all activations run every time"
                )
            kept.extend(one.tensor for one in found)

        steps = frozenset(step for one in plan for step in one)
        with self._watching(ActivationWatch(steps=steps, copies=copies), copies=copies, settle=settle):
            yield

    @contextmanager
    def _watching(
        self, watch: ActivationWatch, *, copies: bool, settle: Callable[[list[Before]], None]
    ) -> Iterator[None]:
        """Give ``settle`` what the maps of each forward pass were before, at its end."""
        found: list[Before] = []

        def notice(one: Tensor) -> None:
            # Asked at once: the map may be changed in place afterwards.
            made = watch.made(one)
            found.append(made or Before(tensor=one.clone() if copies else one, steps=(), direct=False, of=one))

        def begin(*_: object) -> None:
            found.clear()
            watch.begin()

        def end(*_: object) -> None:
            # Asked at the end: a network may say what its maps are before or after a norm takes them.
            settle([one if one.steps else watch.taken(one.of) or one for one in found])
            begin()

        handles = [self._model.register_forward_pre_hook(begin), self._model.register_forward_hook(end)]
        try:
            with self._telling(notice), watch:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _find_steps(self) -> tuple[tuple[int, ...], ...]:
        """Of each map, the numbers of the activations and norms that it comes from or goes to.

        A blank image tells: to remember all of them in a training step would take the memory of all activations.
        """
        found: list[Before] = []
        # Only this pass is looked at: whoever records already hears nothing of it.
        listeners, self._listeners = self._listeners, []
        try:
            with self._watching(ActivationWatch(), copies=False, settle=found.extend):
                run_blank(self._model, sizes=self._sizes)
        finally:
            self._listeners = listeners
        return tuple(one.steps for one in found)

    @contextmanager
    def _telling(self, listener: Callable[[Tensor], None]) -> Iterator[None]:
        """Tell ``listener`` of every map, when the network has made it."""
        with nullcontext() if self._attached else self._attaching():
            self._listeners.append(listener)
            try:
                yield
            finally:
                self._listeners.remove(listener)

    def _tell(self, one: Tensor) -> None:
        for listener in self._listeners:
            listener(one)

    @contextmanager
    def _attaching(self) -> Iterator[None]:
        self._attached = True
        detach = self._attach_to_method() if self._names is None else self._attach_to(self._names)
        try:
            yield
        finally:
            detach()
            self._attached = False

    def _attach_to_method(self) -> Callable[[], None]:
        own = self._model.maps  # a method that nn.Module does not declare

        def recorded(x: Tensor) -> Sequence[Tensor]:
            found: Sequence[Tensor] = own(x)  # type: ignore[operator]  # checked to be callable
            for one in found:
                self._tell(one)
            return found

        # On this one object, for this time only.
        self._model.__dict__["maps"] = recorded
        return lambda: self._model.__dict__.pop("maps")

    def _attach_to(self, names: Sequence[str]) -> Callable[[], None]:
        def tell(_module: nn.Module, _arguments: object, output: Tensor) -> None:
            self._tell(output)

        handles = [self._model.get_submodule(name).register_forward_hook(tell) for name in names]

        def detach() -> None:
            for handle in handles:
                handle.remove()

        return detach

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


def outputs_of_maps(found: Recorded, *, names: Sequence[str]) -> dict[str, Tensor]:
    """Outputs by name, each ``maps.K``, ``preacts.K`` or ``attention.K``, of maps recorded for them."""
    makers: Mapping[str, Callable[[int], Tensor]] = {
        MAPS: lambda number: found.maps[number],
        PREACTS: lambda number: found.preacts[number],
        ATTENTION: lambda number: attention_of(found.maps[number]),
    }
    return {name: makers[kind + dot](int(number)) for name in names for kind, dot, number in [name.partition(".")]}


def attention_of(map_BCHW: Tensor) -> Tensor:
    """Zagoruyko and Komodakis 2017: ``normalize(mean_c(f^2))`` over places, float32 [B, H x W]."""
    return functional.normalize(map_BCHW.float().square().mean(dim=1).flatten(1), dim=1)


@contextmanager
def _if(wanted: bool, recording: AbstractContextManager[list[Tensor]]) -> Iterator[list[Tensor]]:
    with recording if wanted else nullcontext([]) as kept:
        yield kept


def ofd_margin(norm: nn.BatchNorm2d) -> Tensor:
    """Heo et al. 2019: the mean of what is negative after a batch norm, ``E[x | x < 0]`` of N(beta, gamma^2), [C].

    ``beta - s * phi(beta / s) / Phi(-beta / s)`` with s = |gamma|; as published, -3 s where less than 0.001 is below 0.
    """
    scale, mean = norm.weight.detach().double().abs(), norm.bias.detach().double()
    ratio = mean / scale
    below = torch.special.ndtr(-ratio)
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    return torch.where(below > 0.001, mean - scale * density / below, -3 * scale).float()


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

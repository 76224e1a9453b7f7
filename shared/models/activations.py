"""What tensors of a running network were before their last activation, whatever the network is built of.

Shape key: none; tensors have any shape.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

ACTIVATIONS = (
    "celu", "elu", "gelu", "hardswish", "hardtanh", "leaky_relu", "mish", "prelu", "relu", "relu6", "rrelu", "selu",
    "silu", "softplus",
)  # fmt: skip
"""torch's functions that are undone, whether or not they work in place."""
NORMS = ("batch_norm", "group_norm", "instance_norm")
"""What stands between a map and its activation in networks that normalise and activate first."""
MOVES = ("__getitem__", "contiguous", "flatten", "permute", "reshape", "squeeze", "transpose", "unsqueeze", "view")
"""What changes places and no values."""
JOINS = ("cat", "concat", "concatenate")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Before:
    """What a tensor was before its activation."""

    tensor: Tensor
    steps: tuple[int, ...]
    """The activations that are undone, and a norm before one: their numbers in the forward pass."""
    direct: bool
    """Whether the tensor is an activation's very result, not moved since."""
    of: Tensor
    """The tensor itself: held, so that no later one gets its id."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Normed:
    """What a norm gave."""

    of: Tensor
    step: int
    result: Tensor


class ActivationWatch(TorchFunctionMode):
    """Remembers, while it is entered, what activations took; `begin` before each forward pass.

    Activations and norms are counted from 0 in the order in which they run. ``steps`` are the only ones that are
    remembered, None is all: they stay in memory. ``copies`` are safe from what runs in place afterwards.
    """

    def __init__(self, *, steps: frozenset[int] | None = None, copies: bool = False) -> None:
        super().__init__()
        self._steps = steps
        self._copies = copies
        self._special: dict[str, Callable[..., Any]] = {
            **dict.fromkeys(ACTIVATIONS, self._activate),
            **dict.fromkeys([f"{name}_" for name in ACTIVATIONS], self._activate),
            **dict.fromkeys(NORMS, self._normalise),
            **dict.fromkeys(MOVES, self._move),
            **dict.fromkeys(JOINS, self._join),
        }
        self.begin()

    def begin(self) -> None:
        """Forget everything, and count from 0."""
        self._next = 0
        self._made: dict[int, Before] = {}
        self._taken: dict[int, Before] = {}
        self._normed: dict[int, _Normed] = {}

    def made(self, tensor: Tensor) -> Before | None:
        """What an activation made this tensor of; to be asked before anything changes the tensor in place."""
        return self._made.get(id(tensor))

    def taken(self, tensor: Tensor) -> Before | None:
        """What the first norm that took this tensor gave to an activation."""
        return self._taken.get(id(tensor))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what is asked, and remember it."""
        name = getattr(func, "__name__", "")
        options = kwargs or {}
        in_place = _writes(name) or bool(options.get("inplace"))
        special = self._special.get(name)
        if special is not None and args:
            return special(func, args, options, in_place)
        if in_place and args:
            self._forget(args[0])
        return func(*args, **options)

    def _forget(self, tensor: object) -> None:
        """It is no longer what it was made to be."""
        self._made.pop(id(tensor), None)
        self._normed.pop(id(tensor), None)

    def _step(self) -> tuple[int, bool]:
        """(number of this step, whether it is to be remembered)."""
        step = self._next
        self._next += 1
        return step, self._steps is None or step in self._steps

    def _activate(self, func: Any, args: Any, options: Any, in_place: bool) -> Any:
        taken: Tensor = args[0]
        step, wanted = self._step()
        normed = self._normed.get(id(taken))
        if in_place:
            self._forget(taken)
        if not wanted:
            return func(*args, **options)
        before = taken.clone() if in_place or self._copies else taken
        result = func(*args, **options)
        self._made[id(result)] = Before(tensor=before, steps=(step,), direct=True, of=result)
        if normed is not None:
            found = Before(tensor=before, steps=(normed.step, step), direct=False, of=normed.of)
            self._taken.setdefault(id(normed.of), found)
        return result

    def _normalise(self, func: Any, args: Any, options: Any, _in_place: bool) -> Any:
        step, wanted = self._step()
        result = func(*args, **options)
        if wanted:
            self._normed[id(result)] = _Normed(of=args[0], step=step, result=result)
        return result

    def _move(self, func: Any, args: Any, options: Any, _in_place: bool) -> Any:
        result = func(*args, **options)
        found = self._made.get(id(args[0]))
        if found is not None and result is not args[0]:
            moved = func(found.tensor, *args[1:], **options)
            self._made[id(result)] = Before(tensor=moved, steps=found.steps, direct=False, of=result)
        return result

    def _join(self, func: Any, args: Any, options: Any, _in_place: bool) -> Any:
        """Of what was moved since, the activation is not the last: ShuffleNetV2 passes half of its channels on."""
        result = func(*args, **options)
        found = [self._made.get(id(one)) for one in args[0]]
        direct = [one if one is not None and one.direct else None for one in found]
        steps = tuple(step for one in direct if one is not None for step in one.steps)
        if steps:
            parts = [own if one is None else one.tensor for own, one in zip(args[0], direct, strict=True)]
            joined = func(parts, *args[1:], **options)
            self._made[id(result)] = Before(tensor=joined, steps=steps, direct=False, of=result)
        return result


@cache
def _writes(name: str) -> bool:
    """Whether torch's function of this name changes what it is given."""
    if name.endswith("__"):
        return name == "__setitem__" or name.startswith("__i")
    return name.endswith("_")

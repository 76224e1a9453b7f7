"""Which losses exist: every `DistillLoss` with a name in a file of this folder, found by itself."""

from importlib import import_module
from pkgutil import iter_modules

import student_trainer.losses as package
from shared.errors import UnknownNameError
from student_trainer.losses.base import DistillLoss
from student_trainer.losses.sums import build_sum


def _discover() -> dict[str, type[DistillLoss]]:
    found: dict[str, type[DistillLoss]] = {}
    for module_info in iter_modules(package.__path__, prefix=f"{package.__name__}."):
        if module_info.name == __name__:
            continue
        for item in vars(import_module(module_info.name)).values():
            if isinstance(item, type) and issubclass(item, DistillLoss) and item.__module__ == module_info.name:
                found |= {item.name: item} if "name" in vars(item) else {}
    return dict(sorted(found.items()))


LOSSES: dict[str, type[DistillLoss]] = _discover()
"""Loss classes by name."""


def loss_class(name: str) -> type[DistillLoss]:
    """The class called ``name``; UnknownNameError lists the known ones."""
    if name not in LOSSES:
        raise UnknownNameError(f"unknown loss {name!r}; known: {', '.join(LOSSES)}")
    return LOSSES[name]


def build_loss(name: str, /, **hyper: object) -> DistillLoss:
    """The loss called ``name``, or a sum such as ``fitnets+ckd``; hyper-parameters are values or texts of options.

    Those of a sum are called ``fitnets.maps`` and, for the weights, ``fitnets.weight``.
    Raises UnknownNameError for a name, InputError for a hyper-parameter that does not exist or is out of range.
    """
    if "+" in name:
        return build_sum(name, hyper, build=build_loss)
    kind = loss_class(name)
    read = kind.read_hyper(hyper)
    loss = kind(**read)
    loss.settings = kind.defaults() | read
    return loss

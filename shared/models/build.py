"""Networks by spec: ``zoo:``, ``torchvision:``, ``timm:``, ``export:FILE.pt2`` and ``python:FILE.py:FUNCTION``."""

import difflib
import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from shared.errors import InputError, UnknownNameError
from shared.models.exported import load_exported
from shared.models.zoo_registry import find_network
from shared.user_code import UserCode, run_file

KINDS = ("zoo", "torchvision", "timm", "export", "python")
WITHOUT_AUXILIARY_HEADS = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}
"""Arguments of torchvision networks that would otherwise grow heads of their own while training."""


def build_model(spec: str, *, classes: int, seed: int = 0, trust_export: bool = False) -> nn.Module:
    """An untrained network of float [B, 3, H, W] to logits [B, classes]; a bare name is of the zoo.

    The same seed gives the same weights at every start, and torch's global generator is left as it was. ``export:`` and
    ``python:`` networks have whatever weights and classes they come with. Raises `UnknownNameError` and `InputError`.
    """
    kind, name = parse_spec(spec)
    if classes < 1:
        raise InputError(f"{spec} with {classes} classes; a classifier has 1 or more")
    with seeded(seed):
        if kind == "zoo":
            return find_network(name)[1](classes=classes)
        if kind == "torchvision":
            return _torchvision(name, classes=classes)
        if kind == "timm":
            return _timm(name, classes=classes)
        if kind == "export":
            return load_exported(Path(name), trust_export=trust_export)
        return _from_python(name, classes=classes)


def parse_spec(spec: str) -> tuple[str, str]:
    """Kind and name of a model spec; `UnknownNameError` for another kind."""
    kind, colon, name = spec.partition(":")
    if not colon:
        kind, name = "zoo", spec
    if kind not in KINDS:
        raise UnknownNameError(f"unknown kind of network {kind[:40]!r} in {spec[:80]!r}; known: {', '.join(KINDS)}")
    return kind, name


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's CPU generator starts at ``seed`` inside, and is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would seed every CUDA device for good.
        torch.default_generator.manual_seed(seed)
        yield


def import_timm() -> ModuleType:
    """timm, which is an extra; `InputError` where it is not installed."""
    try:
        # An extra that takes a second to import.
        import timm
    except ImportError as error:
        raise InputError("timm: networks need the extra: pip install 'teachonce[timm]'") from error
    found: ModuleType = timm
    return found


def check_torchvision_name(name: str) -> None:
    """Raise `UnknownNameError` unless torchvision has a classifier of this name."""
    # torchvision takes a second to import, and zoo networks do without.
    import torchvision  # type: ignore[import-untyped]  # ships no type information

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise _unknown(f"torchvision:{name}", known=known)


def _torchvision(name: str, *, classes: int) -> nn.Module:
    # torchvision takes a second to import, and zoo networks do without.
    import torchvision

    check_torchvision_name(name)
    extra = WITHOUT_AUXILIARY_HEADS.get(name, {})
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **extra)
    return model


def _timm(name: str, *, classes: int) -> nn.Module:
    timm = import_timm()
    if not timm.is_model(name):
        raise _unknown(f"timm:{name}", known=timm.list_models())
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes)
    return model


def _unknown(spec: str, *, known: Iterable[str]) -> UnknownNameError:
    names = list(known)
    close = difflib.get_close_matches(spec.partition(":")[2], names, n=3, cutoff=0.5)
    remedy = f"did you mean {', '.join(close)}?" if close else f"{len(names)} known, such as {', '.join(names[:5])}"
    return UnknownNameError(f"unknown network {spec[:80]}; {remedy}")


def python_file(name: str) -> tuple[Path, str]:
    """File and function of ``FILE.py:FUNCTION``."""
    file, colon, function = name.rpartition(":")
    if not colon or not function.isidentifier():
        raise InputError(f"python:{name[:80]} is not python:FILE.py:FUNCTION")
    if not Path(file).is_file():
        raise InputError(f"python:{name[:80]}: no file {file}")
    return Path(file), function


def _from_python(name: str, *, classes: int) -> nn.Module:
    path, function_name = python_file(name)
    with UserCode(str(path)):
        module = run_file(path)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UnknownNameError(f"{path} has no function {function_name}; it has {', '.join(_functions(module))}")
    parameters = inspect.signature(function).parameters.values()
    takes_classes = any(p.name == "classes" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    with UserCode(str(path)):
        model = function(classes=classes) if takes_classes else function()
    if not isinstance(model, nn.Module):
        raise InputError(f"{path}:{function_name} returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _functions(module: ModuleType) -> list[str]:
    return [name for name, value in vars(module).items() if inspect.isfunction(value)] or ["none"]

"""Weights that torchvision publishes: which file, which preprocessing, how many classes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch

from shared.errors import InputError
from shared.models.build import check_torchvision_name
from shared.models.preprocessing import Preprocessing


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedWeights:
    """One published file of one architecture."""

    path: Path
    """The file, on this machine."""
    classes: int
    """Width of its logits."""
    preprocessing: Preprocessing
    """What it was evaluated with."""


def find_published(name: str, weights: Path) -> PublishedWeights | None:
    """The published weights that ``weights`` names, by their name in torchvision (``DEFAULT``) or by their file's name.

    Named weights are downloaded into torch's cache where they are not there yet. None for any other file.
    """
    # torchvision takes a second to import, and zoo networks do without.
    import torchvision  # type: ignore[import-untyped]  # ships no type information

    check_torchvision_name(name)
    members = torchvision.models.get_model_weights(name).__members__
    if weights.is_file():
        named = [member for member in members.values() if Path(member.url).name == weights.name]
        return _described(named[0], path=weights) if named else None
    if str(weights) not in members:
        raise InputError(f"no weights file {weights}, and torchvision:{name} has only {', '.join(members) or 'none'}")
    member = members[str(weights)]
    return _described(member, path=_cached(member.url, what=f"torchvision:{name} {weights}"))


def _cached(url: str, *, what: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        hash_prefix = path.stem.rpartition("-")[2]
        torch.hub.download_url_to_file(url, str(path), hash_prefix=hash_prefix, progress=False)
    except (URLError, OSError, RuntimeError) as error:
        raise InputError(f"cannot download {what} ({error}); put {url} at {path}, or give --weights FILE") from error
    return path


def _described(member: Any, *, path: Path) -> PublishedWeights:
    transforms = member.transforms()
    resize, crop = transforms.resize_size[0], transforms.crop_size[0]
    return PublishedWeights(
        path=path,
        classes=len(member.meta["categories"]),
        preprocessing=Preprocessing(
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
            resize=resize,
            crop=(crop, crop),
            interpolation=transforms.interpolation.value,
        ),
    )

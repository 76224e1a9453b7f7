"""A network with its weights, preprocessing and identity, from a spec.

Shape key: B images.
"""

import hashlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from shared.descriptions import TeacherDescription
from shared.errors import InputError
from shared.identity import teacher_id, weights_digest
from shared.models.build import build_model, import_timm, parse_spec, python_file
from shared.models.checkpoint import (
    COUNTER,
    CheckpointMetadata,
    check_is_file,
    fill,
    load_weights,
    read_metadata,
    read_tensors,
)
from shared.models.exported import fixed_sizes, load_exported
from shared.models.features import TRIAL_SIZES, LogitsAndFeatures
from shared.models.preprocessing import Preprocessing, Triple
from shared.models.published import PublishedWeights, find_published
from shared.models.zoo_registry import find_network

OLD_DENSENET_NAME = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)$")
"""DenseNet's published files call ``norm1`` ``norm.1``."""
log = logging.getLogger(__name__)


class PixelStatistics(Protocol):
    """Mean and standard deviation of pixels / 255 per channel, as a data set's ``normalisation`` has them."""

    @property
    def mean(self) -> Triple:
        """Mean."""

    @property
    def std(self) -> Triple:
        """Standard deviation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """All of a teacher but its device."""

    model: LogitsAndFeatures
    """Logits and features of normalised images."""
    arch: str
    """First part of the teacher's id."""
    weights: str
    """SHA-256 (hex) of the weights."""
    preprocessing: Preprocessing
    """From canonical pixels to the network."""
    batch: int | None = None
    """The only B that the network takes; None where it takes any."""

    def describe(self, precision: str) -> TeacherDescription:
        """What a cache records about the teacher that computes in ``precision``."""
        preprocessing, classes = self.preprocessing.to_json(), self.model.classes
        return TeacherDescription(
            id=teacher_id(
                arch=self.arch,
                weights=self.weights,
                preprocessing=preprocessing,
                precision=precision,
                classes=classes,
            ),
            arch=self.arch,
            weights=self.weights,
            preprocessing=preprocessing,
            precision=precision,
            classes=classes,
            features=self.model.feature_width,
            libraries={name: version(name) for name in ("torch", "pillow", "numpy")},
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    """Where weights come from and what they say about themselves."""

    path: Path | None
    metadata: CheckpointMetadata
    published: PublishedWeights | None = None


def load_network(
    spec: str,
    *,
    weights: Path | None = None,
    classes: int | None = None,
    normalisation: PixelStatistics | None = None,
    trust_export: bool = False,
) -> Network:
    """The network of a spec, or of a checkpoint's path; see `shared.teacher.load_teacher`."""
    if spec.endswith(".safetensors"):
        if weights is not None:
            raise InputError(f"{spec} holds weights already; leave out --weights {weights}")
        weights, spec = Path(spec), _architecture(Path(spec))
    kind, name = parse_spec(spec)
    if kind == "export":
        if weights is not None:
            raise InputError(f"{spec} brings its own weights; leave out --weights {weights}")
        return _exported(Path(name), normalisation=normalisation, trust_export=trust_export)
    source = _source(kind, name, weights=weights)
    model = build_model(spec, classes=_classes(spec, source=source, asked=classes))
    _fill(model, spec=spec, source=source)
    wrapped = LogitsAndFeatures(model, image_size=source.metadata.image_size)
    digest = weights_digest(_plain_tensors(model))
    if kind == "python":
        path, _ = python_file(name)
        digest = hashlib.sha256(f"{digest}:{hashlib.sha256(path.read_bytes()).hexdigest()}".encode()).hexdigest()
    preprocessing = _preprocessing(spec, model=model, source=source, normalisation=normalisation)
    return Network(
        model=wrapped,
        arch=architecture_name(kind, name),
        weights=digest,
        preprocessing=_fitted(preprocessing, model=wrapped),
    )


def architecture_name(kind: str, name: str) -> str:
    """What a teacher's id begins with: lower case, safe in paths and URLs; outside the zoo with its origin."""
    if kind == "zoo":
        return find_network(name)[0].lower()
    if kind == "export":
        return "export"
    last = name.rpartition(":")[2] if kind == "python" else name
    return f"{kind}.{re.sub(r'[^a-z0-9._-]', '_', last.lower())[:40]}"


def _architecture(path: Path) -> str:
    architecture = read_metadata(path).architecture
    if not architecture:
        raise InputError(f"{path} does not say its architecture; use --teacher zoo:NAME --weights {path}")
    if parse_spec(architecture)[0] in {"python", "export"}:
        # A file of weights must not decide which code runs.
        raise InputError(
            f"{path} was made with {architecture[:80]}; use --teacher {architecture[:80]} --weights {path}"
        )
    return architecture


def _source(kind: str, name: str, *, weights: Path | None) -> _Source:
    if weights is None:
        return _Source(path=None, metadata=CheckpointMetadata())
    if weights.suffix == ".safetensors" and weights.is_file():
        return _Source(path=weights, metadata=read_metadata(weights))
    published = find_published(name, weights) if kind == "torchvision" else None
    if published is None:
        check_is_file(weights)
    return _Source(path=published.path if published else weights, metadata=CheckpointMetadata(), published=published)


def _classes(spec: str, *, source: _Source, asked: int | None) -> int:
    said = source.metadata.classes or (source.published.classes if source.published else 0)
    if said and asked and said != asked:
        log.warning("weights %s have %d classes, not %d: using theirs", source.path, said, asked)
    if said or asked:
        return said or asked or 0
    raise InputError(f"{spec}: nothing says how many classes; give --classes N, or weights whose metadata does")


def _fill(model: nn.Module, *, spec: str, source: _Source) -> None:
    if source.path is None:
        if not spec.startswith("python:"):
            log.warning("%s has no weights: initialised from seed 0", spec)
        return
    if source.published is not None:
        _load_published(model, path=source.path)
    else:
        load_weights(model, source.path)


def _load_published(model: nn.Module, *, path: Path) -> None:
    """torchvision's file without the auxiliary heads, which only training uses; checked by name as any other."""
    tensors = {
        OLD_DENSENET_NAME.sub(r"\1\2", name): tensor
        for name, tensor in read_tensors(path).items()
        if not name.startswith(("aux1.", "aux2.", "AuxLogits."))
    }
    fill(model, tensors, origin=str(path))
    if hasattr(model, "transform_input"):
        # These two were ported with another normalisation, which they undo themselves.
        setattr(model, "transform_input", True)  # noqa: B010  (a plain attribute that nn.Module does not declare)


def _plain_tensors(model: nn.Module) -> Iterator[tuple[str, str, list[int], bytes]]:
    for name, tensor in model.state_dict().items():
        if not name.endswith(COUNTER):
            yield name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), _bytes(tensor)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _preprocessing(
    spec: str, *, model: nn.Module, source: _Source, normalisation: PixelStatistics | None
) -> Preprocessing:
    """The weights' own, else timm's for its own number of classes, else the data set's."""
    metadata = source.metadata
    if metadata.mean is not None and metadata.std is not None:
        return Preprocessing.for_size(metadata.image_size, mean=metadata.mean, std=metadata.std)
    if source.published is not None:
        return source.published.preprocessing
    own = _timm_preprocessing(model) if spec.startswith("timm:") and source.path is not None else None
    if own is not None:
        return own
    plain = _from_statistics(spec, normalisation=normalisation)
    return Preprocessing.for_size(metadata.image_size, mean=plain.mean, std=plain.std)


def _from_statistics(spec: str, *, normalisation: PixelStatistics | None) -> Preprocessing:
    if normalisation is None:
        log.warning("%s: nothing says its normalisation; pixels / 255 are used as they are", spec)
        return Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return Preprocessing(mean=normalisation.mean, std=normalisation.std)


def _timm_preprocessing(model: nn.Module) -> Preprocessing | None:
    """What timm evaluates this network with, if it has the published number of classes."""
    timm = import_timm()
    published = getattr(model, "pretrained_cfg", None) or {}
    if published.get("num_classes") != getattr(model, "num_classes", None):
        return None
    config = timm.data.resolve_data_config({}, model=model)
    height, width = config["input_size"][1:]
    return Preprocessing(
        mean=config["mean"],
        std=config["std"],
        resize=int(height / config["crop_pct"]),
        crop=(height, width),
        interpolation=config["interpolation"],
    )


def _fitted(preprocessing: Preprocessing, *, model: LogitsAndFeatures) -> Preprocessing:
    """With a resize to the network's size, where it takes one size only, or none as small as the first tried."""
    if preprocessing.output_size is None and model.head.image_size != TRIAL_SIZES[0]:
        return replace(preprocessing, resize=model.head.image_size)
    return preprocessing


def _exported(path: Path, *, normalisation: PixelStatistics | None, trust_export: bool) -> Network:
    program = load_exported(path, trust_export=trust_export)
    batch, height, width = fixed_sizes(program)
    preprocessing = _from_statistics(f"export:{path}", normalisation=normalisation)
    if height is not None and width is not None:
        preprocessing = replace(preprocessing, resize=(height, width))
    return Network(
        model=LogitsAndFeatures(program),
        arch="export",
        weights=hashlib.sha256(path.read_bytes()).hexdigest(),
        preprocessing=preprocessing,
        batch=batch,
    )

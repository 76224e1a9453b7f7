"""What a cache writes down about a teacher and a data set, and later holds both sides to."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherDescription:
    """A teacher without its weights."""

    id: str
    """``{arch}-{12 hex}``, see `shared.identity.teacher_id`."""
    arch: str
    """Architecture name, such as ``wrn_40_2``."""
    weights: str
    """SHA-256 (hex) of the weights."""
    preprocessing: Mapping[str, Any]
    """Resize and normalisation between canonical pixels and the network; JSON values only."""
    precision: str
    """``float32``, ``bfloat16`` or ``float16``: the arithmetic of the forward pass."""
    classes: int
    """Width of the logits."""
    features: int
    """Width of the penultimate features."""
    libraries: Mapping[str, str] = field(default_factory=dict)
    """Versions that produced the answers; recorded, not part of the id."""

    def attributes(self) -> dict[str, Any]:
        """The description as JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetDescription:
    """A data set without its images."""

    name: str
    """``NAME/SPLIT``, such as ``digits/train``."""
    rows: int
    """Number of rows; 0 for uploads, which grow."""
    classes: tuple[str, ...]
    """Class names by label."""
    fingerprint: str
    """SHA-256 (hex) over keys, labels and class names, see `shared.identity.dataset_fingerprint`; empty for uploads."""
    view_policy: str
    """Which numbered views exist, such as ``crop4flip``, with all parameters; see `shared.view_policy`."""
    decoder: str = ""
    """Library and version that decoded the pixels, or drew the random views of them."""

    def attributes(self) -> dict[str, Any]:
        """The description as JSON values."""
        return asdict(self) | {"classes": list(self.classes)}

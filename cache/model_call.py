"""One batch that went through a model, as far as clock and machine can tell."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ModelCall:
    """Compared by identity: what is said about one call belongs together."""

    began_s: float
    """When it began, seconds since 1970 (UTC)."""
    duration_s: float
    """How long the model took, failed calls included."""
    images: int
    """Images of the whole batch, whoever asked for them; where input gradients are kept, an image is two."""
    device: str
    """Such as ``cpu`` or ``cuda:0``."""
    versions: Mapping[str, str]
    """Library to version."""

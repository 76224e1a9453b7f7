"""What a file of answers says about who computed them, and what its user adds.

Shape key: S answers, C classes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cache.layout import AnyArray
from cache.records import teacher_from
from cache.tensor_file import TensorFile
from shared.descriptions import TeacherDescription
from shared.errors import InputError
from shared.identity import teacher_id


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherFacts:
    """What the user says about who computed the answers; all None where the file says it."""

    arch: str | None = None
    weights: str | None = None
    """SHA-256 (hex) of the weights, or of whatever tells them from others."""
    precision: str = "float32"


def exported_facts(file: TensorFile) -> dict[str, Any]:
    """What an export says about itself; empty for files of others."""
    said = {}
    for name in ("teacher", "dataset", "outputs"):
        try:
            value = json.loads(file.metadata.get(name, "null"))
        except ValueError:
            value = None
        if isinstance(value, dict):
            said[name] = value
    return said


def exported_history(file: TensorFile) -> list[dict[str, Any]]:
    """What an export says its answers were computed with, see `cache.history.summarise_cache`; else empty."""
    try:
        value = json.loads(file.metadata.get("history", "[]"))
    except ValueError:
        return []
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def describe_teacher(
    file: TensorFile, *, said: Mapping[str, Any], facts: TeacherFacts, outputs: Mapping[str, AnyArray]
) -> TeacherDescription:
    """The teacher of an export as it was; else one of what the user says, never with the id of one that we ran."""
    classes = outputs["logits"].shape[1]
    features = outputs["features"].shape[1] if "features" in outputs else 0
    if "teacher" in said and facts.arch is None and facts.weights is None:
        try:
            return teacher_from(said["teacher"])
        except TypeError as error:
            raise InputError(f"the teacher in {file.path} is not described in full ({error}): give --arch") from error
    if facts.arch is None or facts.weights is None:
        raise InputError(
            f"{file.path} does not say who computed it: give --arch NAME, and --weights with the weights' file or "
            "SHA-256, or any words that tell them from others"
        )
    # Nobody can vouch for what was done to the pixels before they were answered.
    preprocessing = {"imported": True}
    return TeacherDescription(
        id=teacher_id(
            arch=facts.arch,
            weights=facts.weights,
            preprocessing=preprocessing,
            precision=facts.precision,
            classes=classes,
        ),
        arch=facts.arch,
        weights=facts.weights,
        preprocessing=preprocessing,
        precision=facts.precision,
        classes=classes,
        features=features,
    )


def class_names(file: TensorFile, *, count: int) -> tuple[str, ...]:
    """Class names: an array or a JSON list called classes, else numbers."""
    given = file.get("classes")
    if given is None and "classes" in file.metadata:
        try:
            given = np.array(json.loads(file.metadata["classes"]))
        except ValueError as error:
            raise InputError(f"classes in {file.path} is no JSON list ({error})") from error
    if given is None:
        return tuple(str(label) for label in range(count))
    if given.shape != (count,):
        raise InputError(f"classes in {file.path} must be {count} names; got {list(given.shape)}")
    return tuple(str(name) for name in given.tolist())

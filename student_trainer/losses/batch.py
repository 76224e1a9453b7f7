"""What a loss is given: one training batch, student and teacher side by side.

Shape key: B batch, C classes, D feature width, H height, W width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from shared.errors import InputError
from shared.outputs import ATTENTION, MAPS, PREACTS, map_number


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DistillBatch:
    """One batch. Whatever a loss does not need may be None."""

    student_logits: Tensor
    """float [B, C], with gradient."""
    teacher_logits: Tensor | None = None
    """float [B, C]; half precision is fine."""
    labels: Tensor | None = None
    """int64 [B]."""
    rows: Tensor | None = None
    """int64 [B]: rows of the data set."""
    views: Tensor | None = None
    """int64 [B]: the views that the teacher saw."""
    student_features: Tensor | None = None
    """float [B, D]: input of the student's last linear layer."""
    teacher_features: Tensor | None = None
    """float [B, D] of the teacher; its D may differ from the student's."""
    student_maps: tuple[Tensor, ...] = ()
    """Feature maps, each float [B, C, H, W]."""
    teacher_maps: tuple[Tensor, ...] = ()
    """The teacher's feature maps, each float [B, C, H, W]; all as they are, or all before their last activation."""
    teacher_attention: tuple[Tensor, ...] = ()
    """The teacher's maps reduced to attention, each float [B, H x W] at length 1 over its places."""
    soft_labels: Tensor | None = None
    """float [B, C]: label distributions, in the place of the labels where an image shows two rows."""
    mix: tuple[Tensor, Tensor] | None = None
    """(partner int64 [B], weight float [B]) of mixed inputs."""
    student_inputs: Tensor | None = None
    """float [B, 3, H, W], normalised."""
    teacher_input_grad: Tensor | None = None
    """float [B, 3, H, W]."""
    teacher_constants: Mapping[str, Tensor] | None = None
    """What the teacher says once for all samples, by name."""

    @staticmethod
    def teacher_fields(outputs: Mapping[str, Tensor]) -> dict[str, object]:
        """The fields that a teacher's outputs, by name, are; maps and attention in the order in which they come.

        Maps are ``maps.K`` or ``preacts.K``; InputError where both are given.
        """
        maps = [name for name in outputs if map_number(name) is not None]
        fields: dict[str, object] = {f"teacher_{name}": value for name, value in outputs.items() if name not in maps}
        kinds = {kind for kind in (MAPS, PREACTS) if any(name.startswith(kind) for name in maps)}
        if len(kinds) > 1:
            named = ", ".join(name for name in maps if not name.startswith(ATTENTION))
            raise InputError(
                f"a batch holds maps or maps before activation, not both ({named}); gather one kind for each loss"
            )
        for field, kind in (("teacher_maps", next(iter(kinds), MAPS)), ("teacher_attention", ATTENTION)):
            tensors = tuple(outputs[name] for name in maps if name.startswith(kind))
            fields |= {field: tensors} if tensors else {}
        return fields

    def select(self, positions: Tensor) -> "DistillBatch":
        """The samples at ``positions`` (int64 or bool), every field alike; a mixed batch cannot be cut."""
        if self.mix is not None:
            raise ValueError("a mixed batch cannot be cut: its partners are positions")
        changed: dict[str, object] = {}
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, Tensor):
                changed[name] = value[positions]
            elif isinstance(value, tuple):
                changed[name] = tuple(item[positions] for item in value)
        return replace(self, **changed)  # type: ignore[arg-type]

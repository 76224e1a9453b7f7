"""A student that says, beside its logits, what a loss compares: its features and its feature maps.

Shape key: B batch, C classes, D feature width, H height, W width.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shared.errors import InputError
from shared.models.features import LogitsAndFeatures, evaluating
from shared.models.maps import MapRecorder
from shared.outputs import PREACTS, map_number
from student_trainer.losses.base import DistillLoss
from student_trainer.losses.facts import MapShape


class StudentAnswer(NamedTuple):
    """What a student said about a batch."""

    logits: Tensor
    """float [B, C]."""
    features: Tensor | None = None
    """float [B, D], where they were asked for."""
    maps: tuple[Tensor, ...] = ()
    """Those asked for, in their order, each float [B, channels, H, W]."""


class StudentOutputs(nn.Module):
    """Any student, giving a `StudentAnswer`. InputError for one that lacks what the loss compares."""

    def __init__(self, student: nn.Module, *, loss: DistillLoss, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.feature_width: int | None = None
        """D; None where no features are asked for."""
        self.map_shapes: tuple[MapShape, ...] = ()
        """Of the maps asked for, in their order."""
        self.map_count = 0
        """How many maps the student has; 0 where none are asked for."""
        self.model: nn.Module = student
        if "student_features" in loss.needs:
            self.model = LogitsAndFeatures(student, image_size=image_size)
            self.feature_width = self.model.feature_width
        self._recorder: MapRecorder | None = None
        self._maps: tuple[tuple[int, bool], ...] = ()
        if "student_maps" in loss.needs:
            self._recorder = MapRecorder(student, image_size=image_size, free_size=True)
            shapes = _shapes_of(student, recorder=self._recorder, image_size=image_size)
            self.map_count = len(shapes)
            if not shapes:
                raise InputError(
                    f"loss {loss.name} compares feature maps, and the student ({type(student).__name__}) has none that"
                    " can be told: use a network with stages, such as zoo:wrn_16_2, or give it a method maps(x) that"
                    " forward calls"
                )
            self._maps = tuple(_place(name) for name in loss.student_map_names(len(shapes)))
            self.map_shapes = tuple(shapes[number] for number, _ in self._maps)

    def forward(self, images_B3HW: Tensor) -> StudentAnswer:
        """Logits, and what else was asked for."""
        with self._recording() as maps:
            said = answer_of(self.model(images_B3HW))
        return said._replace(maps=tuple(maps[before][number] for number, before in self._maps))

    @contextmanager
    def _recording(self) -> Iterator[dict[bool, list[Tensor]]]:
        """The maps of the forward pass within: those before their last activation under True, as they are under False.

        Only the kinds asked for are recorded.
        """
        kinds = {before for _, before in self._maps}
        with ExitStack() as stack:
            recorder = self._recorder
            if recorder is None:
                yield {}
                return
            yield {kind: stack.enter_context(recorder.recording(before_activation=kind)) for kind in kinds}


def answer_of(said: Tensor | tuple[Any, ...]) -> StudentAnswer:
    """What a network gave, alone or with more than its logits."""
    return StudentAnswer(said) if isinstance(said, Tensor) else StudentAnswer(*said)


def _place(name: str) -> tuple[int, bool]:
    """(K, whether before activation) of ``maps.K`` or ``preacts.K``."""
    number = map_number(name)
    if number is None:
        raise AssertionError(f"{name} is no map")
    return number, name.startswith(PREACTS)


def _shapes_of(student: nn.Module, *, recorder: MapRecorder, image_size: tuple[int, int]) -> list[MapShape]:
    """Of all its maps, from one black image in evaluation mode: the student's tensors stay as they are."""
    first = next(student.parameters())
    with evaluating(student), torch.no_grad(), recorder.recording(copies=False) as maps:
        student(torch.zeros(1, 3, *image_size, device=first.device, dtype=first.dtype))
    return [(int(one.shape[1]), int(one.shape[2]), int(one.shape[3])) for one in maps]

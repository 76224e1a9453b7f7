"""The one place where a teacher's forward pass is called.

Shape key: B images, C classes, D feature width, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shared.begun_answers import BegunAnswers, named_failures
from shared.devices import pick_device, pick_devices
from shared.errors import InputError
from shared.fake_teacher import parse_fake
from shared.outputs import ATTENTION, INPUT_GRAD, MAPS, PREACTS, OutputForm, check_offered, forms_of, map_number
from shared.replicas import ReplicatedTeacher
from shared.teacher_protocol import Teacher

if TYPE_CHECKING:
    import torch

    from shared.models.compiling import Forward
    from shared.models.loading import Network, PixelStatistics
    from shared.models.maps import MapRecorder
    from shared.models.transfers import OnTheirWay

__all__ = ["PRECISIONS", "Teacher", "TorchTeacher", "load_teacher"]
PRECISIONS = ("float32", "bfloat16", "float16")


class TorchTeacher:
    """A PyTorch network in evaluation mode; runs in one thread at a time.

    ``precision`` other than float32 is autocast: weights stay float32. On CUDA, float32 means float32: no TF32.
    ``compiled``: `warm_up` compiles the network for the shapes that it is told.
    """

    outputs = ("logits", "features")

    def __init__(
        self, network: Network, *, device: str = "auto", precision: str = "float32", compiled: bool = False
    ) -> None:
        # torch takes seconds to import, and fake: teachers start without it.
        import torch

        from shared.models.transfers import Transfers

        if precision not in PRECISIONS:
            raise InputError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
        self._network = network
        self._device = torch.device(pick_device(device))
        self._dtype: torch.dtype = getattr(torch, precision)
        model = network.model.to(self._device)
        if not model.is_export:
            model = model.eval().to(memory_format=torch.channels_last)
        self._compiled = compiled
        self._fixed: dict[tuple[int, ...], Forward] = {}
        preprocessing = network.preprocessing
        # In place of (x / 255 - mean) / std: one multiplication and one addition per pixel.
        self._mean_3 = torch.tensor(preprocessing.mean, device=self._device) * 255.0
        self._std_3 = torch.tensor(preprocessing.std, device=self._device) * 255.0
        self.input = preprocessing.output_size
        self.description = network.describe(precision)
        self.overlaps = self._device.type == "cuda"
        self._transfers = Transfers(self._device)
        self._recorder: MapRecorder | None = None
        # Maps are recorded by hooks on the one network: a forward pass of another thread would be recorded as well.
        self._turn = Lock()
        self._forms: dict[tuple[int, int], dict[str, OutputForm]] = {}

    @property
    def id(self) -> str:
        """``{arch}-{12 hex}``."""
        return self.description.id

    @property
    def device(self) -> str:
        """``cpu``, or the CUDA device with its name."""
        import torch  # imported by now; see __init__

        if self._device.type != "cuda":
            return str(self._device)
        return f"{self._device} {torch.cuda.get_device_name(self._device)}"

    def answer(
        self, images: Sequence[NDArray[np.uint8]], outputs: Sequence[str] = ()
    ) -> dict[str, NDArray[np.float32]]:
        """See `Teacher`; raises `InputError` for images whose sizes give an output different shapes."""
        return self.start(images, outputs).result()

    def start(self, images: Sequence[NDArray[np.uint8]], outputs: Sequence[str] = ()) -> BegunAnswers:
        """Tell the device to answer; on CUDA it works on when this returns, elsewhere all is done by then."""
        about = self.description
        widths = {"logits": about.classes, "features": about.features}
        with self._turn, named_failures(self.device, images=len(images)):
            prepared = self._network.preprocessing.resized(images)
            begun = [
                (places, self._begin([prepared[place] for place in places], outputs=outputs))
                for places in _groups(prepared, most=self._network.batch or len(prepared))
            ]
        return BegunAnswers(begun, count=len(prepared), widths=widths, device=self.device)

    def warm_up(self, batch_sizes: Sequence[int], *, size: tuple[int, int]) -> None:
        """Answer blank images of (H, W), so many at a time: no calls, nothing is learned about any image.

        Memory is claimed and libraries have chosen their algorithms afterwards. A compiled teacher is compiled for
        these shapes, on CUDA recorded as graphs, and fills smaller batches up to them; other shapes stay uncompiled.
        Raises `TeacherFailedError` where memory does not suffice, `InputError` where nothing can be compiled.
        """
        blank = np.zeros((*size, 3), dtype=np.uint8)
        for count in sorted(batch_sizes, reverse=True):
            if self._compiled:
                self._fix([blank] * (self._network.batch or count))
            self.answer([blank] * count)

    def forms(self, size: tuple[int, int]) -> dict[str, OutputForm]:
        """See `Teacher`. Tried on a blank image the first time: that is no call, nothing is learned about any image."""
        with self._turn:
            if size not in self._forms:
                self._forms[size] = self._find_forms(size)
            return self._forms[size]

    def _find_forms(self, size: tuple[int, int]) -> dict[str, OutputForm]:
        (blank,) = self._network.preprocessing.resized([np.zeros((*size, 3), dtype=np.uint8)])
        shapes: list[tuple[int, ...]] = []
        if not self._network.model.is_export:
            with self._computing(()), self._maps().recording() as maps:
                self._network.model(self._normalised(self._transfers.to_device([blank])))
            shapes = [tuple(one.shape[1:]) for one in maps]
        about = self.description
        return forms_of(
            {"logits": about.classes, "features": about.features},
            map_shapes=shapes,
            input_size=(blank.shape[0], blank.shape[1]),
            image_size=size if self.input is None else None,
        )

    def constants(self) -> dict[str, NDArray[np.float32]]:
        """``classifier.weight`` [C, D] and ``classifier.bias`` [C]; ``margins.K`` [C of map K], see `MapRecorder`."""
        wrapped = self._network.model
        if wrapped.is_export:
            return {}
        head = wrapped.model.get_submodule(wrapped.head.name)
        found = {
            f"classifier.{name}": tensor.flatten(1) if name == "weight" else tensor
            for name, tensor in head.named_parameters()
            if name in ("weight", "bias")
        }
        height, width = self.input or wrapped.head.image_size or (32, 32)
        images = self._normalised(self._transfers.to_device([np.zeros((height, width, 3), dtype=np.uint8)]))
        with self._turn:
            found |= {f"margins.{number}": margin for number, margin in self._maps().margins(images).items()}
        return {name: tensor.detach().float().cpu().numpy() for name, tensor in found.items()}

    def _maps(self) -> MapRecorder:
        """Found when they are first asked for: it takes a forward pass of a blank image."""
        # torch takes seconds to import, and fake: teachers start without it.
        from shared.models.maps import MapRecorder

        if self._recorder is None:
            wrapped = self._network.model
            size = self.input or wrapped.head.image_size
            self._recorder = MapRecorder(wrapped.model, image_size=size, free_size=self.input is None)
        return self._recorder

    def _fix(self, images: Sequence[NDArray[np.uint8]]) -> None:
        """Compile the network for a batch of this shape, once."""
        # torch takes seconds to import, and fake: teachers start without it.
        from shared.models.compiling import compiled_forward

        with self._turn, named_failures(self.device, images=len(images)), self._computing(()):
            pixels_BHW3 = self._transfers.to_device(self._network.preprocessing.resized(images))
            shape = tuple(pixels_BHW3.shape)
            if shape not in self._fixed:
                model = self._network.model
                self._fixed[shape] = compiled_forward(model, prepare=self._normalised, example=pixels_BHW3)

    def _begin(self, images: list[NDArray[np.uint8]], *, outputs: Sequence[str]) -> OnTheirWay:
        """Answers of images of one size; behind them may be those of copies of the last image."""
        size = self._network.batch if outputs or not self._fixed else self._batch_size(len(images), images[0].shape)
        images += images[-1:] * ((size or len(images)) - len(images))
        with self._computing(outputs):
            pixels_BHW3 = self._transfers.to_device(images)
            fixed = None if outputs else self._fixed.get(tuple(pixels_BHW3.shape))
            if fixed is None:
                return self._transfers.to_host(self._say(self._normalised(pixels_BHW3), outputs=outputs))
            return self._transfers.to_host(dict(zip(self.outputs, fixed(pixels_BHW3), strict=True)))

    def _batch_size(self, count: int, shape: tuple[int, ...]) -> int | None:
        """The smallest that the network is compiled for and that holds so many images; None where there is none."""
        sizes = [fixed[0] for fixed in self._fixed if fixed[1:] == shape and fixed[0] >= count]
        return min(sizes, default=self._network.batch)

    @contextmanager
    def _computing(self, outputs: Sequence[str]) -> Iterator[None]:
        """The device, the kind of gradients and the arithmetic of a forward."""
        import torch  # imported by now; see __init__

        from shared.models.exact_float32 import EXACT_FLOAT32

        half = self._dtype is not torch.float32
        with (
            torch.cuda.device(self._device) if self.overlaps else nullcontext(),
            torch.enable_grad() if INPUT_GRAD in outputs else torch.inference_mode(),
            EXACT_FLOAT32,
            # No cache: every weight is used once, and what a graph was recorded with must not be freed behind it.
            torch.autocast(self._device.type, dtype=self._dtype if half else None, enabled=half, cache_enabled=False),
        ):
            yield

    def _say(self, images_B3HW: torch.Tensor, *, outputs: Sequence[str]) -> dict[str, torch.Tensor]:
        """One forward, and what is asked for of it."""
        import torch  # imported by now; see __init__

        if not outputs:
            logits, features = self._network.model(images_B3HW)
            return {"logits": logits, "features": features}
        from shared.models.maps import Recorded, outputs_of_maps

        numbered = [name for name in outputs if map_number(name) is not None]
        recording: AbstractContextManager[Recorded] = (
            self._maps().recording_for(numbered) if numbered else nullcontext(Recorded())
        )
        with recording as found:
            logits, features = self._network.model(images_B3HW.requires_grad_(INPUT_GRAD in outputs))
        offered = [f"{kind}{number}" for kind in (MAPS, PREACTS, ATTENTION) for number in range(found.count)]
        check_offered(outputs, offered=[INPUT_GRAD, *offered], teacher=self.id)
        said = {"logits": logits, "features": features, **outputs_of_maps(found, names=numbered)}
        if INPUT_GRAD in outputs:
            top = logits.float().gather(1, logits.argmax(dim=1, keepdim=True)).sum()
            (said[INPUT_GRAD],) = torch.autograd.grad(top, images_B3HW)
        return said

    def _normalised(self, pixels_BHW3: torch.Tensor) -> torch.Tensor:
        """float32 [B, 3, H, W] in channels_last memory: the order that pixels have anyway."""
        images_B3HW = ((pixels_BHW3.float() - self._mean_3) / self._std_3).permute(0, 3, 1, 2)
        return images_B3HW.contiguous() if self._network.model.is_export else images_B3HW

    def close(self) -> None:
        """Move the weights off the device."""
        self._fixed.clear()
        self._network.model.to("cpu")


def load_teacher(
    spec: str,
    *,
    weights: Path | None = None,
    classes: int | None = None,
    normalisation: PixelStatistics | None = None,
    device: str = "auto",
    precision: str = "float32",
    compiled: bool = False,
    trust_export: bool = False,
) -> Teacher:
    """The teacher of a spec (``zoo:``, ``torchvision:``, ``timm:``, ``export:``, ``python:``, ``fake:C``) or file.

    ``classes`` and ``normalisation`` (of the data set) are used where the weights do not say their own. Without
    ``weights`` a network is initialised from seed 0, with a warning. ``device`` may name several: a replica each, see
    `ReplicatedTeacher`. Raises `InputError` and its kinds.
    """
    kind, _, argument = spec.partition(":")
    if kind == "fake":
        return parse_fake(argument)
    # torch takes seconds to import, and fake: teachers start without it.
    from shared.models.loading import load_network

    devices = pick_devices(device)
    network = load_network(
        spec, weights=weights, classes=classes, normalisation=normalisation, trust_export=trust_export
    )
    # Copied before the first one moves to its device.
    networks = [network, *(replace(network, model=deepcopy(network.model)) for _ in devices[1:])]
    teachers = [
        TorchTeacher(one, device=place, precision=precision, compiled=compiled)
        for one, place in zip(networks, devices, strict=True)
    ]
    return teachers[0] if len(teachers) == 1 else ReplicatedTeacher(teachers)


def _groups(images: Sequence[NDArray[np.uint8]], *, most: int) -> list[list[int]]:
    """Places of images of equal shape, at most ``most`` together."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(images):
        by_shape.setdefault(image.shape, []).append(place)
    return [places[start : start + most] for places in by_shape.values() for start in range(0, len(places), most)]

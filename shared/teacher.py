"""The one place where a teacher's forward pass is called.

Shape key: B images, C classes, D feature width, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from shared.descriptions import TeacherDescription
from shared.errors import InputError
from shared.fake_teacher import parse_fake
from shared.identity import teacher_id
from shared.outputs import ATTENTION, INPUT_GRAD, MAPS, OutputForm, check_offered, map_number

if TYPE_CHECKING:
    import torch

    from shared.models.loading import Network, PixelStatistics
    from shared.models.maps import MapRecorder

PRECISIONS = ("float32", "bfloat16", "float16")


class Teacher(Protocol):
    """Anything that answers for images."""

    @property
    def description(self) -> TeacherDescription:
        """What a cache records about it."""

    @property
    def id(self) -> str:
        """``{arch}-{12 hex}``: the description's id."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what `answer` always returns."""

    @property
    def input(self) -> tuple[int, int] | None:
        """The (H, W) that every image is resized to; None where the network takes any size."""

    @property
    def device(self) -> str:
        """What computes, such as ``cpu`` or ``cuda:0 NVIDIA H200``; for the history of calls."""

    def answer(
        self, images: Sequence[NDArray[np.uint8]], outputs: Sequence[str] = ()
    ) -> Mapping[str, NDArray[np.float32]]:
        """``logits`` [B, C] and ``features`` [B, D] of canonical uint8 [H, W, 3] images, whose sizes may differ.

        ``outputs`` are given besides; where `forms` says so, only for images of one size.
        """

    def forms(self, size: tuple[int, int]) -> Mapping[str, OutputForm]:
        """All that it can say about an image of (H, W), by name."""

    def constants(self) -> Mapping[str, NDArray[np.float32]]:
        """What it says once for all images; empty where nothing is known."""

    def close(self) -> None:
        """Let go of memory and device."""


class TorchTeacher:
    """A PyTorch network in evaluation mode; runs in one thread at a time.

    ``precision`` other than float32 is autocast: weights stay float32. On CUDA, float32 means float32: no TF32.
    """

    outputs = ("logits", "features")

    def __init__(
        self, network: Network, *, device: str = "auto", precision: str = "float32", compiled: bool = False
    ) -> None:
        # torch takes seconds to import, and fake: teachers start without it.
        import torch

        if precision not in PRECISIONS:
            raise InputError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
        self._network = network
        self._device = torch.device(pick_device(device))
        self._dtype: torch.dtype = getattr(torch, precision)
        model = network.model.to(self._device)
        if not model.is_export:
            model = model.eval().to(memory_format=torch.channels_last)
        self._forward = torch.compile(model) if compiled else model
        preprocessing = network.preprocessing
        # In place of (x / 255 - mean) / std: one multiplication and one addition per pixel.
        self._mean_3 = torch.tensor(preprocessing.mean, device=self._device) * 255.0
        self._std_3 = torch.tensor(preprocessing.std, device=self._device) * 255.0
        self.input = preprocessing.output_size
        self.description = _describe(network, precision=precision)
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
        index = self._device.index or 0
        return f"cuda:{index} {torch.cuda.get_device_name(index)}"

    def answer(
        self, images: Sequence[NDArray[np.uint8]], outputs: Sequence[str] = ()
    ) -> dict[str, NDArray[np.float32]]:
        """See `Teacher`; raises `InputError` for images whose sizes give an output different shapes."""
        with self._turn:
            return self._answer(images, outputs)

    def _answer(self, images: Sequence[NDArray[np.uint8]], outputs: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        prepared = self._network.preprocessing.resized(images)
        answers = {
            "logits": np.empty((len(prepared), self.description.classes), dtype=np.float32),
            "features": np.empty((len(prepared), self.description.features), dtype=np.float32),
        }
        for places in _groups(prepared, most=self._network.batch or len(prepared)):
            batch_BHW3 = np.stack([prepared[place] for place in places])
            for name, values in self._answer_batch(batch_BHW3, outputs=outputs).items():
                shape = (len(prepared), *values.shape[1:])
                if name not in answers:
                    answers[name] = np.empty(shape, dtype=np.float32)
                elif answers[name].shape != shape:
                    raise InputError(
                        f"images of different sizes give {name} of different shapes, such as "
                        f"{list(answers[name].shape[1:])} and {list(shape[1:])}: use images of one size"
                    )
                answers[name][places] = values[: len(places)]
        return answers

    def forms(self, size: tuple[int, int]) -> dict[str, OutputForm]:
        """See `Teacher`. Tried on a blank image the first time: that is no call, nothing is learned about any image."""
        with self._turn:
            if size not in self._forms:
                self._forms[size] = self._find_forms(size)
            return self._forms[size]

    def _find_forms(self, size: tuple[int, int]) -> dict[str, OutputForm]:
        import torch  # imported by now; see __init__

        about = self.description
        forms = {"logits": OutputForm(shape=(about.classes,)), "features": OutputForm(shape=(about.features,))}
        sized = {} if self.input is not None else {"image_height": size[0], "image_width": size[1]}
        (blank,) = self._network.preprocessing.resized([np.zeros((*size, 3), dtype=np.uint8)])
        if not self._network.model.is_export:
            with torch.inference_mode(), _without_tf32(), self._maps().recording() as maps:
                self._network.model(self._normalised(np.stack([blank])))
            for number, shape in enumerate(tuple(one.shape[1:]) for one in maps):
                forms[f"{MAPS}{number}"] = OutputForm(shape=shape, attributes=sized)
            for number, shape in enumerate(tuple(one.shape[2:]) for one in maps):
                sides = {"height": shape[0], "width": shape[1]}
                forms[f"{ATTENTION}{number}"] = OutputForm(shape=(shape[0] * shape[1],), attributes=sides | sized)
        forms[INPUT_GRAD] = OutputForm(shape=(3, *blank.shape[:2]), attributes=sized)
        return forms

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
        images = self._normalised(np.zeros((1, height, width, 3), dtype=np.uint8))
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

    def _answer_batch(self, batch_BHW3: NDArray[np.uint8], *, outputs: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Answers of images of one size."""
        import torch  # imported by now; see __init__

        if self._network.batch is not None:
            # A program exported for one batch size gets its last batch filled up with copies.
            missing = self._network.batch - len(batch_BHW3)
            batch_BHW3 = np.concatenate([batch_BHW3, np.repeat(batch_BHW3[-1:], missing, axis=0)])
        half = self._dtype is not torch.float32
        with (
            torch.enable_grad() if INPUT_GRAD in outputs else torch.inference_mode(),
            _without_tf32(),
            torch.autocast(self._device.type, dtype=self._dtype if half else None, enabled=half),
        ):
            said = self._say(self._normalised(batch_BHW3), outputs=outputs)
            return {name: tensor.detach().float().cpu().numpy() for name, tensor in said.items()}

    def _say(self, images_B3HW: torch.Tensor, *, outputs: Sequence[str]) -> dict[str, torch.Tensor]:
        """One forward, and what is asked for of it."""
        import torch  # imported by now; see __init__

        if not outputs:
            logits, features = self._forward(images_B3HW)
            return {"logits": logits, "features": features}
        from shared.models.maps import attention_of

        numbers = {name: number for name in outputs if (number := map_number(name)) is not None}
        recording: AbstractContextManager[list[torch.Tensor]] = self._maps().recording() if numbers else nullcontext([])
        with recording as maps:
            # Not the compiled one: it does not stop at modules.
            logits, features = self._network.model(images_B3HW.requires_grad_(INPUT_GRAD in outputs))
        check_offered(
            outputs,
            offered=[INPUT_GRAD, *(f"{kind}{number}" for kind in (MAPS, ATTENTION) for number in range(len(maps)))],
            teacher=self.id,
        )
        said = {"logits": logits, "features": features}
        for name, number in numbers.items():
            said[name] = maps[number] if name.startswith(MAPS) else attention_of(maps[number])
        if INPUT_GRAD in outputs:
            top = logits.float().gather(1, logits.argmax(dim=1, keepdim=True)).sum()
            (said[INPUT_GRAD],) = torch.autograd.grad(top, images_B3HW)
        return said

    def _normalised(self, batch_BHW3: NDArray[np.uint8]) -> torch.Tensor:
        """float32 [B, 3, H, W] on the device, in channels_last memory: the order that pixels have anyway."""
        import torch  # imported by now; see __init__

        pixels = torch.from_numpy(batch_BHW3)
        if self._device.type == "cuda":
            pixels = pixels.pin_memory().to(self._device, non_blocking=True)
        images_B3HW = ((pixels.float() - self._mean_3) / self._std_3).permute(0, 3, 1, 2)
        return images_B3HW.contiguous() if self._network.model.is_export else images_B3HW

    def close(self) -> None:
        """Move the weights off the device."""
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
    ``weights`` a network is initialised from seed 0, with a warning. Raises `InputError` and its kinds.
    """
    kind, _, argument = spec.partition(":")
    if kind == "fake":
        return parse_fake(argument)
    # torch takes seconds to import, and fake: teachers start without it.
    from shared.models.loading import load_network

    network = load_network(
        spec, weights=weights, classes=classes, normalisation=normalisation, trust_export=trust_export
    )
    return TorchTeacher(network, device=device, precision=precision, compiled=compiled)


def pick_device(device: str) -> str:
    """``cpu``, ``cuda`` or ``cuda:N`` of a device name, ``auto`` being CUDA where there is one; else `InputError`."""
    # torch takes seconds to import, and fake: teachers start without it.
    import torch

    available = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if available else "cpu"
    kind, _, index = device.partition(":")
    if device != "cpu" and not (kind == "cuda" and (index.isdigit() or device == "cuda")):
        raise InputError(f"unknown device {device!r}; use auto, cpu, cuda or cuda:N")
    if kind == "cuda" and (not available or int(index or 0) >= torch.cuda.device_count()):
        raise InputError(f"device {device} is not there: torch sees {torch.cuda.device_count()} CUDA devices; use cpu")
    return device


@contextmanager
def _without_tf32() -> Iterator[None]:
    """float32 arithmetic on CUDA, whatever the process has chosen for its own training."""
    import torch  # imported by now; see TorchTeacher

    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # torch adds it at run time
    backends = (convolutions, torch.backends.cuda.matmul)
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def _describe(network: Network, *, precision: str) -> TeacherDescription:
    preprocessing, classes = network.preprocessing.to_json(), network.model.classes
    return TeacherDescription(
        id=teacher_id(
            arch=network.arch,
            weights=network.weights,
            preprocessing=preprocessing,
            precision=precision,
            classes=classes,
        ),
        arch=network.arch,
        weights=network.weights,
        preprocessing=preprocessing,
        precision=precision,
        classes=classes,
        features=network.model.feature_width,
        libraries={name: version(name) for name in ("torch", "pillow", "numpy")},
    )


def _groups(images: Sequence[NDArray[np.uint8]], *, most: int) -> list[list[int]]:
    """Places of images of equal shape, at most ``most`` together."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(images):
        by_shape.setdefault(image.shape, []).append(place)
    return [places[start : start + most] for places in by_shape.values() for start in range(0, len(places), most)]

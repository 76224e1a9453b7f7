"""Everything that decides one training, as one frozen value; `student_trainer.cli` builds it from options."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from shared.errors import InputError, UnknownNameError

Missing = Literal["error", "skip", "label-only", "fetch"]
StudentViews = Literal["same", "fresh", "clean"]
Schedule = Literal["step", "cosine", "plateau"]
Precision = Literal["float32", "bfloat16", "float16"]

CHOICES: Mapping[str, tuple[str, ...]] = {
    "missing": ("error", "skip", "label-only", "fetch"),
    "student_views": ("same", "fresh", "clean"),
    "schedule": ("step", "cosine", "plateau"),
    "precision": ("float32", "bfloat16", "float16"),
}
DECIDES_NOTHING = frozenset(
    {"out", "resume", "checkpoint_every_s", "tensorboard", "command", "api_key_file", "download", "test"}
)
"""Fields that may differ when a run is resumed: they do not change its result."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run. InputError where a value is out of range."""

    dataset: str
    """Data set spec, such as ``digits`` or ``folder:PATH``: trained on its train split, tested on its test split."""
    student: str
    """Student spec, such as ``zoo:resnet8``."""
    out: Path
    """Folder of the run."""
    loss: str = "kl"
    """Name of the distillation loss."""
    hyper: Mapping[str, object] = field(default_factory=dict)
    """Hyper-parameters of the loss, values or option texts."""
    ce_weight: float | None = None
    """Weight of cross-entropy with the labels; None: as the loss's authors."""
    kd_weight: float | None = None
    """Weight of the loss; None: as its authors."""

    cache: str | None = None
    """Folder of a cache, or ``http://HOST:PORT`` of a teacher server."""
    expect_teacher: str | None = None
    """Teacher id (or its unique beginning) that the cache must hold."""
    api_key_file: Path | None = None
    """File with the server's API key."""
    run_name: str = "default"
    """Run of the server's ledger that fetched rows are charged to."""
    mirror: Path | None = None
    """Local cache for rows fetched from a server; None: ``out/cache``."""
    teacher: str | None = None
    """Teacher spec run online at every step, in the place of a cache, for comparison."""
    weights: Path | None = None
    """Weights of the online teacher."""

    sample: int | None = None
    """Train on this many rows drawn as `shared.identity.sample_rows` does; None: all."""
    sample_seed: int = 0
    """Seed of that draw."""
    rows: Path | None = None
    """File with the rows to train on: .npy, or text with whole numbers."""
    answer_rows: Path | None = None
    """File with the only rows whose answers may be used; the others count as rows without an answer. None: any."""
    missing: Missing | None = None
    """What to do about rows without an answer; None: ``fetch`` from a server, ``error`` from a folder."""
    val: float = 0.1
    """Part of the chosen rows held out for validation (by label only); 0: none."""
    val_rows: Path | None = None
    """File with the rows held out for validation, in the place of ``val``."""
    test: bool = True
    """Whether the test split is touched; a finished run that was not tested is tested when it is resumed with True."""
    test_sample: int | None = None
    """Test on this many rows drawn from the test split (seed 0); None: all."""
    student_views: StudentViews | None = None
    """What the student sees: ``same`` pixels as the teacher, a ``fresh`` augmentation per epoch, or ``clean`` (view 0).
    None: ``same`` where teacher answers are used, else ``fresh``."""
    teacher_views: str = "0"
    """Views whose answers are used, such as ``0`` or ``1-162``; with several, one is drawn per row and epoch."""
    view_policy: str | None = None
    """What views are, such as ``randaug:n=2,m=9``; None: what the cache says that is used, else the data set's own."""
    image_size: int | None = None
    """Side in pixels that the student's images are resized and cut to; None: as they are."""
    data_root: Path | None = None
    """Folder of torchvision's data sets; None: ``data``."""
    download: bool = False
    """Whether a data set may be downloaded."""

    epochs: int = 60
    """Passes over the training rows; 1 or more. Under ``plateau`` the most."""
    batch: int = 64
    """Images per step, over all devices; 2 or more (batch norm)."""
    lr: float = 0.05
    """Learning rate at the start."""
    momentum: float = 0.9
    """Momentum of SGD, 0 to below 1."""
    nesterov: bool = False
    """Whether momentum is Nesterov's."""
    weight_decay: float = 5e-4
    """L2 decay of all parameters."""
    schedule: Schedule = "step"
    """``step``: times ``gamma`` at each milestone; ``cosine``: to 0 at the end; ``plateau``: after ``patience`` epochs
    without a better validation accuracy the best weights come back, and training goes on at ``gamma`` times the rate,
    for ``stages`` rates in all."""
    milestones: tuple[float, ...] = (0.625, 0.75, 0.875)
    """Epochs (1 or more) or parts of all epochs (below 1) after which ``step`` lowers the learning rate."""
    gamma: float = 0.1
    """Factor of ``step`` and ``plateau``."""
    patience: int = 50
    """Epochs without a better validation accuracy that end a stage of ``plateau``; 1 or more."""
    stages: int = 3
    """Learning rates of ``plateau``; 1 or more."""

    seed: int = 0
    """Seed of the validation split, the initialisation and the order, each drawn separately."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""
    devices: int = 1
    """Processes of data-parallel training, one per device."""
    precision: Precision = "float32"
    """Arithmetic of the student's forward pass; weights and losses are float32."""
    compile: bool = False
    """Whether the student is compiled by `torch.compile`."""
    threads: int | None = None
    """CPU threads of torch; None: unchanged."""
    resume: bool = False
    """Continue the run in ``out``, or start it where there is none."""
    checkpoint_every_s: float = 1.0
    """Least time between two states for ``resume``, in seconds; 0: after every epoch."""
    tensorboard: bool = True
    """Whether TensorBoard logs are written."""
    command: str = ""
    """The command that was typed, for the results."""

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_numbers(self)
        if self.cache is not None and self.teacher is not None:
            raise InputError(
                "--cache and --teacher exclude each other: answers come from a cache or from a teacher online"
            )
        if self.rows is not None and self.sample is not None:
            raise InputError("--rows and --sample exclude each other")
        if self.answer_rows is not None and self.missing_policy not in {"skip", "label-only"}:
            raise InputError("--answer-rows leaves rows without an answer: use --missing skip or --missing label-only")
        if self.schedule == "plateau" and self.val == 0 and self.val_rows is None:
            raise InputError("--schedule plateau watches the validation accuracy: give --val above 0, or --val-rows")

    @property
    def from_server(self) -> bool:
        """Whether ``cache`` is the address of a server."""
        return self.cache is not None and self.cache.startswith(("http://", "https://"))

    @property
    def missing_policy(self) -> Missing:
        """``missing`` with its default filled in."""
        return self.missing or ("fetch" if self.from_server else "error")

    def settings(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {item.name: as_json(getattr(self, item.name)) for item in fields(self)}

    def deciding_settings(self) -> dict[str, Any]:
        """The settings that decide the result: what a resumed run must share with the run it continues."""
        return {name: value for name, value in self.settings().items() if name not in DECIDES_NOTHING}


def as_json(value: object) -> Any:
    """A setting as a value of strict JSON, which has no infinity: that is written as options are, ``inf``."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, Mapping):
        return {name: as_json(item) for name, item in value.items()}
    return "inf" if value == math.inf else value


def _check_choices(config: TrainConfig) -> None:
    for name, choices in CHOICES.items():
        value = getattr(config, name)
        if value is not None and value not in choices:
            raise UnknownNameError(f"--{name.replace('_', '-')} {value!r} is unknown; known: {', '.join(choices)}")
    if config.device not in {"auto", "cpu", "cuda"}:
        raise UnknownNameError(f"unknown device {config.device!r}; known: auto, cpu, cuda")
    if config.missing == "fetch" and not config.from_server:
        raise InputError("--missing fetch needs --cache http://HOST:PORT, a server that can answer")


def _check_numbers(config: TrainConfig) -> None:
    least_1 = ("epochs", "devices", "sample", "threads", "image_size", "test_sample", "patience", "stages")
    for name, least in {**dict.fromkeys(least_1, 1), "batch": 2, "seed": 0}.items():
        value = getattr(config, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} {value} is too small; use {least} or more")
    ranges = {
        "val": (0 <= config.val < 1, "0 to below 1"),
        "lr": (0 < config.lr < float("inf"), "above 0"),
        "momentum": (0 <= config.momentum < 1, "0 to below 1"),
        "weight_decay": (0 <= config.weight_decay < float("inf"), "0 or more"),
        "gamma": (0 < config.gamma <= 1, "above 0, at most 1"),
        "ce_weight": (config.ce_weight is None or 0 <= config.ce_weight < float("inf"), "0 or more"),
        "kd_weight": (config.kd_weight is None or 0 <= config.kd_weight < float("inf"), "0 or more"),
        "milestones": (all(milestone > 0 for milestone in config.milestones), "above 0: epochs, or parts below 1"),
        "nesterov": (not config.nesterov or config.momentum > 0, "a momentum above 0"),
    }
    for name, (fits, allowed) in ranges.items():
        if not fits:
            raise InputError(f"--{name.replace('_', '-')} {getattr(config, name)} is out of range; use {allowed}")

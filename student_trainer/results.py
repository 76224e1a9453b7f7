"""What a finished training leaves: checkpoints, test accuracies, and the numbers behind them."""

import platform
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
from lightning_fabric import Fabric

from shared.models.checkpoint import CheckpointMetadata, load_weights, save_checkpoint
from student_trainer.config import as_json
from student_trainer.device_data import DeviceImages
from student_trainer.distilling import Finisher
from student_trainer.evaluate import Forward, accuracy_of
from student_trainer.job import Job
from student_trainer.rows import tested_rows
from student_trainer.run_folder import RunFolder
from student_trainer.state import TrainState

LIBRARIES = ("torch", "torchvision", "lightning-fabric", "numpy", "pillow", "teachonce")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """One finished training; results.json holds these fields."""

    loss: str
    hyper: dict[str, Any]
    """All hyper-parameters of the loss, defaults included; infinity as the text ``inf``."""
    ce_weight: float
    kd_weight: float
    student: str
    dataset: str
    """``NAME/SPLIT`` that was trained on."""
    dataset_fingerprint: str
    teacher: str | None
    """Id of the teacher whose answers were used; None without one."""
    seed: int
    lr: float
    """Learning rate at the start."""
    epochs: int
    """Epochs done."""
    max_epochs: int
    """Epochs asked for; more than ``epochs`` where ``plateau`` ended early."""
    rows: int
    """Training rows, validation left out."""
    answered_rows: int
    """Training rows with a teacher answer; 0 where none was used."""
    val_rows: int
    test_rows: int
    """Test images; 0 before the test."""
    test_accuracy_last: float | None
    """Of the last epoch's weights, 0 to 1; None before the test."""
    test_accuracy_best: float | None
    """Of the weights that were best on the validation rows; None without validation, and before the test."""
    val_accuracy_last: float | None
    val_accuracy_best: float | None
    best_epoch: int | None
    """From 1."""
    images_per_second: float
    """Training images per second; the first of several epochs is left out."""
    seconds: float
    """Training time, validation and tests left out."""
    student_forwards: int
    """Images through the student in training."""
    teacher_calls: int
    """Teacher calls that this training caused: 0 from a folder; from a server, those of the rows it fetched."""
    charged: int
    """Distinct teacher answers it used."""
    online_calls_equivalent: int
    """Teacher calls that the same training would make with the teacher online."""
    device: str
    precision: str
    threads: int
    versions: dict[str, str]
    command: str

    @property
    def test_accuracy(self) -> float:
        """What to report, 0 to 1: of the best weights where validation chose some, else of the last."""
        found = self.test_accuracy_last if self.test_accuracy_best is None else self.test_accuracy_best
        if found is None:
            raise ValueError("this run was trained with test=False")
        return found


def write_record(folder: RunFolder, job: Job, *, resume: bool) -> None:
    """Begin the run's folder: its settings, who it depends on, its rows."""
    record = {
        "settings": job.config.deciding_settings() | job.identity(),
        "all_settings": job.config.settings(),
        "versions": versions(),
    }
    folder.enter(record, resume=resume)
    folder.save_rows(job.selection.train)


@cache
def versions() -> dict[str, str]:
    """Versions of the libraries that decide the bits, and of Python."""
    return {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()}


def conclude(
    job: Job, *, folder: RunFolder, state: TrainState, finisher: Finisher, fabric: Fabric, forward: Forward
) -> RunResult:
    """Finish the last and the best weights, write checkpoints, test each once, and write the results."""
    val_last = None
    last = {name: value.clone() for name, value in job.student.state_dict().items()}
    for which, weights in (("last", last), ("best", state.best)):
        if weights is None:
            continue
        job.student.load_state_dict(weights)
        finisher.apply()
        if which == "last" and job.val_images is not None:
            val_last = accuracy_of(forward, job.student, job.val_images)
        if fabric.is_global_zero:
            save_checkpoint(folder.path / f"{which}.safetensors", job.student, metadata=_metadata(job))
    fabric.barrier()
    state.note_finish()
    result = _result(job, state=state, val_last=val_last)
    if job.config.test:
        result = _tested(job, result, folder=folder, forward=forward)
    if fabric.is_global_zero:
        folder.save_results(asdict(result))
    return result


def test_finished(job: Job, result: RunResult, *, folder: RunFolder, fabric: Fabric) -> RunResult:
    """A finished run's result; a run that was to stay untested, and no longer is, is tested now."""
    if not job.config.test or result.test_accuracy_last is not None:
        return result
    result = _tested(job, result, folder=folder, forward=fabric.setup_module(job.student))
    if fabric.is_global_zero:
        folder.save_results(asdict(result))
    return result


def _tested(job: Job, result: RunResult, *, folder: RunFolder, forward: Forward) -> RunResult:
    """The result with the accuracies of the checkpoints in ``folder``."""
    config, test_set = job.config, job.test_set
    rows = tested_rows(test_set, sample=config.test_sample)
    placing: dict[str, Any] = {
        "normalisation": job.normalisation,
        "device": job.device,
        "image_size": config.image_size,
    }
    images = DeviceImages(test_set, rows, **placing)
    accuracies: dict[str, float] = {}
    for which in ("last", "best"):
        path = folder.path / f"{which}.safetensors"
        if path.exists():
            load_weights(job.student, path)
            accuracies[which] = accuracy_of(forward, job.student, images)
    return replace(
        result,
        test_rows=len(rows),
        test_accuracy_last=accuracies["last"],
        test_accuracy_best=accuracies.get("best"),
    )


def _result(job: Job, *, state: TrainState, val_last: float | None) -> RunResult:
    config, objective, selection = job.config, job.objective, job.selection
    answered = int(selection.answered.sum()) if job.uses_teacher else 0
    return RunResult(
        loss=objective.loss.name,
        hyper=as_json(objective.loss.settings),
        ce_weight=objective.ce_weight,
        kd_weight=objective.kd_weight,
        student=config.student,
        dataset=job.train_set.name,
        dataset_fingerprint=job.train_set.fingerprint,
        teacher=job.targets.description.id if job.targets is not None and job.uses_teacher else None,
        seed=config.seed,
        lr=config.lr,
        epochs=state.epoch,
        max_epochs=config.epochs,
        rows=len(selection.train),
        answered_rows=answered,
        val_rows=len(selection.val),
        test_rows=0,
        test_accuracy_last=None,
        test_accuracy_best=None,
        val_accuracy_last=val_last,
        val_accuracy_best=state.best_val,
        best_epoch=state.best_epoch,
        images_per_second=state.images_per_second(),
        seconds=sum(state.seconds),
        student_forwards=state.epoch * len(selection.train),
        teacher_calls=job.targets.teacher_calls if job.targets is not None else 0,
        charged=state.charged(),
        online_calls_equivalent=state.online_calls,
        device=device_name(job.device),
        precision=config.precision,
        threads=torch.get_num_threads(),
        versions=dict(versions()),
        command=config.command,
    )


def device_name(device: torch.device) -> str:
    """``cpu``, or the accelerator's product name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _metadata(job: Job) -> CheckpointMetadata:
    return CheckpointMetadata(
        architecture=job.config.student,
        classes=len(job.train_set.classes),
        class_names=job.train_set.classes,
        mean=job.normalisation.mean,
        std=job.normalisation.std,
        image_size=job.train_images.image_shape,
    )

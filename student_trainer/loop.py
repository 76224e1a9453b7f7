"""The training loop: epochs of steps, validation, checkpoints; one function, `train`.

Shape key: B batch, N training rows, C classes.
"""

import time
from dataclasses import asdict

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import SGD

from shared.errors import InputError
from student_trainer.config import TrainConfig
from student_trainer.distilling import Finisher, Step, cross_entropy_of, distill_batch, prepare_loss
from student_trainer.evaluate import accuracy_of, correct_of
from student_trainer.job import Job, all_views, prepare
from student_trainer.loss_watch import LossWatch
from student_trainer.losses.mix import Mix
from student_trainer.order import STUDENT_VIEWS, TEACHER_VIEWS, TORCH, derived_seed, drawn_views, epoch_batches
from student_trainer.progress import EpochMetrics, ProgressView, Quiet
from student_trainer.results import RunResult, conclude, test_finished, write_record
from student_trainer.run_folder import RunFolder
from student_trainer.samplers import per_class_batches
from student_trainer.schedule import learning_rate
from student_trainer.state import TrainState
from student_trainer.student_outputs import StudentAnswer, answer_of
from student_trainer.tensorboard import EpochLog
from student_trainer.torch_state import own_torch_state, seed_torch

__all__ = ["RunResult", "TrainConfig", "train"]

FABRIC_PRECISION = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


def train(config: TrainConfig, *, progress: ProgressView | None = None) -> RunResult:
    """Train one student as ``config`` says, and leave everything about it in ``config.out``.

    With ``resume`` a finished run is read back, and a killed one goes on to the same bits. Shows nothing unless
    ``progress`` is given. Changes no global state: random generators and thread counts are as before afterwards.
    """
    folder, fabric = RunFolder(config.out), _fabric(config)
    # Of several processes only the first shows and writes.
    view = progress if progress is not None and fabric.is_global_zero else Quiet()
    if fabric.is_global_zero:
        folder.check_free(resume=config.resume)
    with own_torch_state(threads=config.threads, device=fabric.device):
        job = prepare(config, device=fabric.device, progress=view)
        try:
            if fabric.is_global_zero:
                write_record(folder, job, resume=config.resume)
            fabric.launch()
            finished = folder.load_results()
            if finished is None:
                return _Training(job, fabric=fabric, folder=folder, progress=view).run()
            return test_finished(job, RunResult(**finished), folder=folder, fabric=fabric)
        finally:
            view.end()
            job.close()


def _fabric(config: TrainConfig) -> Fabric:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no CUDA device; use --device cpu or auto")
    accelerator = "cpu" if config.device == "cpu" or not torch.cuda.is_available() else "cuda"
    if accelerator == "cuda" and config.devices > torch.cuda.device_count():
        raise InputError(f"--devices {config.devices}: torch finds {torch.cuda.device_count()}")
    # A loss of features alone leaves the last layer without gradient.
    strategy = "ddp_find_unused_parameters_true" if config.devices > 1 else "auto"
    precision = FABRIC_PRECISION[config.precision]
    return Fabric(accelerator=accelerator, devices=config.devices, strategy=strategy, precision=precision)  # type: ignore[arg-type]


class _Training:
    """One training in progress."""

    def __init__(self, job: Job, *, fabric: Fabric, folder: RunFolder, progress: ProgressView) -> None:
        self._job = job
        self._config = job.config
        self._fabric = fabric
        self._folder = folder
        self._progress = progress
        # Convolutions are faster with channels last, on CPU and GPU; images come that way.
        job.student.to(memory_format=torch.channels_last)
        self._loss = job.objective.loss.to(job.device)
        optimizer = SGD(
            [*job.student.parameters(), *self._loss.parameters()],
            lr=job.config.lr,
            momentum=job.config.momentum,
            nesterov=job.config.nesterov,
            weight_decay=job.config.weight_decay,
            fused=True,
        )
        if job.config.compile:
            job.student.compile()
        # A plain student is given logits alone: what wraps it would be looked through by nobody.
        says_more = {"student_features", "student_maps"} & set(self._loss.needs)
        student = job.student_outputs if says_more else job.student
        self._model, self._optimizer = fabric.setup(student, optimizer)
        self._watch = LossWatch(job.device)
        self._correct = torch.zeros((), dtype=torch.int64, device=job.device)
        self._finisher = Finisher(job, forward=self._logits)
        self._state = TrainState(job, optimizer=optimizer, fabric=fabric)
        self._log = EpochLog(folder.path / "tensorboard" if job.config.tensorboard and fabric.is_global_zero else None)

    def run(self) -> RunResult:
        """All epochs that are left, then the tests."""
        state, config = self._state, self._config
        if not state.restore(self._folder):
            prepare_loss(self._job, note_used=state.note_used)
        if self._fabric.is_global_zero:
            self._folder.keep_metrics(epochs=state.epoch)
        steps = len(self._batches(epoch=0))
        self._progress.begin(epochs=config.epochs, steps=steps, done_epochs=state.epoch)
        while not state.finished:
            metrics = self._epoch(state.epoch)
            state.epoch_done(metrics)
            if self._fabric.is_global_zero:
                self._folder.append_metrics(asdict(metrics))
                self._log.write(metrics)
                state.save(self._folder, least_s=config.checkpoint_every_s)
            self._progress.epoch(metrics)
        self._log.close()
        return conclude(
            self._job,
            folder=self._folder,
            state=state,
            finisher=self._finisher,
            fabric=self._fabric,
            forward=self._logits,
        )

    def _batches(self, *, epoch: int) -> list[NDArray[np.int64]]:
        """Positions of the training rows in each step."""
        config, job = self._config, self._job
        least = job.objective.least_batch * self._fabric.world_size
        drawn: dict[str, int] = {"batch": config.batch, "least": least, "seed": config.seed, "epoch": epoch}
        if self._loss.samples_per_class is None:
            return epoch_batches(count=len(job.selection.train), **drawn)
        labels_N = job.train_set.labels[job.selection.train]
        return per_class_batches(labels_N, per_class=self._loss.samples_per_class, **drawn)

    def _epoch(self, epoch: int) -> EpochMetrics:
        config, fabric = self._config, self._fabric
        teacher_views, student_views = self._views(epoch)
        batches = self._batches(epoch=epoch)
        # A student with dropout draws from torch's own generator: seeded by epoch, so that resuming changes nothing.
        seed_torch(derived_seed(config.seed, purpose=TORCH, epoch=epoch), device=self._job.device)
        self._job.student.train()
        self._loss.begin_epoch(epoch)
        self._correct.zero_()
        total = 0.0
        began_s = time.perf_counter()
        shares = [np.array_split(batch, fabric.world_size) for batch in batches]
        owns = [share[fabric.global_rank] for share in shares]
        for step, (batch, own) in enumerate(zip(batches, owns, strict=True)):
            for soon in owns[step + 1 : step + 2]:
                self._job.train_images.will_need(soon, student_views[soon])
            self._optimizer.param_groups[0]["lr"] = learning_rate(
                config, epoch=epoch + step / len(batches), stage=self._state.stage
            )
            where = f"epoch {epoch + 1}, step {step + 1}, lr {self._optimizer.param_groups[0]['lr']:g}"
            loss = self._step(own, teacher_views=teacher_views[own], student_views=student_views[own], where=where)
            total += loss * len(own)
            if self._kd_weight > 0:
                for share in shares[step]:
                    self._state.note_used(share, views=teacher_views[share])
            self._progress.step(images=len(batch), loss=loss)
        seconds = time.perf_counter() - began_s
        count = len(self._job.selection.train)
        self._state.seconds.append(seconds)
        total, correct = self._over_processes(total, int(self._correct))
        return EpochMetrics(
            epoch=epoch + 1,
            loss=total / count,
            train_accuracy=correct / count,
            val_accuracy=self._validate(),
            lr=self._optimizer.param_groups[0]["lr"],
            images_per_second=count / seconds,
            teacher_calls=self._job.targets.teacher_calls if self._job.targets is not None else 0,
        )

    def _over_processes(self, *counts: float) -> tuple[float, ...]:
        """Each count summed over the processes of the training."""
        if self._fabric.world_size == 1:
            return counts
        mine = torch.tensor(counts, dtype=torch.float64, device=self._job.device)
        summed = self._fabric.all_reduce(mine, reduce_op="sum")
        return tuple(summed.tolist())  # type: ignore[union-attr]  # a tensor gives a tensor

    def _validate(self) -> float | None:
        """Accuracy on the held-out rows as the finished student would have it; None where there are none."""
        if self._job.val_images is None:
            return None
        with self._finisher.tried():
            return accuracy_of(self._logits, self._job.student, self._job.val_images)

    def _views(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(teacher's, student's) view of every training row in this epoch, int64 [N]."""
        job = self._job
        draw = {"count": len(job.selection.train), "seed": self._config.seed, "epoch": epoch}
        teacher_N = drawn_views(job.teacher_views, purpose=TEACHER_VIEWS, **draw)
        if job.student_views == "same":
            return teacher_N, teacher_N
        if job.student_views == "fresh":
            return teacher_N, drawn_views(all_views(job.train_set), purpose=STUDENT_VIEWS, **draw)
        return teacher_N, np.zeros_like(teacher_N)

    def _step(
        self,
        positions: NDArray[np.int64],
        *,
        teacher_views: NDArray[np.int64],
        student_views: NDArray[np.int64],
        where: str,
    ) -> float:
        """One optimizer step on the rows at ``positions`` [B]; returns the loss. DivergedError before a bad one."""
        images = self._job.train_images
        on_device = torch.from_numpy(positions).to(self._job.device, non_blocking=True)
        inputs_B3HW = images.batch(on_device, student_views, host_B=positions)
        mix = self._mix(inputs_B3HW)
        if mix is not None:
            inputs_B3HW = mix.images(inputs_B3HW)
        if "student_inputs" in self._loss.needs:
            inputs_B3HW = inputs_B3HW.detach().requires_grad_()
        said = self._forward(inputs_B3HW)
        labels_B = images.labels[on_device]
        train_set = self._job.train_set
        soft_BC = images.soft_labels(
            positions, student_views, labels_N=train_set.labels, classes=len(train_set.classes)
        )
        pair = None if mix is None else mix.pair
        loss = self._total(Step(positions, teacher_views, said, inputs_B3HW, labels_B, pair, soft_BC))
        if not loss.requires_grad:
            # A stage of the loss alone, and none of these rows is answered: other processes may learn from theirs.
            loss = loss + 0 * said.logits.sum()
        self._watch.put(loss)
        self._optimizer.zero_grad()
        self._fabric.backward(loss)
        self._correct += correct_of(said.logits.detach(), labels_B)
        value = self._watch.take(where=where)
        self._optimizer.step()
        return value

    def _forward(self, inputs_B3HW: Tensor) -> StudentAnswer:
        """What the student says about a batch."""
        return answer_of(self._model(inputs_B3HW))

    def _logits(self, inputs_B3HW: Tensor) -> Tensor:
        """Logits [B, C]."""
        return self._forward(inputs_B3HW).logits

    def _mix(self, images_B3HW: Tensor) -> Mix | None:
        """How the loss mixes the images of this step, on the device; None where it does not."""
        count, _, height, width = images_B3HW.shape
        mix = self._loss.mix(count, size=(height, width))
        return None if mix is None else mix.to(self._job.device)

    @property
    def _kd_weight(self) -> float:
        """Of the loss in this epoch."""
        return self._job.objective.kd_weight * self._loss.kd_factor

    def _total(self, step: Step) -> Tensor:
        """``ce_weight * CE + kd_weight * loss``; rows without an answer count in the first term only."""
        objective = self._job.objective
        ce_weight = objective.ce_weight * self._loss.ce_factor
        total = torch.zeros((), device=self._job.device)
        if ce_weight > 0:
            total = total + ce_weight * cross_entropy_of(step)
        if self._kd_weight > 0:
            batch = distill_batch(self._job, step)
            if batch is not None:
                total = total + self._kd_weight * self._loss(batch)
        return total

"""Epoch metrics as TensorBoard logs."""

from dataclasses import asdict
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from student_trainer.progress import EpochMetrics


class EpochLog:
    """Writes one point per curve and epoch to ``folder``, or nothing where it is None."""

    def __init__(self, folder: Path | None) -> None:
        self._writer = None if folder is None else SummaryWriter(log_dir=str(folder))

    def write(self, metrics: EpochMetrics) -> None:
        """Add the metrics of one epoch."""
        if self._writer is None:
            return
        for name, value in asdict(metrics).items():
            if name != "epoch" and value is not None:
                self._writer.add_scalar(name, value, metrics.epoch)

    def close(self) -> None:
        """Flush."""
        if self._writer is not None:
            self._writer.close()

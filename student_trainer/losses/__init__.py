"""Distillation losses: ``build_loss(name, **hyper)`` and the batch they are given."""

from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.facts import TrainingFacts
from student_trainer.losses.registry import LOSSES, build_loss

__all__ = ["LOSSES", "DistillBatch", "TrainingFacts", "build_loss"]

"""The learning rate over time."""

import math

from student_trainer.config import TrainConfig


def learning_rate(config: TrainConfig, *, epoch: float, stage: int = 0) -> float:
    """Learning rate after ``epoch`` passes (fractions count under ``cosine``) and ``stage`` stages of ``plateau``."""
    if config.schedule == "plateau":
        return float(config.lr * config.gamma**stage)
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * min(epoch / config.epochs, 1.0)))
    # Below 1 a milestone is a part of all epochs; rounding keeps 0.1 * 30 from becoming 3.0000000000000004.
    reached = sum(
        round(milestone * config.epochs if milestone < 1 else milestone, 9) <= math.floor(epoch)
        for milestone in config.milestones
    )
    return float(config.lr * config.gamma**reached)

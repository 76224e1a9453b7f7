"""A first student, trained on the first rows that were asked about, and what it says about all the others.

Shape key: B batch, N rows, C classes, D feature width.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from shared.errors import InputError
from shared.models.build import build_model
from shared.models.checkpoint import load_weights
from shared.models.features import LogitsAndFeatures
from student_trainer.config import TrainConfig
from student_trainer.device_data import DeviceImages
from student_trainer.evaluate import EVALUATION_BATCH
from student_trainer.job import open_data
from student_trainer.loop import train
from student_trainer.loss_watch import DivergedError
from student_trainer.results import RunResult
from student_trainer.run_folder import forget_unbegun
from student_trainer.selecting import Look


class FirstStudent:
    """Rows -> `Look`. Trains at construction, or reads back the run that ``config.out`` holds."""

    def __init__(self, config: TrainConfig) -> None:
        if config.rows is None:
            raise InputError("a first student is trained on the rows of a file: give TrainConfig(rows=...)")
        config, result = _trained(by_labels(config))
        self._dataset, _ = open_data(config)
        self._image_size = config.image_size
        self._device = torch.device("cpu" if result.device == "cpu" else "cuda")
        model = build_model(config.student, classes=len(self._dataset.classes))
        which = "last" if result.best_epoch is None else "best"
        load_weights(model, config.out / f"{which}.safetensors")
        side = config.image_size
        shape = self._dataset.image(0).shape[:2] if side is None else (side, side)
        self._model = LogitsAndFeatures(model, image_size=(shape[0], shape[1])).eval().to(self._device)

    @torch.inference_mode()
    def __call__(self, rows_N: NDArray[np.int64]) -> Look:
        """Features and logits float32 of the rows under view 0, in their order; a batch of images at a time."""
        logits, features = [], []
        for start in range(0, len(rows_N), EVALUATION_BATCH):
            logits_BC, features_BD = self._model(self._images(rows_N[start : start + EVALUATION_BATCH]))
            logits.append(logits_BC.float().cpu().numpy())
            features.append(features_BD.float().cpu().numpy())
        return Look(features=np.concatenate(features), logits=np.concatenate(logits))

    def _images(self, rows_B: NDArray[np.int64]) -> torch.Tensor:
        images = DeviceImages(
            self._dataset,
            rows_B,
            normalisation=self._dataset.normalisation,
            device=self._device,
            image_size=self._image_size,
        )
        return images.batch(torch.arange(len(rows_B), device=self._device), np.zeros(len(rows_B), dtype=np.int64))


def _trained(config: TrainConfig) -> tuple[TrainConfig, RunResult]:
    """Train, at a tenth of the rate where that diverges, and again."""
    for lr in (config.lr, config.lr / 10, config.lr / 100):
        tried = replace(config, lr=lr, out=config.out / f"lr{lr:g}")
        forget_unbegun(tried.out)
        try:
            return tried, train(tried)
        except DivergedError as error:
            diverged = error
    raise diverged


def by_labels(config: TrainConfig) -> TrainConfig:
    """The same training by cross-entropy on view 0: no teacher asked, no test."""
    return replace(
        config,
        loss="ce",
        hyper={},
        ce_weight=None,
        kd_weight=None,
        cache=None,
        teacher=None,
        weights=None,
        expect_teacher=None,
        api_key_file=None,
        mirror=None,
        missing=None,
        answer_rows=None,
        teacher_views="0",
        student_views="clean",
        test=False,
        resume=True,
    )

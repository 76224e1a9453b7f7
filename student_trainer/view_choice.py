"""What the views of a training are: read from the cache that holds the answers, so that nobody has to say it twice.

Shape key: N training rows.
"""

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.catalog import read_catalog, select
from shared.client import TeacherClient
from shared.datasets.base import ImageDataset
from shared.errors import IdentityError, InputError
from shared.view_policy import random_policy
from shared.views import parse_views
from student_trainer.config import StudentViews, TrainConfig
from student_trainer.mirror import mirror_path, read_api_key

logger = logging.getLogger(__name__)


def with_chosen_views(config: TrainConfig, dataset: ImageDataset, *, uses_cache: bool) -> ImageDataset:
    """The data set under the policy of the cache that is used, else under ``config.view_policy``, else its own.

    Raises `IdentityError` naming both where the cache has another policy than the one asked for.
    """
    asked = dataset.with_views(config.view_policy)
    kept = _kept_policy(config, dataset.name) if uses_cache else None
    if kept is None:
        return asked
    if config.view_policy is not None and kept != asked.view_policy:
        raise IdentityError(
            f"{dataset.name} has view policy {kept} in {config.cache}, and --view-policy asks for {asked.view_policy};"
            " leave --view-policy out, or fill another cache"
        )
    return dataset.with_views(kept)


def _kept_policy(config: TrainConfig, name: str) -> str | None:
    """The policy of the cache, of a server's local copy, or of the server; None where neither has the data set."""
    if config.cache is None:
        return None
    path = mirror_path(config) if config.from_server else Path(config.cache)
    try:
        return select(read_catalog(path), path=path, teacher=config.expect_teacher, dataset=name).dataset.view_policy
    except InputError:
        # No such answers: opening the cache says what is wrong. A server may have them yet.
        pass
    if not config.from_server or config.missing_policy != "fetch":
        return None
    with TeacherClient(str(config.cache), api_key=read_api_key(config.api_key_file)) as client:
        served = {entry["name"]: entry["view_policy"] for entry in client.cache()["datasets"]}
    return served.get(name)


def chosen_views(
    config: TrainConfig, dataset: ImageDataset, *, uses_teacher: bool
) -> tuple[tuple[int, ...], StudentViews]:
    """(the teacher's views, what the student sees); raises `InputError` where the two do not go together."""
    views = parse_views(config.teacher_views, policy=dataset.view_policy)
    student_views: StudentViews = config.student_views or ("same" if uses_teacher else "fresh")
    policy = random_policy(dataset.view_policy)
    if student_views == "same" and config.image_size is not None and views != (0,):
        # Only views that come in the student's size are seen by both.
        sized = policy is not None and policy.kind == "rrc" and policy.size == config.image_size
        if not sized:
            raise InputError(
                "--image-size changes the pixels that views are cut from: use --student-views fresh or clean, or views"
                f" of --view-policy rrc:size={config.image_size}"
            )
    if policy is not None and policy.kind == "rrc" and policy.size and config.image_size is None:
        shown = student_views == "fresh" or (student_views == "same" and views != (0,))
        if shown and dataset.image(0).shape[:2] != (policy.size, policy.size):
            raise InputError(
                f"views of {dataset.view_policy} are {policy.size} pixels wide and the images are not: give"
                f" --image-size {policy.size}"
            )
    sees_others = student_views == "fresh" or (student_views == "clean" and views != (0,))
    if policy is not None and policy.mixes and uses_teacher and sees_others:
        raise InputError(
            f"views of {dataset.view_policy} mix two images, and --student-views {student_views} shows the student"
            " others than the teacher answered about: use --student-views same"
        )
    return views, student_views


def warn_of_partners(
    dataset: ImageDataset, *, train: NDArray[np.int64], val: NDArray[np.int64], student_views: StudentViews
) -> None:
    """Say that mixed views show images, and labels in cross-entropy, of rows that are not trained on."""
    policy = random_policy(dataset.view_policy)
    outside = dataset.num_rows - len(train)
    if policy is not None and policy.mixes and student_views != "clean" and outside:
        logger.warning(
            "%s draws partners among all %d rows of %s: the student sees some of the %d that it is not trained on%s",
            dataset.view_policy,
            dataset.num_rows,
            dataset.name,
            outside,
            f", and of the {len(val)} held out for validation" if len(val) else "",
        )

"""The first batch as the student will see it, held to the keys of what the teacher answered.

Shape key: B batch.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch

from shared.errors import IdentityError
from shared.identity import pixel_key
from student_trainer.order import TEACHER_VIEWS, drawn_views, epoch_batches

if TYPE_CHECKING:
    from student_trainer.job import Job

REMEDY = "install what the cache was filled with, or fill a new cache"


def check_pixels(job: "Job") -> None:
    """Raise `IdentityError` naming the first image of the first batch that is not the one the teacher answered about.

    Where student and teacher see the same pixels, and answers come from a cache.
    """
    config = job.config
    if job.targets is None or not job.uses_teacher or config.teacher is not None or job.student_views != "same":
        return
    selection = job.selection
    count = len(selection.train)
    positions = epoch_batches(
        count=count, batch=config.batch, least=job.objective.least_batch, seed=config.seed, epoch=0
    )[0]
    views = drawn_views(job.teacher_views, count=count, seed=config.seed, epoch=0, purpose=TEACHER_VIEWS)[positions]
    # View 0 of another size is resized for the student, and the teacher's it is not.
    compared = selection.answered[positions] & ((views != 0) | (config.image_size is None))
    positions, views = positions[compared], views[compared]
    on_device = torch.from_numpy(positions).to(job.device)
    pixels = job.train_images.pixels(on_device, views, host_B=positions).cpu().numpy()
    rows = selection.train[positions]
    for view in np.unique(views).tolist():
        chosen = np.flatnonzero(views == view)
        for index, key in zip(chosen.tolist(), job.targets.keys(rows[chosen], view=view), strict=True):
            if pixel_key(pixels[index]) != key.tobytes():
                data = job.train_set.description
                raise IdentityError(
                    f"row {rows[index]} view {view} of {data.name} has other pixels than the teacher was asked about:"
                    f" policy {data.view_policy}, {job.targets.pixels_by or 'nothing'} decoded or drew them for the"
                    f" cache, {data.decoder or 'nothing'} does now; {REMEDY}"
                )

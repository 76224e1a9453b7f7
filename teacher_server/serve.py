"""``teacher-server serve``: opens everything, listens, drains and closes."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from cache.writer import CacheWriter
from shared.errors import TeachonceError
from teacher_server.app import create_app
from teacher_server.opening import TeacherOptions, open_datasets, open_teacher
from teacher_server.service import DEFAULT_RUN
from teacher_server.serving import bind, run_app, url_of
from teacher_server.settings import ServerSettings
from teacher_server.warm_up import warm_up

SWITCH_S = 1e-4
"""How long a thread may hold the interpreter while others wait. The model's wants it for a moment after every layer,
and waits for the event loop: with Python's 5 ms, 64 clients get 5 % fewer images per second."""
INDEX_FOLDER = "index"
"""Folder within a cache that remembers the keys of image files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunBudgets:
    """Budgets given on the command line."""

    whole: int | None = None
    """Bounds all runs together; None leaves it as it was."""
    runs: Mapping[str, int | None] = field(default_factory=dict)
    """Runs that exist from the start; None leaves a run's budget as it was."""


def serve_until_signal(
    settings: ServerSettings,
    *,
    port: int,
    cache: Path,
    teacher: TeacherOptions,
    datasets: Sequence[str],
    data_root: Path | None,
    download: bool,
    view_policy: str | None,
    outputs: Mapping[str, str] | None,
    budgets: RunBudgets,
    ready: Callable[[str], None],
) -> list[int]:
    """Serve; ``ready`` is told the address once questions are answered. Returns the signals that ended it.

    The lock and the address are taken first: the second server fails at once, not after loading its teacher.
    """
    sys.setswitchinterval(SWITCH_S)
    with closing(CacheWriter.open(cache)) as writer, closing(bind(settings.host, port=port)) as bound:
        _set_budgets(writer, budgets)
        opened = open_datasets(
            datasets, root=data_root, download=download, index_dir=cache / INDEX_FOLDER, view_policy=view_policy
        )
        with closing(open_teacher(teacher, datasets=opened)) as loaded:
            warm_up(
                loaded,
                batch_images=settings.answering.batch_images,
                partial=True,
                compiled=teacher.compiled,
                datasets=opened,
            )
            app = create_app(settings, teacher=loaded, datasets=opened, writer=writer, outputs=outputs)
            signals = run_app(app, bound=bound, ready=lambda: ready(url_of(bound)))
            if app.state.service.answering.died.is_set():
                raise TeachonceError("answers could no longer be kept; the log says why; what was answered is safe")
            return signals


def _set_budgets(writer: CacheWriter, budgets: RunBudgets) -> None:
    for name, budget in {DEFAULT_RUN: None, **budgets.runs}.items():
        # A restart must not take back what somebody raised with PUT.
        writer.raise_budget(name, budget)
    if budgets.whole is not None:
        writer.set_total_budget(budgets.whole)

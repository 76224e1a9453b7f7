"""``teacher-server fill --server``: the same fill, done by a server that runs and so holds its cache's lock."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cache.ledger import DEFAULT_RUN
from shared.client import FillStatus, TeacherClient
from shared.errors import InputError
from shared.progress import FillProgress
from teacher_server.commands import summary
from teacher_server.fill import FillCounts
from teacher_server.opening import RowOptions, each_once, read_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFillOptions:
    """What `fill` is told about a server."""

    server: str
    """``http://HOST:PORT``."""
    api_key: str | None
    datasets: tuple[str, ...]
    """Names as the server has them; without a split, all splits."""
    rows: RowOptions
    views: str
    budget: int | None
    """None leaves the run's budget as it is."""
    run: str | None
    """None: the first of the key's own."""


class LastStatus:
    """Remembers what it is shown, and shows it."""

    def __init__(self, progress: FillProgress) -> None:
        self.status: FillStatus | None = None
        self._progress = progress

    def __call__(self, status: FillStatus) -> None:
        """See `FillProgress`."""
        self.status = status
        self._progress(status)


def fill_on_server(options: RemoteFillOptions) -> str:
    """Fill, and return one line that says what was done; Ctrl-C cancels.

    Raises `BudgetExhaustedError` before computing anything of a data set that the budget cannot cover.
    """
    total, began_s = FillCounts(total=0), time.monotonic()
    with TeacherClient(options.server, api_key=options.api_key) as client:
        names = _served(client, asked=options.datasets)
        if options.rows.selects and len(names) > 1:
            raise InputError(
                f"--sample and --rows choose rows of one split; name it in --dataset: {' or '.join(names)}"
            )
        run = options.run
        if options.budget is not None:
            run = run or DEFAULT_RUN
            client.set_budget(run, options.budget)
        for name in names:
            status = _fill(client, name, run=run, options=options)
            computed = status.done - status.cached
            total = total.plus(
                FillCounts(total=status.total, done=status.done, teacher_calls=status.teacher_calls, computed=computed)
            )
    return summary(total, seconds=time.monotonic() - began_s)


def _fill(client: TeacherClient, name: str, *, run: str | None, options: RemoteFillOptions) -> FillStatus:
    rows = options.rows
    if rows.sample is not None and rows.file is not None:
        raise InputError("--sample and --rows both choose rows; give one of them")
    chosen = None if rows.file is None else each_once(np.asarray(read_rows(rows.file)))
    # Which run pays for a key without --run, only the server knows.
    asked = run if run is not None or options.api_key else DEFAULT_RUN
    budget_left = None if asked is None else client.run(asked)["remaining"]
    with FillProgress(name, budget_left=budget_left, budget_known=asked is not None) as progress:
        last = LastStatus(progress)
        try:
            return client.fill(
                name,
                sample=rows.sample,
                seed=rows.seed,
                rows=chosen,
                views=options.views,
                run=run,
                progress=last,
                cancel_on_interrupt=True,
            )
        except KeyboardInterrupt:
            if (kept := last.status) is not None and kept.ended:
                sys.stderr.write(f"{kept.state}: {kept.done} of {kept.total} answers are kept; ask again to go on\n")
            raise


def _served(client: TeacherClient, *, asked: Sequence[str]) -> list[str]:
    """Names of the server's data sets, each once; raises `InputError` for one that it does not have."""
    served = [str(entry["name"]) for entry in client.cache()["datasets"]]
    names: dict[str, None] = {}
    for name in asked:
        found = [known for known in served if known == name or known.rpartition("/")[0] == name]
        if not found:
            raise InputError(f"the server has no data set {name[:160]}; it serves {', '.join(served) or 'none'}")
        names.update(dict.fromkeys(found))
    return list(names)

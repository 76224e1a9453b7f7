"""The steps before the trials: rows, the teacher, and its answers. Each is skipped where it is done."""

from dataclasses import dataclass, replace
from pathlib import Path

from cache.info import describe_cache
from cache.reader import CacheReader
from shared.datasets.spec import parse_dataset
from shared.errors import InputError, MissingRowsError
from shared.outputs import CONSTANTS
from student_trainer.config import TrainConfig
from student_trainer.lacking import kept_outputs, lacking_outputs
from student_trainer.rows import read_rows, tested_rows
from student_trainer.selecting import LOOKING
from student_trainer.sweep.asking import ROWS_PER_REQUEST, Asked, Inquiry, Spending, ask, fetch
from student_trainer.sweep.audit import check_ledger
from student_trainer.sweep.cells import Grid
from student_trainer.sweep.folder import SweepFolder
from student_trainer.sweep.opening import Plan
from student_trainer.sweep.pool import Pool, Task
from student_trainer.sweep.progress import SweepView
from student_trainer.sweep.tasks import Ordering, Result, Training, order_rows, read_result, train_student, write_orders

TEACHER_TEST = "teacher-test"
"""The run that pays for the teacher's own accuracy."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Session:
    """What every step works with."""

    plan: Plan
    folder: SweepFolder
    pool: Pool
    view: SweepView


def prepare_rows(session: Session) -> None:
    """Write which rows each seed asks about, trains on and holds out."""
    plan = session.plan
    grid, files = plan.grid, plan.setting.files
    recipe = grid.recipe
    images = sorted({run.images for run in grid.budget_runs()})
    orderings = [
        Ordering(
            seed=seed,
            selects=tuple(recipe.select),
            files=files,
            images=tuple(images),
            val=recipe.val,
            first=plan.setting.first_student(
                seed=seed, images=images[0], out=session.folder.path / "first" / f"seed{seed}"
            ),
        )
        for seed in recipe.seeds
    ]
    if LOOKING.keys() & set(recipe.select):
        wanted = [ordering for ordering in orderings if not _ordered(ordering)]
        tasks = [Task(name=f"rows of seed {item.seed}", function=order_rows, argument=item) for item in wanted]
        session.view.begin("rows", tasks=len(tasks), work=len(tasks))
        for task, _ in session.pool.run(tasks, hear=lambda event: None):
            session.view.finish(task.name, work=1, outcome="chosen")
    else:
        for ordering in orderings:
            write_orders(ordering, dataset=plan.train_set)


def _ordered(ordering: Ordering) -> bool:
    files, seed = ordering.files, ordering.seed
    return all(
        files.asked(select=select, seed=seed, images=count).exists()
        for select in ordering.selects
        for count in ordering.images
    )


def train_teacher(session: Session) -> Result | None:
    """Train the teacher on all labels where the recipe says so; what it became, else None."""
    plan = session.plan
    recipe = plan.grid.recipe
    entry = recipe.teacher.train
    if entry is None:
        return None
    out = session.folder.path / "teacher"
    config = TrainConfig(
        **entry.options(rows=plan.train_set.num_rows),
        dataset=recipe.dataset,
        data_root=recipe.data_root,
        download=recipe.download,
        student=str(recipe.teacher.spec),
        out=out,
        loss="ce",
        val=0.0,
        test_sample=recipe.test_sample,
        device=plan.setting.device,
        threads=recipe.teacher.threads,
        resume=True,
        tensorboard=False,
        command=plan.setting.command,
    )
    result = read_result(out)
    if result is None:
        training = Training(name="teacher", config=config, rows=plan.train_set.num_rows)
        work = config.epochs * plan.train_set.num_rows
        session.view.begin("teacher", tasks=1, work=work)
        tasks = [Task(name="teacher", function=train_student, argument=training)]
        for _, found in session.pool.run(tasks, hear=lambda event: session.view.move(event.name, done=event.done)):
            result = found
            session.view.finish("teacher", work=work, outcome="trained")
    if result is None or "diverged" in result:
        raise InputError(f"teacher.train: {(result or {}).get('diverged')}")
    return result


def spendings_of(session: Session) -> tuple[Spending, ...]:
    """The runs of the ledger, in the order in which they ask."""
    plan = session.plan
    grid, files = plan.grid, plan.setting.files
    spendings = [
        Spending(
            name=plan.setting.run_prefix + run.name,
            budget=run.budget,
            dataset=plan.train_set.name,
            rows=files.asked(select=run.select, seed=run.seed, images=run.images),
            views=run.views.numbers,
        )
        for run in grid.budget_runs()
    ]
    if asks_test(grid):
        rows_N = tested_rows(plan.test_set, sample=grid.recipe.test_sample)
        path = session.folder.rows / "tested.npy"
        files.keep(path, rows_N)
        test = Spending(name=TEACHER_TEST, budget=len(rows_N), dataset=plan.test_set.name, rows=path, views=(0,))
        spendings.append(test)
    return tuple(spendings)


def asks_test(grid: Grid) -> bool:
    """Whether the teacher is asked about the test images: one that the sweep serves and did not train itself."""
    recipe = grid.recipe
    return recipe.references.teacher and recipe.teacher.spec is not None and recipe.teacher.train is None


def obtain_answers(session: Session) -> Asked:
    """Every answer that the trials need, in the cache; nobody is asked where they are all there."""
    spendings = spendings_of(session)
    plan, folder = session.plan, session.folder
    if plan.grid.recipe.teacher.cache is not None:
        return _found(plan, spendings=spendings)
    asked = folder.asked()
    if asked is not None and all(spending.name in asked.runs for spending in spendings):
        return asked
    own = plan.grid.recipe.teacher.spec is not None
    inquiry = _inquiry(session, spendings=spendings)
    work = sum(spending.budget for spending in spendings)
    session.view.begin("answers", tasks=1, work=work)
    tasks = [Task(name="teacher", function=ask if own else fetch, argument=inquiry)]
    for task, found in session.pool.run(tasks, hear=lambda event: session.view.move(event.name, done=event.done)):
        asked = found
        session.view.finish(
            task.name, work=work, outcome=f"{found.teacher_calls:,} calls in {found.attempts:,} attempts"
        )
    if asked is None:
        raise AssertionError("one task gives one result")
    check_ledger(asked, cache=folder.cache, spendings=spendings, own=own)
    folder.keep_asked(asked)
    return asked


def _inquiry(session: Session, *, spendings: tuple[Spending, ...]) -> Inquiry:
    recipe, folder = session.plan.grid.recipe, session.folder
    teacher = recipe.teacher
    config = TrainConfig(
        dataset=recipe.dataset,
        data_root=recipe.data_root,
        download=recipe.download,
        student=recipe.students[0],
        out=folder.path,
        cache=str(folder.cache),
        view_policy=session.plan.setting.view_policy,
    )
    if teacher.server is not None:
        config = replace(config, cache=teacher.server, mirror=folder.cache, api_key_file=teacher.api_key_file)
    return Inquiry(
        name="teacher",
        config=config,
        server=() if teacher.server else tuple(_server_options(session)),
        spendings=spendings,
        outputs=tuple(name for name in recipe.outputs if name != CONSTANTS),
        classes=len(session.plan.train_set.classes),
        log=folder.path / "server.log",
    )


def all_splits(dataset: str) -> str:
    """The spec without a split: the teacher is asked about test images, too."""
    split = parse_dataset(dataset).split
    return dataset if split is None else dataset.rstrip("/").removesuffix(f"/{split}")


def _server_options(session: Session) -> list[str]:
    recipe, folder = session.plan.grid.recipe, session.folder
    teacher = recipe.teacher
    spec = str(folder.path / "teacher" / "last.safetensors") if teacher.train is not None else teacher.spec
    options = [
        f"--teacher={spec}",
        f"--dataset={all_splits(recipe.dataset)}",
        f"--cache={folder.cache}",
        f"--outputs={','.join(recipe.outputs)}",
        f"--batch={ROWS_PER_REQUEST}",
        f"--device={session.plan.setting.device}",
        f"--precision={teacher.precision}",
        f"--threads={teacher.threads}",
    ]
    if session.plan.setting.view_policy is not None:
        options.append(f"--view-policy={session.plan.setting.view_policy}")
    if teacher.weights is not None:
        options.append(f"--weights={teacher.weights}")
    if recipe.data_root is not None:
        options.append(f"--data-root={recipe.data_root}")
    return [*options, "--download"] if recipe.download else options


def _found(plan: Plan, *, spendings: tuple[Spending, ...]) -> Asked:
    """What a cache that somebody else filled holds; MissingRowsError where that is not enough."""
    path = Path(str(plan.grid.recipe.teacher.cache))
    with CacheReader.open(path, dataset=plan.train_set.name) as reader:
        reader.check_dataset(plan.train_set)
        absent = lacking_outputs(plan.grid.recipe.outputs, reader=reader)
        if absent:
            raise InputError(
                f"teacher.cache: {path} keeps {', '.join(kept_outputs(reader))}, not {', '.join(absent)}; name in"
                " outputs what it keeps, leave out the losses that need more, or let the sweep ask a teacher"
            )
        for spending in spendings:
            rows_N = read_rows(spending.rows)
            for number in spending.views:
                lacking = rows_N[~reader.present(number)[rows_N]]
                if len(lacking):
                    raise _lacking(plan, path=path, spending=spending, rows=lacking.tolist(), number=number)
        teacher = reader.teacher.id
    counts = describe_cache(path)
    return Asked(teacher=teacher, attempts=counts["attempts"], teacher_calls=counts["teacher_calls"])


def _lacking(plan: Plan, *, path: Path, spending: Spending, rows: list[int], number: int) -> MissingRowsError:
    views = ",".join(map(str, spending.views))
    return MissingRowsError(
        f"{path} has no answer for {len(rows)} of the {spending.budget // len(spending.views)} rows of {spending.name}"
        f" under view {number} ({', '.join(map(str, rows[:5]))}, ...); fill them with `teacher-server fill"
        f" --dataset {plan.grid.recipe.dataset.removesuffix('/train')}/{spending.dataset.rpartition('/')[2]}"
        f" --cache {path} --rows {spending.rows} --views {views} --teacher ...`",
        rows=rows,
        view=number,
    )

"""One sweep from its recipe to its results: rows, teacher, answers, trials, the choice of learning rates, tests.

Killed at any point and started again it goes on: what is finished is read back from its folder.
"""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from shared.host_cores import usable_cores
from student_trainer.results import versions
from student_trainer.rows import tested_rows
from student_trainer.sweep.audit import teacher_accuracy
from student_trainer.sweep.cells import Trial
from student_trainer.sweep.folder import SweepFolder
from student_trainer.sweep.opening import Plan, open_plan
from student_trainer.sweep.pool import Pool, Task
from student_trainer.sweep.progress import SweepView
from student_trainer.sweep.recipe import Recipe
from student_trainer.sweep.results import is_tested, result_row, score_of, sweep_header
from student_trainer.sweep.steps import Session, obtain_answers, prepare_rows, train_teacher
from student_trainer.sweep.tasks import Result, Training, read_result, train_student
from student_trainer.sweep.trials import Setting, choose_rates


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepSettings:
    """How a recipe is run; none of it changes the results on a CPU."""

    recipe: Recipe
    out: Path
    jobs: int
    """Trainings at a time; 1 or more."""
    device: str
    gpus: tuple[str, ...]
    """One process sees one of these; none where students are trained on the CPU."""
    command: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a finished sweep came to."""

    trials: int
    cells: int
    diverged: int
    """Trials whose loss left the numbers."""
    lost: tuple[str, ...]
    """Cells of which no trial ended."""
    teacher_calls: int


def visible_gpus(environment: Mapping[str, str], *, device: str) -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none where the CPU is meant."""
    if device == "cpu" or not torch.cuda.is_available():
        return ()
    given = environment.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in given.split(",") if name.strip()]
    return tuple(names or map(str, range(torch.cuda.device_count())))


def default_jobs(gpus: tuple[str, ...]) -> int:
    """One training per GPU, else one per core that this process may use."""
    return len(gpus) or usable_cores()


def run_sweep(settings: SweepSettings, *, view: SweepView) -> Outcome:
    """Run every trial of the recipe that is not finished, and leave results.jsonl and sweep.json in ``out``."""
    plan = open_plan(settings.recipe, out=settings.out.absolute(), device=settings.device, command=settings.command)
    with (
        closing(SweepFolder(settings.out, recipe=settings.recipe, data=plan.train_set.fingerprint)) as folder,
        Pool(jobs=settings.jobs, gpus=settings.gpus) as pool,
    ):
        return _Sweep(settings, plan=plan, folder=folder, pool=pool, view=view).run()


class _Sweep:
    """One sweep in progress."""

    def __init__(
        self, settings: SweepSettings, *, plan: Plan, folder: SweepFolder, pool: Pool, view: SweepView
    ) -> None:
        self._settings = settings
        self._plan = plan
        self._folder = folder
        self._pool = pool
        self._view = view
        self._trials = list(plan.grid.trials())
        self._results: dict[PurePosixPath, Result] = {}

    def run(self) -> Outcome:
        """All steps."""
        plan = self._plan
        session = Session(plan=plan, folder=self._folder, pool=self._pool, view=self._view)
        prepare_rows(session)
        teacher = train_teacher(session)
        asked = obtain_answers(session)
        self._folder.keep_recipe()
        setting = replace(plan.setting, teacher=asked.teacher, paid=frozenset(asked.runs))
        accuracy = self._teacher_accuracy(asked.teacher, setting=setting, trained=teacher)
        lost = f", {asked.attempts - asked.teacher_calls} attempts lost" if asked.attempts > asked.teacher_calls else ""
        shown = "" if accuracy is None else f", {100 * accuracy:.2f} % on {plan.test_set.name}"
        self._view.say(f"teacher {asked.teacher}{shown}: {asked.teacher_calls:,} calls{lost}")

        def publish(device: str) -> None:
            header = sweep_header(
                plan.grid,
                setting=setting,
                asked=asked,
                teacher_accuracy=accuracy,
                dataset=plan.train_set,
                machine=self._machine(device),
            )
            self._folder.keep_sweep(header)

        publish(self._settings.device)
        self._read_back(setting)
        try:
            self._train(setting)
            rates = self._rates()
            self._test(self._chosen(rates), setting=setting)
        except KeyboardInterrupt:
            # What ended in another process and was not heard of yet.
            self._read_back(setting)
            raise
        self._keep_results(setting)
        devices = [result["device"] for result in self._results.values() if "device" in result]
        publish(devices[0] if devices else self._settings.device)
        return Outcome(
            trials=len(self._trials),
            cells=len(plan.grid.cells),
            diverged=sum("diverged" in result for result in self._results.values()),
            lost=tuple(str(cell.path) for cell in plan.grid.cells if cell.path not in rates),
            teacher_calls=asked.teacher_calls,
        )

    def _read_back(self, setting: Setting) -> None:
        """Find what is finished, and begin results.jsonl with it."""
        for trial in self._trials:
            result = read_result(setting.runs / trial.path)
            if result is not None:
                self._results[trial.path] = result
        self._keep_results(setting)

    def _rates(self) -> dict[PurePosixPath, float]:
        """The learning rate of every cell whose trials are all finished."""
        unfinished = {trial.cell.path for trial in self._trials if trial.path not in self._results}
        return choose_rates(
            (trial, score_of(self._results[trial.path])) for trial in self._trials if trial.cell.path not in unfinished
        )

    def _chosen(self, rates: Mapping[PurePosixPath, float]) -> list[Trial]:
        """Trials of these learning rates."""
        return [trial for trial in self._trials if rates.get(trial.cell.path) == trial.lr]

    def _keep_results(self, setting: Setting) -> None:
        """Write results.jsonl anew; a trial is called chosen once its whole cell is tested."""
        chosen = self._chosen(self._rates())
        untested = {trial.cell.path for trial in chosen if not is_tested(self._results[trial.path])}
        paths = {trial.path for trial in chosen if trial.cell.path not in untested}
        self._folder.keep_results(
            [
                result_row(trial, self._results[trial.path], setting=setting, chosen=trial.path in paths)
                for trial in self._trials
                if trial.path in self._results
            ]
        )

    def _train(self, setting: Setting) -> None:
        """Train what is not finished."""
        left = [trial for trial in self._trials if trial.path not in self._results]
        # Where there is nothing to choose, a training is tested at its end.
        test = len(setting.recipe.lr) == 1
        by_name = {str(trial.path): trial for trial in left}
        tasks = [self._task(trial, setting=setting, test=test) for trial in left]
        work = {name: setting.forwards(trial) for name, trial in by_name.items()}
        if tasks:
            self._view.begin("trials", tasks=len(tasks), work=sum(work.values()))
        for task, result in self._pool.run(tasks, hear=lambda event: self._view.move(event.name, done=event.done)):
            trial = by_name[task.name]
            self._results[trial.path] = result
            self._folder.add_result(result_row(trial, result, setting=setting, chosen=False))
            self._view.finish(task.name, work=work[task.name], outcome=_outcome(result))
            if test and all(other.path in self._results for other in self._trials if other.cell == trial.cell):
                self._keep_results(setting)

    def _test(self, chosen: list[Trial], *, setting: Setting) -> None:
        """Test the trials of the chosen learning rates, once."""
        left = [trial for trial in chosen if not is_tested(self._results[trial.path])]
        by_name = {str(trial.path): trial for trial in left}
        tasks = [self._task(trial, setting=setting, test=True) for trial in left]
        if tasks:
            self._view.begin("tests", tasks=len(tasks), work=len(tasks))
        for task, result in self._pool.run(tasks, hear=lambda event: None):
            trial = by_name[task.name]
            self._results[trial.path] = result
            if all(is_tested(self._results[other.path]) for other in chosen if other.cell == trial.cell):
                self._keep_results(setting)
            self._view.finish(task.name, work=1, outcome=_outcome(result))

    def _task(self, trial: Trial, *, setting: Setting, test: bool) -> Task:
        config = replace(setting.config(trial), test=test)
        training = Training(name=str(trial.path), config=config, rows=setting.rows_of(trial.cell))
        return Task(name=str(trial.path), function=train_student, argument=training)

    def _teacher_accuracy(self, teacher: str, *, setting: Setting, trained: Result | None) -> float | None:
        if trained is not None:
            accuracy: float | None = trained["test_accuracy_last"]
            return accuracy
        recipe, test_set = setting.recipe, self._plan.test_set
        if not recipe.references.teacher or setting.cache is None:
            return None
        rows_N = tested_rows(test_set, sample=recipe.test_sample)
        return teacher_accuracy(setting.cache, teacher=teacher, test_set=test_set, rows_N=rows_N)

    def _machine(self, device: str) -> dict[str, Any]:
        return {"device": device, "threads": 1, "jobs": self._settings.jobs, "versions": versions()}


def _outcome(result: Result) -> str:
    if "diverged" in result:
        return "diverged"
    val, test = result["val_accuracy_best"], result["test_accuracy_best"] or result["test_accuracy_last"]
    parts = [("val", val), ("test", test)]
    return ", ".join(f"{name} {100 * value:.2f} %" for name, value in parts if value is not None) or "trained"

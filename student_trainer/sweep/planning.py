"""What a sweep would do and cost, in a few lines, before anything runs. Shape key: N rows."""

from collections.abc import Iterator

import numpy as np

from student_trainer.rows import tested_rows
from student_trainer.selecting import LOOKING
from student_trainer.sweep.draws import draw_rows
from student_trainer.sweep.opening import Plan
from student_trainer.sweep.steps import asks_test


def plan_lines(plan: Plan) -> Iterator[str]:
    """The plan, a line for each quantity."""
    grid, recipe = plan.grid, plan.grid.recipe
    trials = list(grid.trials())
    yield f"{recipe.name}: {recipe.question}" if recipe.question else recipe.name
    yield (
        f"data         {plan.train_set.name}, {plan.train_set.num_rows:,} rows of {len(plan.train_set.classes)} classes"
    )
    yield f"cells        {len(grid.cells):,}"
    yield (
        f"trials       {len(trials):,} (each cell: {len(recipe.seeds)} seeds x {len(recipe.lr)} learning rates), then"
        f" {len(grid.cells) * len(recipe.seeds):,} tests"
    )
    calls, exact = teacher_calls(plan)
    yield f"calls        {'' if exact else 'at most '}{calls:,} distinct images and views; none for those in the cache"
    if asks_test(grid):
        count = len(tested_rows(plan.test_set, sample=recipe.test_sample))
        yield f"             and {count:,} for the teacher's own accuracy on {plan.test_set.name}"
    budgets = [run.budget for run in grid.budget_runs()]
    yield f"charged      {sum(budgets):,} in {len(budgets):,} budget runs"
    yield f"student      at most {sum(plan.setting.forwards(trial) for trial in trials):,} images forward and backward"


def teacher_calls(plan: Plan) -> tuple[int, bool]:
    """Distinct (row, view) to ask about, and whether that is exact: some selections look at a student first."""
    grid, num_rows = plan.grid, plan.train_set.num_rows
    asked_N_by_view = {view: np.zeros(num_rows, dtype=np.bool_) for views in grid.views for view in views.numbers}
    more = 0
    for seed in grid.recipe.seeds:
        pool = draw_rows(num_rows=num_rows, seed=seed, val=grid.recipe.val).pool
        for views in grid.views:
            images = max(grid.recipe.budgets) // len(views.numbers)
            for select in grid.recipe.select:
                if select == "random":
                    for view in views.numbers:
                        asked_N_by_view[view][pool[:images]] = True
                else:
                    # An order that looks at a first student begins with the rows that it was trained on.
                    first = grid.least_images if select in LOOKING else 0
                    for view in views.numbers:
                        asked_N_by_view[view][pool[:first]] = True
                    more += (images - first) * len(views.numbers)
    return sum(int(asked_N.sum()) for asked_N in asked_N_by_view.values()) + more, more == 0

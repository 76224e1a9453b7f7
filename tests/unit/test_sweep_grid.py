"""The grid of a sweep: its cells, rows, trainings, the choice of learning rates, and what may change in a folder."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.errors import IdentityError, InputError
from shared.identity import sample_rows
from student_trainer.order import epoch_batches
from student_trainer.sweep.cells import Grid, Trial, build_grid
from student_trainer.sweep.draws import RowFiles, check_pool, draw_rows
from student_trainer.sweep.folder import SweepFolder, differing
from student_trainer.sweep.recipe import Recipe
from student_trainer.sweep.steps import all_splits
from student_trainer.sweep.trials import Setting, choose_rates


def recipe_of(**changes: Any) -> Recipe:
    document = {
        "name": "grid",
        "dataset": "digits",
        "teacher": {"spec": "fake:10"},
        "students": ["zoo:mlp"],
        "losses": ["kl", {"label": "kl + labels", "loss": "kl", "missing": "label-only"}],
        "budgets": [40, 80],
        "seeds": 2,
        "lr": [0.1, 0.01],
        "train": {"steps": 30, "batch": 16},
    }
    return Recipe.model_validate(document | changes)


def grid_of(**changes: Any) -> Grid:
    return build_grid(recipe_of(**changes), view_policy="crop1")


def setting_of(grid: Grid, *, num_rows: int = 1000) -> Setting:
    return Setting(
        recipe=grid.recipe,
        files=RowFiles(Path("rows"), val=grid.recipe.val),
        runs=Path("runs"),
        cache=Path("cache"),
        teacher="fake",
        num_rows=num_rows,
        device="cpu",
        command="",
    )


def test_every_training_has_the_view_policy_of_the_sweep() -> None:
    grid = grid_of()
    setting = replace(setting_of(grid), view_policy="randaug:n=2,m=9,base=crop1,seed=0")
    assert {setting.config(trial).view_policy for trial in grid.trials()} == {setting.view_policy}
    assert setting_of(grid).config(next(grid.trials())).view_policy is None


def test_every_cell_has_each_seed_and_learning_rate_once() -> None:
    grid = grid_of()
    assert [str(cell.path) for cell in grid.cells] == [
        "mlp/clean/random/n40/kl",
        "mlp/clean/random/n40/kl-labels",
        "mlp/clean/random/n80/kl",
        "mlp/clean/random/n80/kl-labels",
        "mlp/clean/random/n0/ce-all-labels",
    ]
    counted = Counter((str(trial.cell.path), trial.seed, trial.lr) for trial in grid.trials())
    assert len(counted) == 5 * 2 * 2
    assert set(counted.values()) == {1}
    assert len({trial.path for trial in grid.trials()}) == len(counted)


def test_a_budget_counts_images_times_views() -> None:
    views = [{"name": "clean"}, {"name": "four", "teacher": "1-4", "student": "same"}]
    grid = grid_of(views=views)
    assert [(run.name, run.images) for run in grid.budget_runs() if run.seed == 0] == [
        ("random.s0.clean.n40", 40),
        ("random.s0.clean.n80", 80),
        ("random.s0.four.n40", 10),
        ("random.s0.four.n80", 20),
    ]
    with pytest.raises(InputError, match="budgets: 40 calls are no whole number of images under the 3 views of 'x'"):
        grid_of(views=[{"name": "x", "teacher": "0-2"}])


def test_a_draw_is_the_published_order_and_its_parts_never_meet() -> None:
    draw = draw_rows(num_rows=1000, seed=3, val=True)
    order = sample_rows(num_rows=1000, count=1000, seed=3)
    assert draw.held.tolist() == order[4::5].tolist()
    assert draw.pool.tolist() == [row for place, row in enumerate(order.tolist()) if place % 5 != 4]
    assert not set(draw.pool.tolist()) & set(draw.held.tolist())
    # 20 % of all labels used: one row validates four.
    assert [len(draw.held_for(count)) for count in (1, 4, 5, 80, 800)] == [1, 1, 2, 20, 200]
    assert draw.held_for(40).tolist() == draw.held_for(80)[:10].tolist()


def test_without_validation_all_rows_may_be_asked_about() -> None:
    draw = draw_rows(num_rows=50, seed=0, val=False)
    assert sorted(draw.pool.tolist()) == list(range(50))
    assert len(draw.held) == 0
    check_pool(num_rows=50, most_images=50, val=False)
    with pytest.raises(InputError, match="50 images are more than the 40 that may be asked about"):
        check_pool(num_rows=50, most_images=50, val=True)


def test_the_losses_of_a_cell_share_rows_and_steps() -> None:
    grid = grid_of()
    setting = setting_of(grid)
    configs = {str(cell.path): setting.config(Trial(cell=cell, seed=1, lr=0.1)) for cell in grid.cells}
    kl, labels = configs["mlp/clean/random/n40/kl"], configs["mlp/clean/random/n40/kl-labels"]
    assert kl.rows == labels.answer_rows == Path("rows/asked-random-s1-n40.npy")
    assert kl.val_rows == Path("rows/held-s1-n40.npy")
    assert (labels.rows, labels.val_rows) == (Path("rows/asked-all-s1.npy"), Path("rows/held-all-s1.npy"))
    assert (labels.missing, kl.missing) == ("label-only", "error")
    for config, rows in ((kl, 40), (configs["mlp/clean/random/n80/kl"], 80), (labels, 800)):
        per_epoch = len(epoch_batches(count=rows, batch=16, least=2, seed=0, epoch=0))
        assert 30 <= config.epochs * per_epoch < 30 + per_epoch
    assert not any(config.test for config in configs.values())


def test_the_learning_rate_is_chosen_by_the_mean_over_seeds() -> None:
    grid = grid_of(losses=["kl"], budgets=[40], references={"ce_all": False})
    cell = grid.cells[0]

    def chosen(scores: dict[tuple[int, float], float | None]) -> float | None:
        return choose_rates((Trial(cell=cell, seed=seed, lr=lr), score) for (seed, lr), score in scores.items()).get(
            cell.path
        )

    assert chosen({(0, 0.1): 0.9, (1, 0.1): 0.5, (0, 0.01): 0.8, (1, 0.01): 0.7}) == 0.01
    assert chosen({(0, 0.1): 0.9, (1, 0.1): 0.5, (0, 0.01): 0.5, (1, 0.01): 0.9}) == 0.01
    assert chosen({(0, 0.1): 0.9, (1, 0.1): None, (0, 0.01): 0.6, (1, 0.01): 0.6}) == 0.01
    assert chosen({(0, 0.1): 0.4, (1, 0.1): 0.4, (0, 0.01): None, (1, 0.01): None}) == 0.1
    assert chosen({(0, 0.1): None, (1, 0.1): None}) is None
    # In floating point 0.1 + 0.2 + 0.3 and 0.3 + 0.2 + 0.1 differ; as means they are equal.
    assert chosen({(0, 0.1): 0.1, (1, 0.1): 0.2, (2, 0.1): 0.3, (0, 0.01): 0.3, (1, 0.01): 0.2, (2, 0.01): 0.1}) == 0.01


def test_rows_that_change_under_a_sweep_are_an_error(tmp_path: Path) -> None:
    files = RowFiles(tmp_path / "rows", val=True)
    path = files.asked(select="random", seed=0, images=3)
    files.keep(path, np.array([5, 7, 9]))
    files.keep(path, np.array([5, 7, 9]))
    with pytest.raises(IdentityError, match="holds other rows than this sweep would draw"):
        files.keep(path, np.array([5, 7, 8]))


def test_a_grid_may_grow_and_nothing_else_may_change() -> None:
    before = recipe_of().resolved()
    grown = recipe_of(budgets=[20, 40, 80], seeds=3, losses=[*before["losses"], "ce"]).resolved()
    assert differing(before, grown) == []
    assert differing(grown, before) != []
    (found,) = differing(before, recipe_of(train={"steps": 31, "batch": 16}).resolved())
    assert found.startswith("train was ")
    (found,) = differing(before, recipe_of(losses=["kl"]).resolved())
    assert found.startswith("losses was ")


def test_what_decides_no_number_may_change() -> None:
    one, other = (
        recipe_of(teacher={"server": f"http://127.0.0.1:{port}"}, question=str(port), download=port == 1).resolved()
        for port in (1, 2)
    )
    assert differing(one, other) == []
    assert differing(one, recipe_of(teacher={"spec": "fake:10"}).resolved()) != []


def test_a_folder_belongs_to_one_recipe_and_one_data_set(tmp_path: Path) -> None:
    SweepFolder(tmp_path / "out", recipe=recipe_of(), data="a").close()
    SweepFolder(tmp_path / "out", recipe=recipe_of(seeds=3), data="a").close()
    # Until the teacher is asked, a recipe may be corrected.
    SweepFolder(tmp_path / "out", recipe=recipe_of(lr=[0.5]), data="a").close()
    SweepFolder(tmp_path / "out", recipe=recipe_of(), data="a").close()
    (tmp_path / "out" / "cache").mkdir()
    (tmp_path / "out" / "cache" / "ledger.sqlite3").touch()
    with pytest.raises(IdentityError, match=r"another recipe: lr was \[0.1, 0.01\], is \[0.5\]; give the"):
        SweepFolder(tmp_path / "out", recipe=recipe_of(seeds=3, lr=[0.5]), data="a")
    with pytest.raises(IdentityError, match="data_fingerprint was"):
        SweepFolder(tmp_path / "out", recipe=recipe_of(seeds=3), data="b")
    folder = SweepFolder(tmp_path / "out", recipe=recipe_of(seeds=4), data="a")
    folder.close()
    # Until it has its answers, a larger recipe binds nobody.
    SweepFolder(tmp_path / "out", recipe=recipe_of(), data="a").close()
    folder.keep_recipe()
    with pytest.raises(IdentityError, match="seeds was"):
        SweepFolder(tmp_path / "out", recipe=recipe_of(), data="a")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(InputError, match="holds something that is no sweep"):
        SweepFolder(tmp_path / "other", recipe=recipe_of(), data="a")


def test_a_first_student_holds_the_smallest_budget(tmp_path: Path) -> None:
    SweepFolder(tmp_path / "out", recipe=recipe_of(select=["margin"], budgets=[20, 40]), data="a").close()
    (tmp_path / "out" / "runs").mkdir()
    SweepFolder(tmp_path / "out", recipe=recipe_of(select=["margin"], budgets=[20, 40, 80]), data="a").close()
    with pytest.raises(IdentityError, match="smallest budget was 20, and the first student"):
        SweepFolder(tmp_path / "out", recipe=recipe_of(select=["margin"], budgets=[10, 20, 40]), data="a")


@pytest.mark.parametrize(
    ("named", "served"),
    [("digits", "digits"), ("digits/train", "digits"), ("mine=torchvision:CIFAR10/train", "mine=torchvision:CIFAR10")],
)
def test_the_teacher_is_served_with_all_splits(named: str, served: str) -> None:
    assert all_splits(named) == served

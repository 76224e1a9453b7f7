"""Reading what a sweep left, and refusing what it did not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.errors import InputError
from student_trainer.reporting.grid import arrange
from student_trainer.reporting.results import read_sweep

Lines = Callable[..., list[dict[str, object]]]
Write = Callable[..., Path]
FEW = {"kl": (80.0, 2.0, 1.0, "loss"), "mse midpoint": (80.0, 2.0, 1.0, "control"), "ce": (70.0, 2.0, 1.0, "loss")}


def test_a_whole_sweep_is_complete(write_sweep: Write) -> None:
    results = read_sweep(write_sweep())
    assert results.complete
    assert results.cells == results.sweep.cells == 4 * 13 + 1
    assert len(results.tested) == 5 * results.cells
    assert len(results.trials) == 3 * len(results.tested)


def test_what_is_missing_makes_it_incomplete(write_sweep: Write, make_trials: Lines) -> None:
    lines = make_trials(methods=FEW)
    results = read_sweep(write_sweep(lines[:-1], cells=13, trials=len(lines)))
    assert not results.complete


def test_a_chosen_trial_that_was_not_tested_yet_does_not_count(write_sweep: Write, make_trials: Lines) -> None:
    lines = make_trials(methods=FEW, budgets=(50,), seeds=2)
    for line in lines:
        if line["loss"] == "kl":
            line["test_accuracy"] = None
    assert {trial.loss for trial in read_sweep(write_sweep(lines)).tested} == {"mse midpoint", "ce", "ce (all labels)"}


def test_a_line_that_a_killed_sweep_wrote_twice_counts_once(write_sweep: Write, make_trials: Lines) -> None:
    lines = make_trials(methods=FEW, budgets=(50,), seeds=2)
    assert len(read_sweep(write_sweep([*lines, lines[0]])).trials) == len(lines)


def test_later_fields_are_let_through(write_sweep: Write, make_trials: Lines) -> None:
    lines = [line | {"loss_version": 2} for line in make_trials(methods=FEW, budgets=(50,), seeds=2)]
    assert read_sweep(write_sweep(lines, later=True)).complete


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_accuracy": 93.2}, r"results.jsonl:2: test_accuracy: Input should be less than or equal to 1"),
        ({"budget": -1}, r"results.jsonl:2: budget: Input should be greater than or equal to 0"),
        ({"group": "other"}, r"results.jsonl:2: group: Input should be 'loss', 'control' or 'reference'"),
        ({"run": None}, r"results.jsonl:2: run: Input should be a valid string"),
    ],
)
def test_a_wrong_field_is_named_with_its_line(
    change: dict[str, object], message: str, write_sweep: Write, make_trials: Lines
) -> None:
    lines = make_trials(methods=FEW, budgets=(50,), seeds=2)
    lines[1] |= change
    with pytest.raises(InputError, match=message):
        read_sweep(write_sweep(lines))


def test_a_broken_line_is_named(write_sweep: Write) -> None:
    folder = write_sweep()
    path = folder / "results.jsonl"
    path.write_text(path.read_text() + '{"cell": "mlp/cl')
    with pytest.raises(InputError, match=r"results.jsonl:796: Invalid JSON"):
        read_sweep(folder)


def test_a_trial_that_says_two_things_is_refused(write_sweep: Write, make_trials: Lines) -> None:
    lines = make_trials(methods=FEW, budgets=(50,), seeds=2)
    with pytest.raises(InputError, match=r"cell mlp/clean/random/n50/kl, seed 0, lr 0\.1 stands there twice"):
        read_sweep(write_sweep([*lines, lines[0] | {"val_accuracy": 0.5}]))


def test_seeds_of_a_cell_share_one_learning_rate(write_sweep: Write, make_trials: Lines) -> None:
    lines = make_trials(methods=FEW, budgets=(50,), seeds=2)
    lines[0] |= {"chosen": True, "test_accuracy": 0.5}
    with pytest.raises(InputError, match="n50/kl has two chosen learning rates"):
        read_sweep(write_sweep(lines))


def test_another_format_is_refused(write_sweep: Write) -> None:
    with pytest.raises(InputError, match="has format 2; this version reads format 1"):
        read_sweep(write_sweep(format=2))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("sweep.json", None, "sweep.json is missing; run `student-trainer sweep"),
        ("sweep.json", "{", "sweep.json is no JSON"),
        ("sweep.json", "[]", "has format None"),
        ("sweep.json", '{"format": 1}', "sweep.json: name: Field required"),
        ("results.jsonl", None, "results.jsonl is missing: no trial"),
        ("results.jsonl", "", "holds no tested trial yet"),
    ],
)
def test_a_folder_without_a_result_says_what_is_missing(
    name: str, content: str | None, message: str, write_sweep: Write
) -> None:
    folder = write_sweep()
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_sweep(folder)


def test_methods_stand_in_the_order_of_the_recipe(write_sweep: Write, make_trials: Lines) -> None:
    recipe = {"losses": [{"label": name} for name in ("ce", "mse midpoint", "kl")]}
    lines = sorted(make_trials(methods=FEW, budgets=(50, 100), seeds=2), key=json.dumps)
    results = read_sweep(write_sweep(lines, recipe=recipe))
    (panel,) = arrange(results.tested, order=results.sweep.names)
    assert panel.methods == ("ce", "kl", "mse midpoint")  # the control after the losses
    assert panel.budgets == (50, 100)


def test_panels_hold_everything_but_the_method_fixed(write_sweep: Write, make_trials: Lines) -> None:
    lines = [line for select in ("random", "herding") for line in make_trials(methods=FEW, select=select, seeds=2)]
    results = read_sweep(write_sweep(lines))
    panels = arrange(results.tested)
    assert [panel.title for panel in panels] == ["random", "herding"]
    assert all(panel.methods == ("kl", "ce", "mse midpoint") for panel in panels)
    assert [[cell.method for cell in panel.references] for panel in panels] == [["ce (all labels)"]] * 2
    by_select = arrange(results.tested, compare="select")
    assert [panel.title for panel in by_select] == ["kl", "mse midpoint", "ce"]
    assert all(panel.methods == ("random", "herding") for panel in by_select)


def test_a_study_of_views_compares_views(write_sweep: Write, make_trials: Lines) -> None:
    one = {"kl": FEW["kl"]}
    lines = [line for views in ("clean", "one", "four") for line in make_trials(methods=one, views=views, seeds=2)]
    (panel,) = arrange(read_sweep(write_sweep(lines)).tested)
    assert (panel.axis, panel.methods) == ("views", ("clean", "one", "four"))


def test_a_reference_belongs_to_its_student(write_sweep: Write, make_trials: Lines) -> None:
    lines = [
        line for student in ("zoo:mlp", "zoo:resnet8") for line in make_trials(methods=FEW, student=student, seeds=2)
    ]
    for line in lines:
        if (line["student"], line["budget"], line["chosen"]) == ("zoo:resnet8", 0, True):
            line["test_accuracy"] = 0.5
    panels = {panel.title: panel for panel in arrange(read_sweep(write_sweep(lines)).tested)}
    assert panels["zoo:resnet8"].references[0].mean == 0.5
    assert panels["zoo:mlp"].references[0].mean > 0.9


def test_nothing_but_references_is_nothing_to_compare(write_sweep: Write, make_trials: Lines) -> None:
    lines = [line for line in make_trials(methods=FEW, seeds=2) if not line["budget"]]
    with pytest.raises(InputError, match="only references without teacher calls"):
        arrange(read_sweep(write_sweep(lines)).tested)

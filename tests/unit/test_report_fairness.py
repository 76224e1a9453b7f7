"""Sweeps that a report could misread: all labels used, several views, another's ledger, diverged trainings."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.datasets.spec import open_dataset
from shared.errors import InputError
from student_trainer.reporting.accounts import ledger_problems, ledger_verdict
from student_trainer.reporting.analysis import Analysis, analyse
from student_trainer.reporting.figure import accuracy_figure
from student_trainer.reporting.findings import completeness, findings, headline
from student_trainer.reporting.limits import limits
from student_trainer.reporting.page import page
from student_trainer.reporting.palette import DARK, LIGHT, panel_styles
from student_trainer.reporting.protocol import protocol, provenance
from student_trainer.reporting.results import SweepResults, read_sweep
from student_trainer.reporting.tables import accuracy_csv, cost_rows
from student_trainer.sweep.asking import Asked
from student_trainer.sweep.cells import build_grid
from student_trainer.sweep.draws import RowFiles
from student_trainer.sweep.recipe import Recipe
from student_trainer.sweep.results import sweep_header
from student_trainer.sweep.trials import Setting

Line = dict[str, object]
Lines = Callable[..., list[Line]]
Write = Callable[..., Path]
Method = tuple[float, float, float, str]
FEW: dict[str, Method] = {
    "kl": (90.0, 2.0, 0.4, "loss"),
    "ckd": (90.0, 2.0, 0.4, "loss"),
    "ce": (80.0, 2.0, 0.4, "loss"),
    "mse midpoint": (85.0, 2.0, 0.4, "control"),
}
LABEL_ONLY = FEW | {"kl label-only": (97.0, 0.3, 0.2, "loss"), "ckd label-only": (97.0, 0.3, 0.2, "loss")}


@pytest.fixture
def label_only(write_sweep: Write, make_trials: Lines) -> Analysis:
    """A sweep of which two methods use the labels of all images."""
    lines = make_trials(methods=LABEL_ONLY, budgets=(100, 200))
    for line in lines:
        if "label-only" in str(line["loss"]):
            line |= {"rows": 1150, "student_forwards": 26_450}
    return analyse(read_sweep(write_sweep(lines)), targets=[93])


def page_text(analysis: Analysis) -> str:
    """The page, with pictures that take no time to draw."""
    drawings = {LIGHT: b"<svg/>", DARK: b"<svg/>"}
    return page(analysis, accuracy=drawings, differences=drawings)


def test_a_method_that_uses_all_labels_blanks_no_reduction(label_only: Analysis) -> None:
    (part,) = label_only.panels
    assert set(part.panel.methods) - set(part.panel.ranked) == {"kl label-only", "ckd label-only"}
    reached = {entry.method: entry for entry in part.reach}
    assert reached["kl label-only"].calls < 0  # from its smallest budget on: no number could be held against it
    assert reached["kl"].reduction is not None
    assert reached["ckd"].reduction is not None
    assert reached["kl label-only"].reduction is None
    assert [entry.method for entry in part.reach if entry.all_labels] == ["kl label-only", "ckd label-only"]


def test_a_method_that_uses_all_labels_wins_nothing(label_only: Analysis) -> None:
    said = findings(label_only)
    assert not any("label-only is highest" in text for text in said)
    assert any(text.startswith("Not ranked: kl label-only, ckd label-only, which use the") for text in said)
    assert not any("label-only" in text for text in headline(label_only))
    assert page_text(label_only).count("<small>uses all labels</small>") == 4  # in two tables


def test_methods_that_all_use_all_labels_are_held_against_each_other(write_sweep: Write, make_trials: Lines) -> None:
    lines = make_trials(methods={"kl": FEW["kl"], "mse": FEW["kl"]}, budgets=(100, 200))
    for line in lines:
        line["rows"] = 1150
    (part,) = analyse(read_sweep(write_sweep(lines))).panels
    assert part.panel.ranked == ("kl", "mse")


def test_forwards_of_methods_that_use_all_labels_are_told_apart(label_only: Analysis) -> None:
    text = " ".join(protocol(label_only.results))
    assert "kl label-only trains on the labels of all images and forwards 26,450, the methods beside it" in text
    assert text.count("26,450") == 2


@pytest.mark.parametrize(
    ("schedule", "reason"), [("plateau", "early stopping makes"), ("cosine", "steps are rounded up to whole epochs")]
)
def test_unequal_forwards_have_the_reason_of_the_schedule(
    schedule: str, reason: str, write_sweep: Write, make_trials: Lines
) -> None:
    lines = make_trials(methods=FEW, budgets=(50,))
    for line in lines:
        line["student_forwards"] = 9000 if line["loss"] == "ckd" else 6000
    results = read_sweep(write_sweep(lines, recipe={"train": {"schedule": schedule}}))
    (sentence,) = (text for text in protocol(results) if "times between two methods" in text)
    assert reason in sentence


def with_draws(lines: list[Line]) -> list[Line]:
    """As of four views per image: chosen trainings ended before they had drawn every answer."""
    for line in lines:
        line["rows"] = int(str(line["rows"])) // 4
        line["answered_rows"] = int(str(line["answered_rows"])) // 4
        if line["chosen"] and line["charged"]:
            line["charged"] = int(str(line["charged"])) - 5
    return lines


def test_answers_that_no_epoch_drew_are_paid_for_all_the_same(write_sweep: Write, make_trials: Lines) -> None:
    analysis = analyse(read_sweep(write_sweep(with_draws(make_trials(methods=FEW)))))
    assert ledger_problems(analysis.results) == []
    (part,) = analysis.panels
    assert [cell.calls for cell in part.panel.curve("kl")] == [50, 100, 200, 400]
    assert [row[2:4] for row in cost_rows(part.panel) if row[1] == "kl"][:2] == [("50", "45"), ("100", "95")]
    rows = {(row["loss"], row["budget"]): row for row in csv.DictReader(io.StringIO(accuracy_csv(analysis)))}
    assert (rows["kl", "50"]["charged"], rows["kl", "50"]["consumed"]) == ("50.0", "45.0")
    assert part.panel.ranked == part.panel.methods


def test_identical_images_are_paid_for_once(write_sweep: Write, make_trials: Lines) -> None:
    lines = make_trials(methods=FEW)
    for line in lines:
        line["charged"] = max(0, int(str(line["charged"])) - 2)
    analysis = analyse(read_sweep(write_sweep(lines)))
    (part,) = analysis.panels
    assert [cell.calls for cell in part.panel.curve("kl")] == [48, 98, 198, 398]
    assert [cell.calls for cell in part.panel.curve("ce")] == [50, 100, 200, 400]
    ticks = accuracy_figure(analysis, theme=LIGHT).axes[0].get_xticks()
    assert list(ticks) == [50, 100, 200, 400]  # not one for each of two that would overlap


def of_a_server(folder: Path, **ledger: object) -> SweepResults:
    """The sweep with a ledger that is not its own: larger budgets were charged for the rest only."""
    header = json.loads((folder / "sweep.json").read_text())
    for run in header["ledger"]["runs"].values():
        run["charged"] = run["teacher_calls"]
    header["ledger"] |= ledger
    (folder / "sweep.json").write_text(json.dumps(header))
    return read_sweep(folder)


def test_the_ledger_of_a_running_server_is_not_held_against_the_trainings(
    write_sweep: Write, make_trials: Lines
) -> None:
    results = of_a_server(write_sweep(make_trials(methods=FEW)), own=False)
    assert ledger_problems(results) == []
    assert "of a running server" in ledger_verdict(results)
    assert "agree" not in ledger_verdict(results)
    (part,) = analyse(results).panels
    assert [cell.calls for cell in part.panel.curve("kl")] == [50, 100, 200, 400]


def test_an_older_header_means_a_ledger_of_its_own(write_sweep: Write, make_trials: Lines) -> None:
    assert ledger_problems(of_a_server(write_sweep(make_trials(methods=FEW))))


def test_answers_from_a_cache_have_no_ledger_to_agree_with(write_sweep: Write, make_trials: Lines) -> None:
    lines = [line | {"ledger_run": None} for line in make_trials(methods=FEW)]
    results = of_a_server(write_sweep(lines), own=False)
    assert "its answers were found in a cache" in ledger_verdict(results)


@pytest.mark.parametrize(
    ("teacher", "own"), [({"spec": "fake:10"}, True), ({"server": "http://host:1"}, False), ({"cache": "c"}, False)]
)
def test_a_sweep_says_whose_ledger_it_is(teacher: dict[str, str], own: bool) -> None:
    recipe = Recipe.model_validate(
        {"name": "x", "dataset": "digits", "teacher": teacher, "students": "zoo:mlp", "losses": ["kl"]}
        | {"budgets": 50, "seeds": 1}
    )
    setting = Setting(
        recipe=recipe,
        files=RowFiles(Path("rows"), val=True),
        runs=Path("runs"),
        cache=None,
        teacher=None,
        num_rows=1437,
        device="cpu",
        command="",
    )
    header = sweep_header(
        build_grid(recipe, view_policy="crop1"),
        setting=setting,
        asked=Asked(teacher="fake", attempts=0, teacher_calls=0),
        teacher_accuracy=None,
        dataset=open_dataset("digits/train"),
        machine={},
    )
    assert header["ledger"]["own"] is own


def test_a_control_is_no_control_among_views(write_sweep: Write, make_trials: Lines) -> None:
    methods: dict[str, Method] = {"kl": FEW["kl"], "ce": (80.0, 2.0, 0.4, "control")}
    lines = [line for name in ("clean", "four") for line in make_trials(methods=methods, views=name, seeds=2)]
    analysis = analyse(read_sweep(write_sweep(lines)), compare="views")
    looks = panel_styles(tuple(part.panel for part in analysis.panels), theme=LIGHT)
    assert {look.colour for look in looks.values()} == set(LIGHT.colours[:2])
    assert "<small>control" not in page_text(analysis)


@pytest.mark.parametrize("axis", ["views", "student"])
def test_every_view_and_student_keeps_its_own_reference(axis: str, write_sweep: Write, make_trials: Lines) -> None:
    one = {"kl": FEW["kl"]}
    lines = [line for name in ("a", "b", "c") for line in make_trials(methods=one, seeds=2, **{axis: name})]
    for line in lines:
        if (line[axis], line["budget"], line["chosen"]) == ("b", 0, True):
            line["test_accuracy"] = 0.5
    analysis = analyse(read_sweep(write_sweep(lines)), compare=axis)
    (part,) = analysis.panels
    names = {cell.method: cell.mean for cell in part.panel.references}
    assert list(names) == [f"ce (all labels), {name}" for name in ("a", "b", "c")]
    assert names["ce (all labels), b"] == 0.5
    assert sum("the best of 3 references, ce (all labels), " in text for text in findings(analysis)) == 1


def diverge(lines: list[Line], **where: object) -> list[Line]:
    """Let the trainings of these fields diverge, as a sweep writes them."""
    for line in lines:
        if all(line[name] == value for name, value in where.items()):
            line.update(diverged=True, val_accuracy=None, test_accuracy=None, ledger_run=None)
            line.update(dict.fromkeys(("answered_rows", "charged", "epochs", "student_forwards", "online_calls"), 0))
    return lines


def test_seeds_that_diverged_are_named(write_sweep: Write, make_trials: Lines) -> None:
    lines = diverge(make_trials(methods=FEW), loss="ckd", budget=50, seed=1)
    analysis = analyse(read_sweep(write_sweep(lines)))
    assert "Diverged at the chosen learning rate: ckd at 50 calls (1 of 5 seeds). The means" in findings(analysis)[-1]
    assert completeness(analysis) is None
    assert page_text(analysis).count("<td>diverged</td>") == 3


def test_a_cell_that_diverged_as_a_whole_is_named_and_done(write_sweep: Write, make_trials: Lines) -> None:
    lines = diverge(make_trials(methods=FEW), loss="ckd", budget=50)
    for line in lines:
        line["chosen"] = line["chosen"] and not line.get("diverged")
    analysis = analyse(read_sweep(write_sweep(lines)))
    assert "whatever the seed and learning rate: ckd at 50 calls." in findings(analysis)[-1]
    assert analysis.results.complete
    assert ("cells", "16 of 17 tested, 1 diverged") in provenance(analysis.results)


def test_a_cell_with_trainings_to_come_is_not_lost(write_sweep: Write, make_trials: Lines) -> None:
    lines = diverge(make_trials(methods=FEW), loss="ckd", budget=400)
    unfinished = [line for line in lines if (line["loss"], line["budget"], line["seed"]) != ("ckd", 400, 4)]
    results = read_sweep(write_sweep(unfinished, trials=len(lines)))
    assert (results.lost, results.complete) == ((), False)


def test_a_sweep_of_which_all_diverged_says_so(write_sweep: Write, make_trials: Lines) -> None:
    lines = [line | {"chosen": False} for line in diverge(make_trials(methods=FEW, budgets=(50,)))]
    with pytest.raises(InputError, match=r"every trial in .*results.jsonl diverged; sweep again with smaller"):
        read_sweep(write_sweep(lines))


def test_a_sweep_whose_first_trainings_diverged_is_not_given_up(write_sweep: Write, make_trials: Lines) -> None:
    lines = [line | {"chosen": False} for line in diverge(make_trials(methods=FEW, budgets=(50,)))]
    with pytest.raises(InputError, match="holds no tested trial yet"):
        read_sweep(write_sweep(lines[:4], trials=len(lines)))


def test_without_validation_nothing_was_chosen(write_sweep: Write, make_trials: Lines) -> None:
    lines = [
        line | {"val_rows": 0, "val_accuracy": None} for line in make_trials(methods=FEW, seeds=2) if line["chosen"]
    ]
    analysis = analyse(read_sweep(write_sweep(lines)))
    said = " ".join(protocol(analysis.results))
    assert "There were no validation rows" in said
    assert "once per cell and seed, at the last epoch, with one learning rate, not chosen." in said
    text = page_text(analysis)
    assert "validation chose" not in text
    assert "learning rate was chosen" not in text
    assert "No method was tuned" in " ".join(limits(analysis))


def test_one_learning_rate_is_not_said_to_be_chosen(write_sweep: Write, make_trials: Lines) -> None:
    lines = [line for line in make_trials(methods=FEW, seeds=2) if line["chosen"]]
    said = " ".join(protocol(read_sweep(write_sweep(lines))))
    assert "They choose the epoch." in said
    assert "at the epoch that validation chose, with one learning rate, not chosen." in said


def test_labels_alone_stand_at_the_budget_beside_them(write_sweep: Write, make_trials: Lines) -> None:
    analysis = analyse(read_sweep(write_sweep(with_draws(make_trials(methods=FEW)))))
    text = page_text(analysis)
    assert text.count("the budget of the methods beside") == 2
    assert "at the number of images" not in text
    assert "that of images" not in text
    assert [cell.calls for cell in analysis.panels[0].panel.curve("ce")] == [50, 100, 200, 400]


def test_three_seeds_point_and_do_not_show(write_sweep: Write, make_trials: Lines) -> None:
    lines = make_trials(methods=FEW, seeds=3)
    better = {"ckd": (0.951, 0.953, 0.952), "mse midpoint": (0.90, 0.902, 0.902), "ce": (0.8, 0.802, 0.801)}
    for line in lines:
        if line["chosen"] and str(line["loss"]) in better:
            line["test_accuracy"] = better[str(line["loss"])][int(str(line["seed"]))]
    analysis = analyse(read_sweep(write_sweep(lines)))
    answer, sentence = headline(analysis)
    assert answer == "It points to yes (n = 3, no claim)."
    assert "points to better (+5.07 points" in sentence
    assert "n = 3, no claim)." in sentence
    said = " ".join(findings(analysis))
    assert (
        "to beating cross-entropy on the labels of the same images, averaged over the budgets (n = 3, no claim)" in said
    )
    assert "points to better, no claim" in page_text(analysis)
    assert "differences shown (n = 3, no claim)" in page_text(analysis)

"""What the report says and shows: findings, page, tables, figures."""

import csv
import io
import re
import statistics
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from shared.errors import InputError
from student_trainer.reporting.accounts import forwards_ratio, ledger_checks, ledger_problems, savings
from student_trainer.reporting.analysis import Analysis, analyse
from student_trainer.reporting.figure import accuracy_figure, difference_figure, spread, svg_bytes
from student_trainer.reporting.findings import completeness, findings, headline
from student_trainer.reporting.limits import limits
from student_trainer.reporting.page import page
from student_trainer.reporting.palette import DARK, LIGHT, panel_styles
from student_trainer.reporting.protocol import protocol
from student_trainer.reporting.results import read_sweep
from student_trainer.reporting.tables import accuracy_csv, calls_csv, differences_csv, latex, markdown
from student_trainer.reporting.writing import write_report

Lines = Callable[..., list[dict[str, object]]]
Write = Callable[..., Path]
Method = tuple[float, float, float, str]
FEW: dict[str, Method] = {
    "kl": (90.0, 2.0, 0.4, "loss"),
    "ckd": (90.0, 2.0, 0.4, "loss"),
    "ce": (80.0, 2.0, 0.4, "loss"),
    "mse midpoint": (90.0, 2.0, 0.4, "control"),
}
VOID = {"meta", "br", "img", "source", "link", "hr"}


class Page(HTMLParser):
    """Reads a page as a browser would: what it loads, its text, whether its tags close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.labels: list[str] = []
        self.images_without_text = 0
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        self.loads += [
            value or "" for name, value in attrs if name in {"src", "srcset"} or (tag == "link" and name == "href")
        ]
        self.links += [given["href"] or ""] if tag == "a" else []
        self.ids += [given["id"] or ""] if "id" in given else []
        self.labels += [given["aria-labelledby"] or ""] if "aria-labelledby" in given else []
        self.images_without_text += tag == "img" and not given.get("alt")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data


def with_accuracy(lines: list[dict[str, object]], method: str, accuracies: list[float]) -> list[dict[str, object]]:
    """Give a method these accuracies, by seed, at every budget."""
    for line in lines:
        if line["loss"] == method and line["chosen"]:
            line["test_accuracy"] = accuracies[int(str(line["seed"]))]
    return lines


@pytest.fixture
def analysed(write_sweep: Write, make_trials: Lines) -> Analysis:
    return analyse(read_sweep(write_sweep(make_trials(methods=FEW))))


def report_text(analysis: Analysis) -> str:
    """The page, with pictures that take no time to draw."""
    drawings = {LIGHT: b"<svg/>", DARK: b"<svg/>"}
    return page(analysis, accuracy=drawings, differences=drawings if headline(analysis) else {})


def test_comparing_that_helps_is_said_to_help(write_sweep: Write, make_trials: Lines) -> None:
    lines = with_accuracy(make_trials(methods=FEW), "ckd", [0.951, 0.953, 0.952, 0.954, 0.950])
    lines = with_accuracy(lines, "mse midpoint", [0.900, 0.903, 0.901, 0.902, 0.900])
    answer, sentence = headline(analyse(read_sweep(write_sweep(lines))))
    assert answer == "Yes."
    # Differences 5.1, 5.0, 5.1, 5.2, 5.0 points: mean 5.08, standard error 0.0374, t quantile 2.776.
    assert sentence.startswith("ckd against mse midpoint: better (+5.08 points averaged over the budgets")
    assert "95 % interval +4.98 to +5.18" in sentence


def test_comparing_that_hurts_is_said_to_do_worse(write_sweep: Write, make_trials: Lines) -> None:
    lines = with_accuracy(make_trials(methods=FEW), "ckd", [0.851, 0.853, 0.852, 0.854, 0.850])
    lines = with_accuracy(lines, "mse midpoint", [0.900, 0.903, 0.901, 0.902, 0.900])
    answer, sentence = headline(analyse(read_sweep(write_sweep(lines))))
    assert answer == "No, it did worse."
    assert "worse (−4.92 points" in sentence


def test_what_five_seeds_cannot_tell_apart_is_said_so(write_sweep: Write, make_trials: Lines) -> None:
    lines = with_accuracy(make_trials(methods=FEW), "ckd", [0.91, 0.89, 0.90, 0.92, 0.88])
    lines = with_accuracy(lines, "mse midpoint", [0.90, 0.90, 0.89, 0.90, 0.90])
    answer, sentence = headline(analyse(read_sweep(write_sweep(lines))))
    assert answer == "It could not be shown to help."
    assert "no difference could be shown at n = 5 (+0.20 points" in sentence


def test_a_sweep_without_controls_asks_no_such_question(write_sweep: Write, make_trials: Lines) -> None:
    analysis = analyse(read_sweep(write_sweep(make_trials(methods={"kl": FEW["kl"], "ce": FEW["ce"]}))))
    assert headline(analysis) == []
    assert not [path for path in write_report(analysis) if path.stem == "comparing"]
    assert "Comparing samples" not in report_text(analysis)


def test_findings_name_who_is_highest_and_who_cannot_be_told_apart(write_sweep: Write, make_trials: Lines) -> None:
    lines = make_trials(methods=FEW, budgets=(100,))
    lines = with_accuracy(lines, "kl", [0.951, 0.953, 0.952, 0.954, 0.950])
    lines = with_accuracy(lines, "ckd", [0.950, 0.954, 0.951, 0.953, 0.950])
    lines = with_accuracy(lines, "mse midpoint", [0.850, 0.853, 0.851, 0.852, 0.850])
    lines = with_accuracy(lines, "ce", [0.800, 0.803, 0.801, 0.802, 0.800])
    said = " ".join(findings(analyse(read_sweep(write_sweep(lines)))))
    assert (
        "With 100 calls kl is highest, 95.20 % (n = 5); after correction for 6 pairs it cannot be told apart from ckd."
        in said
    )
    assert (
        "2 of 2 losses are shown to beat cross-entropy on the labels of the same images, at 100 calls;"
        " above it: kl (+15.08), ckd (+15.04)." in said
    )
    assert "no method reaches that in the mean" in said


def test_a_loss_that_uses_more_labels_is_not_held_against_fewer(write_sweep: Write, make_trials: Lines) -> None:
    lines = make_trials(methods=FEW, budgets=(100, 200))
    for line in lines:
        line["rows"] = 5000 if line["loss"] == "kl" else line["rows"]
    (part,) = analyse(read_sweep(write_sweep(lines))).panels
    assert {pair.first for pair in part.lifted} == {"ckd"}
    assert {pair.second for pair in part.lifted} == {"ce"}
    assert part.lifted[0].budgets == (100, 200)


def test_references_that_trained_for_longer_are_named(write_sweep: Write, make_trials: Lines) -> None:
    lines = make_trials(methods=FEW)
    for line in lines:
        line["student_forwards"] = 40_000 if line["budget"] == 0 else 19_200
    text = " ".join(protocol(read_sweep(write_sweep(lines))))
    assert "The references without calls forward 40,000 images, the methods 19,200:" in text


def test_calls_that_buy_more_than_all_labels_are_named(write_sweep: Write, make_trials: Lines) -> None:
    lines = with_accuracy(make_trials(methods=FEW, budgets=(100, 200)), "kl", [0.99] * 5)
    assert any("passed by kl at 100, kl at 200" in text for text in findings(analyse(read_sweep(write_sweep(lines)))))


def test_few_seeds_are_called_few(write_sweep: Write, make_trials: Lines) -> None:
    text = " ".join(limits(analyse(read_sweep(write_sweep(make_trials(methods=FEW, seeds=3))))))
    assert "Fewer than 5 seeds (n = 3)" in text
    assert "cannot go below p = 0.25 at n = 3" in text
    assert "360 test images: one image is 0.28 points" in text


def test_one_seed_is_reported_and_not_tested(write_sweep: Write, make_trials: Lines) -> None:
    analysis = analyse(read_sweep(write_sweep(make_trials(methods=FEW, seeds=1))))
    text = report_text(analysis)
    assert "Some cells have one seed: they cannot be tested" in text
    assert "50 calls: 0 of 0 differences shown" in text


def test_an_incomplete_sweep_says_how_far_it_got(write_sweep: Write, make_trials: Lines) -> None:
    lines = make_trials(methods=FEW)
    analysis = analyse(read_sweep(write_sweep(lines[:150], cells=17, trials=len(lines))))
    assert "10 of 17 cells and 150 of 255 trials are finished" in str(completeness(analysis))
    assert "10 of 17 cells and 150 of 255 trials are finished" in report_text(analysis)


def test_a_complete_sweep_does_not_excuse_itself(analysed: Analysis) -> None:
    assert completeness(analysed) is None
    assert "not complete" not in report_text(analysed)


def test_a_ledger_that_agrees_has_no_problems(analysed: Analysis) -> None:
    assert ledger_problems(analysed.results) == []
    checks = ledger_checks(analysed.results)
    assert len(checks) == 4 * 5  # budgets x seeds
    assert sum(check.counts.teacher_calls for check in checks if check.counts) == 5 * 400
    assert "The ledger and the trainings agree" in report_text(analysed)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"charged": 49}, "trainings consumed 50"),
        ({"teacher_calls": 51, "attempts": 60}, "more calls than its budget"),
        ({"attempts": 3}, "more calls than attempts"),
    ],
)
def test_a_ledger_that_disagrees_is_told_at_the_top(
    change: dict[str, int], problem: str, write_sweep: Write, analysed: Analysis
) -> None:
    ledger = analysed.results.sweep.ledger.model_dump()
    ledger["runs"]["clean-random-n50-s2"] |= change
    sweep = analysed.results.sweep.model_copy(update={"ledger": type(analysed.results.sweep.ledger)(**ledger)})
    results = type(analysed.results)(folder=analysed.results.folder, sweep=sweep, trials=analysed.results.trials)
    assert f"run clean-random-n50-s2: {problem}" in ledger_problems(results)
    assert f"run clean-random-n50-s2: {problem}" in report_text(analyse(results))


def test_savings_are_sums_over_all_trainings(write_sweep: Write, make_trials: Lines) -> None:
    lines = make_trials(methods=FEW)
    total = savings(read_sweep(write_sweep(lines)))
    assert total.trainings == len(lines)
    assert total.online_calls == sum(int(str(line["online_calls"])) for line in lines)
    # Three losses ask; every one of 3 learning rates and 5 seeds consumes 50 + 100 + 200 + 400 answers.
    assert total.charged == 3 * 3 * 5 * 750
    assert total.teacher_calls == 5 * 400


def test_unequal_forwards_are_admitted(write_sweep: Write, make_trials: Lines) -> None:
    lines = make_trials(methods=FEW, budgets=(50,))
    for line in lines:
        line["student_forwards"] = 9000 if line["loss"] == "ckd" else 6000
    results = read_sweep(write_sweep(lines))
    assert forwards_ratio(results.tested) == pytest.approx(1.5)
    assert any("by up to 1.5 times" in text for text in protocol(results))


def test_the_protocol_reads_the_validation_share_from_the_rows(analysed: Analysis) -> None:
    assert any("Validation rows are 20 to 21 % of all labels" in text for text in protocol(analysed.results))


def test_the_page_needs_nothing_else(analysed: Analysis) -> None:
    read = Page(report_text(analysed))
    assert read.open == []
    assert len(read.loads) == 4  # two figures in two themes
    assert all(value.startswith("data:image/svg+xml;base64,") for value in read.loads)
    assert "<script" not in report_text(analysed)


def test_the_page_can_be_heard(analysed: Analysis) -> None:
    read = Page(report_text(analysed))
    assert read.images_without_text == 0
    assert len(set(read.ids)) == len(read.ids)
    assert set(read.labels) <= set(read.ids)
    assert read.labels


def test_every_training_is_linked(analysed: Analysis) -> None:
    read = Page(report_text(analysed))
    folder = analysed.results.folder
    linked = {
        (folder / "report" / unquote(link)).resolve().relative_to(folder.resolve()).as_posix() for link in read.links
    }
    assert linked == {trial.run for trial in analysed.results.trials}


def test_names_from_a_recipe_cannot_write_html(write_sweep: Write, make_trials: Lines) -> None:
    name = "<b>&$x_1$|{%"
    analysis = analyse(read_sweep(write_sweep(make_trials(methods=FEW | {name: FEW["kl"]}), name="<i>")))
    read = Page(report_text(analysis))
    assert read.open == []
    assert name in read.text
    assert r"<b>\&\$x\_1\$|\{\%" in latex(analysis)
    assert "| <b>&$x_1$\\|{% |" in markdown(analysis)


def test_the_numbers_of_the_table_are_those_of_the_lines(write_sweep: Write, make_trials: Lines) -> None:
    lines = make_trials(methods=FEW)
    analysis = analyse(read_sweep(write_sweep(lines)))
    rows = list(csv.DictReader(io.StringIO(accuracy_csv(analysis))))
    assert len(rows) == 4 * 4 + 1
    forms = (markdown(analysis), latex(analysis).replace(r"$\pm$", "±"), Page(report_text(analysis)).text)
    for row in rows:
        mine = [
            line
            for line in lines
            if (line["loss"], str(line["budget"])) == (row["loss"], row["budget"]) and line["chosen"]
        ]
        accuracies = [float(str(line["test_accuracy"])) for line in mine]
        assert float(row["test_accuracy_mean"]) == pytest.approx(statistics.fmean(accuracies))
        assert float(row["test_accuracy_std"]) == pytest.approx(np.std(accuracies, ddof=1))
        assert float(row["seconds"]) == pytest.approx(statistics.fmean(float(str(line["seconds"])) for line in mine))
        assert (row["n"], row["seeds"], row["lr"]) == ("5", "0 1 2 3 4", "0.05")
        text = f"{100 * statistics.fmean(accuracies):.2f} ± {100 * statistics.stdev(accuracies):.2f} (5)"
        assert all(text in form for form in forms)


def test_censored_calls_keep_their_line(write_sweep: Write, make_trials: Lines) -> None:
    analysis = analyse(read_sweep(write_sweep(make_trials(methods=FEW))), targets=[10, 100])
    rows = {(row["method"], row["target"]): row for row in csv.DictReader(io.StringIO(calls_csv(analysis)))}
    assert len(rows) == 8
    assert (rows["kl", "0.1"]["calls"], rows["kl", "0.1"]["state"]) == ("", "< 50")
    assert (rows["kl", "1.0"]["calls"], rows["kl", "1.0"]["state"]) == ("", "> 400")


def test_every_test_is_in_the_csv(analysed: Analysis) -> None:
    rows = list(csv.DictReader(io.StringIO(differences_csv(analysed))))
    families = [row["family"] for row in rows]
    assert families.count("all pairs at this budget") == 6 * 4
    assert families.count("comparing against controls") == 1
    assert rows[-1]["budgets"] == "50 100 200 400"


def test_latex_tables_are_whole(analysed: Analysis) -> None:
    text = latex(analysed)
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 2
    columns = re.findall(r"\\begin\{tabular\}\{(l+r*)\}", text)
    blocks = text.split(r"\begin{tabular}")[1:]
    for spec, block in zip(columns, blocks, strict=True):
        lines = [line for line in block.splitlines() if line.endswith(r"\\")]
        assert {line.count(" & ") for line in lines} == {len(spec) - 1}


def test_targets_outside_of_accuracies_are_refused(write_sweep: Write) -> None:
    results = read_sweep(write_sweep())
    with pytest.raises(InputError, match=r"no accuracy: 0\.0, 120\.0"):
        analyse(results, targets=[0.0, 50.0, 120.0])


def test_an_unknown_axis_is_refused(write_sweep: Write) -> None:
    results = read_sweep(write_sweep())
    with pytest.raises(InputError, match="cannot compare 'seed'; choose one of loss, views, select, student"):
        analyse(results, compare="seed")


def test_labels_are_spread_without_changing_their_order() -> None:
    wanted = [0.50, 0.51, 0.10, 0.505, 0.9]
    placed = spread(wanted, gap=0.05, low=0.0, high=1.0)
    assert np.argsort(placed).tolist() == np.argsort(wanted).tolist()
    assert min(np.diff(sorted(placed))) >= 0.05 - 1e-12
    assert (placed[2], placed[4]) == pytest.approx((0.10, 0.9))  # those with room stay
    assert placed[3] == pytest.approx(np.mean([0.50, 0.505, 0.51]))  # the crowded ones around their middle
    assert spread([0.99, 1.0], gap=0.05, low=0.0, high=1.0) == pytest.approx([0.95, 1.0])


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_no_two_labels_of_the_figure_overlap(write_sweep: Write, theme: object) -> None:
    figure = accuracy_figure(analyse(read_sweep(write_sweep())), theme=LIGHT if theme is LIGHT else DARK)
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 13 + 2
    for place, box in enumerate(boxes):
        assert figure.bbox.contains(box.x1, box.y1)
        assert figure.bbox.contains(box.x0, box.y0)
        assert not any(box.overlaps(other) for other in boxes[place + 1 :])
        assert box.x0 > figure.axes[0].get_window_extent().x1  # beside the data, not on it


def test_every_line_of_the_figure_looks_like_no_other(write_sweep: Write) -> None:
    panels = tuple(part.panel for part in analyse(read_sweep(write_sweep())).panels)
    looks = panel_styles(panels, theme=LIGHT)
    assert len({(look.colour, look.marker, look.filled, look.dashes) for look in looks.values()}) == 13
    controls = {name for name, look in looks.items() if look.colour == LIGHT.soft}
    assert controls == {"mse midpoint", "mse + label mse", "ckd no label + ce", "label mse"}


def test_the_points_of_the_figure_are_the_means(analysed: Analysis) -> None:
    axes = accuracy_figure(analysed, theme=LIGHT).axes[0]
    (part,) = analysed.panels
    for method, container in zip(part.panel.methods, axes.containers, strict=True):
        drawn = container.lines[0].get_ydata()
        assert drawn == pytest.approx([100 * cell.mean for cell in part.panel.curve(method)])


def test_a_figure_is_the_same_twice(analysed: Analysis) -> None:
    assert svg_bytes(accuracy_figure(analysed, theme=LIGHT)) == svg_bytes(accuracy_figure(analysed, theme=LIGHT))


def test_differences_are_drawn_for_every_control(write_sweep: Write, make_trials: Lines) -> None:
    methods = FEW | {"ckd offset": FEW["ckd"], "label mse": FEW["mse midpoint"], "ckd no label": FEW["mse midpoint"]}
    figure = difference_figure(analyse(read_sweep(write_sweep(make_trials(methods=methods)))), theme=LIGHT)
    assert figure is not None
    assert len(figure.axes) == 2 * 3  # both comparing losses against the three controls

"""The report as one HTML file that needs nothing else."""

from base64 import b64encode
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from student_trainer.reporting.accounts import LedgerCheck, ledger_checks, ledger_problems, ledger_verdict
from student_trainer.reporting.analysis import Analysis, PanelAnalysis
from student_trainer.reporting.findings import completeness, findings, headline, main_question
from student_trainer.reporting.grid import Panel
from student_trainer.reporting.limits import limits
from student_trainer.reporting.palette import Theme
from student_trainer.reporting.protocol import cost_facts, protocol, provenance, tested_how
from student_trainer.reporting.reaching import BOOTSTRAP_SEED, RESAMPLES, Reach
from student_trainer.reporting.results import Trial
from student_trainer.reporting.statistics import PairResult
from student_trainer.reporting.tables import COST_HEADINGS, accuracy_rows, cost_rows
from student_trainer.reporting.templates import page_template
from student_trainer.reporting.texts import (
    accuracy_text,
    calls_text,
    interval_text,
    no_claim_text,
    p_text,
    percent_text,
    points_text,
    reach_interval_text,
    reduction_text,
    verdict_text,
)

PLURALS = {"loss": "losses", "views": "view policies", "select": "selections", "student": "students"}

Drawings = Mapping[Theme, bytes]
"""A figure as SVG, in both themes."""


def page(analysis: Analysis, *, accuracy: Drawings, differences: Drawings) -> str:
    """The page; figures come in both themes, so that the reader's setting picks one."""
    sweep = analysis.results.sweep
    teacher = sweep.teacher.test_accuracy
    return page_template("page.html").render(
        title=sweep.name,
        question=sweep.question,
        incomplete=completeness(analysis),
        main_question=main_question(analysis),
        headline=headline(analysis),
        findings=findings(analysis),
        limits=limits(analysis),
        protocol=protocol(analysis.results),
        costs=cost_facts(analysis.results),
        facts=provenance(analysis.results),
        teacher_accuracy=None if teacher is None else percent_text(teacher),
        seeds=analysis.seeds_text,
        tested_how=tested_how(analysis.results),
        one_rate=analysis.results.one_rate,
        axis=analysis.panels[0].panel.axis,
        axis_plural=PLURALS[analysis.panels[0].panel.axis],
        accuracy_image=_image(
            accuracy,
            alt="Test accuracy against teacher calls, a line per method; numbers: the table below.",
        ),
        difference_image=differences
        and _image(
            differences,
            alt="Comparing losses against their controls, with 95 % intervals; averages: the table below.",
        ),
        parts=[_part(part, targets=analysis.targets) for part in analysis.panels],
        resamples=f"{RESAMPLES:,}",
        bootstrap_seed=BOOTSTRAP_SEED,
        ledger_problems=ledger_problems(analysis.results),
        ledger_verdict=ledger_verdict(analysis.results),
        ledger_rows=[_ledger_row(check) for check in ledger_checks(analysis.results)],
        runs=[_run(trial) for trial in analysis.results.trials],
    )


def _image(drawings: Drawings, *, alt: str) -> dict[str, str]:
    """Data URIs per theme: images of their own, so that the ids inside two SVGs cannot collide."""
    uris = {theme.name: f"data:image/svg+xml;base64,{b64encode(svg).decode()}" for theme, svg in drawings.items()}
    return uris | {"alt": alt}


def _part(part: PanelAnalysis, *, targets: tuple[float, ...]) -> dict[str, Any]:
    panel = part.panel
    return {
        "of": f" ({panel.title})" if panel.title else "",
        "accuracy_head": (panel.axis, *(f"{budget:,}" for budget in panel.budgets)),
        "accuracy_rows": [((row[0], _mark(panel, row[0])), *row[1:]) for row in accuracy_rows(panel)],
        "references": [(cell.method, accuracy_text(cell)) for cell in panel.references],
        "averaged_rows": [_averaged_row(pair) for pair in part.averaged],
        "lifted_rows": [_averaged_row(pair) for pair in part.lifted],
        "reach_head": (panel.axis, *(f"{100 * target:g} %" for target in targets)),
        "reach_rows": _reach_rows(part),
        "reach_reductions": [
            ("fewest, against the next best", *(_best(part.reach, target) for target in targets)),
            *_reductions(part),
        ],
        "families": [_family(part, budget) for budget in panel.budgets],
        "cost_head": ("budget", panel.axis, *COST_HEADINGS),
        "cost_rows": cost_rows(panel),
    }


def _mark(panel: Panel, method: str) -> str:
    """Small print below a name."""
    words = {
        # Of views and selections the whole panel is one loss, which its title names.
        "control": panel.axis == "loss" and panel.group(method) == "control",
        "labels only": not panel.asks(method),
        "uses all labels": panel.all_labels(method),
    }
    return ", ".join(word for word, true in words.items() if true)


def _averaged_row(pair: PairResult) -> tuple[str, ...]:
    test = pair.test
    budgets = ", ".join(f"{budget:,}" for budget in pair.budgets)
    numbers = (points_text(test.mean), interval_text(pair), p_text(pair.p_holm), budgets, str(test.n))
    return (pair.first, pair.second, verdict_text(pair), *numbers)


def _reach_rows(part: PanelAnalysis) -> list[tuple[Any, ...]]:
    """A row per method; each cell is the calls with their interval below."""
    return [
        (
            (method, _mark(part.panel, method)),
            *((calls_text(entry), reach_interval_text(entry)) for entry in part.reach if entry.method == method),
        )
        for method in part.panel.methods
    ]


def _best(reach: tuple[Reach, ...], target: float) -> tuple[str, str]:
    """Who reaches a target with the fewest calls, and by how much fewer than the next."""
    found = [entry for entry in reach if entry.target == target and entry.reduction is not None]
    if not found:
        return "–", ""
    best = min(found, key=lambda entry: entry.calls)
    return reduction_text(best.reduction), best.method


def _reductions(part: PanelAnalysis) -> list[tuple[Any, ...]]:
    """Each comparing loss against the best other method, as Xu et al. print it; without one, no row."""
    names = dict.fromkeys(pair.first for pair in part.averaged)
    rows = {name: [entry.reduction for entry in part.reach if entry.method == name] for name in names}
    return [
        (f"{name}, against the best other", *((reduction_text(value), "") for value in values))
        for name, values in rows.items()
        if any(value is not None for value in values)
    ]


def _family(part: PanelAnalysis, budget: int) -> dict[str, Any]:
    """All pairs at one budget, the better of two first."""
    pairs = [pair for pair in part.pairs if pair.budgets == (budget,)]
    place = f"{part.panel.title}, " if part.panel.title else ""
    shown = f"{sum(pair.shown for pair in pairs)} of {len(pairs)} differences shown"
    return {
        "title": f"{place}{budget:,} calls: {shown}{no_claim_text(pairs)}",
        "rows": [_pair_row(pair if pair.test.mean >= 0 else pair.turned()) for pair in pairs],
    }


def _pair_row(pair: PairResult) -> tuple[str, ...]:
    test = pair.test
    p_values = (p_text(test.p), p_text(pair.p_holm), p_text(test.p_rank))
    return (pair.first, pair.second, points_text(test.mean), interval_text(pair), *p_values, str(test.n))


def _ledger_row(check: LedgerCheck) -> tuple[str, ...]:
    counts = check.counts
    numbers = ("–",) * 4
    if counts is not None:
        budget = "none" if counts.budget is None else f"{counts.budget:,}"
        numbers = (budget, f"{counts.attempts:,}", f"{counts.teacher_calls:,}", f"{counts.charged:,}")
    consumed = "–" if check.consumed is None else f"{check.consumed:,}"
    verdict = check.problem or ("agrees" if check.own else "within its budget")
    return (check.name, *numbers, consumed, f"{check.trainings:,}", verdict)


def _run(trial: Trial) -> tuple[Any, ...]:
    """A training; its folder as a link. The page lies in OUT/report, the runs in OUT."""
    tested = trial.test_accuracy if trial.chosen else None
    return (
        {"href": f"../{quote(trial.run)}/", "name": trial.run},
        str(trial.seed),
        f"{trial.lr:g}",
        "diverged" if trial.diverged else "–" if trial.val_accuracy is None else f"{100 * trial.val_accuracy:.2f}",
        "–" if tested is None else f"{100 * tested:.2f}",
    )

"""A report on disk: page, figures and tables in OUT/report."""

from pathlib import Path

from student_trainer.reporting.analysis import Analysis
from student_trainer.reporting.figure import accuracy_figure, difference_figure, save_figure
from student_trainer.reporting.page import page
from student_trainer.reporting.palette import DARK, LIGHT
from student_trainer.reporting.tables import accuracy_csv, calls_csv, latex, markdown, tests_csv


def write_report(analysis: Analysis) -> tuple[Path, ...]:
    """Write every form of the report; returns the files, the page first."""
    folder = analysis.results.folder / "report"
    folder.mkdir(exist_ok=True)
    accuracy = {theme: accuracy_figure(analysis, theme=theme) for theme in (LIGHT, DARK)}
    differences = {
        theme: figure for theme in (LIGHT, DARK) if (figure := difference_figure(analysis, theme=theme)) is not None
    }
    texts = {
        "report.html": page(analysis, accuracy=accuracy, differences=differences or None),
        "table.md": markdown(analysis),
        "table.csv": accuracy_csv(analysis),
        "table.tex": latex(analysis),
        "calls.csv": calls_csv(analysis),
        "tests.csv": tests_csv(analysis),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    figures = {"accuracy": accuracy[LIGHT]} | ({"comparing": differences[LIGHT]} if differences else {})
    for name, figure in figures.items():
        for ending in ("png", "svg"):
            save_figure(figure, folder / f"{name}.{ending}")
    drawn = (f"{name}.{ending}" for name in figures for ending in ("png", "svg"))
    return tuple(folder / name for name in (*texts, *drawn))

"""A report on disk: page, figures and tables in OUT/report."""

from pathlib import Path

from student_trainer.reporting.analysis import Analysis
from student_trainer.reporting.figure import accuracy_figure, difference_figure, png_bytes, svg_bytes
from student_trainer.reporting.page import page
from student_trainer.reporting.palette import DARK, LIGHT
from student_trainer.reporting.tables import accuracy_csv, calls_csv, differences_csv, latex, markdown

DRAWINGS = {"accuracy": accuracy_figure, "comparing": difference_figure}
"""File name and figure; a figure that has nothing to show is None."""


def write_report(analysis: Analysis) -> tuple[Path, ...]:
    """Write every form of the report; returns the files, the page first."""
    figures = {
        name: {theme: figure for theme in (LIGHT, DARK) if (figure := draw(analysis, theme=theme)) is not None}
        for name, draw in DRAWINGS.items()
    }
    svgs = {name: {theme: svg_bytes(figure) for theme, figure in themes.items()} for name, themes in figures.items()}
    files = {
        "report.html": page(analysis, accuracy=svgs["accuracy"], differences=svgs["comparing"]).encode(),
        "table.md": markdown(analysis).encode(),
        "table.csv": accuracy_csv(analysis).encode(),
        "table.tex": latex(analysis).encode(),
        "calls.csv": calls_csv(analysis).encode(),
        "tests.csv": differences_csv(analysis).encode(),
    }
    for name, themes in figures.items():
        if themes:
            files |= {f"{name}.png": png_bytes(themes[LIGHT]), f"{name}.svg": svgs[name][LIGHT]}
    folder = analysis.results.folder / "report"
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return tuple(folder / name for name in files)

"""Options of `student-trainer report`."""

from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[
    Path, typer.Argument(metavar="DIR", help="the --out folder of a sweep; or a CSV file of published calls")
]
Targets = Annotated[
    str | None,
    typer.Option(help="accuracies in % for the calls-to-reach table, such as 40,45,50; default: chosen from the range"),
]
Compare = Annotated[
    str | None,
    typer.Option(help="what the lines are: loss, views, select or student; default: what the sweep varies most"),
]

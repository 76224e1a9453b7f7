"""What each option of `student-trainer sweep` says in the help."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

RecipeFile = Annotated[Path, Argument(help="YAML file, such as recipes/rti-digits.yaml")]
Out = Annotated[Path, Option(help="folder of the sweep; started again, it goes on where it was")]
Changes = Annotated[
    list[str] | None, Option("--set", help="change the recipe: key.sub=value, such as train.steps=500; repeatable")
]
Dataset = Annotated[str | None, Option(help="data set, in the place of the recipe's")]
Weights = Annotated[Path | None, Option(help="the teacher's weights, in the place of the recipe's")]
Seeds = Annotated[int | None, Option(min=1, help="number of seeds, in the place of the recipe's")]
Jobs = Annotated[int | None, Option(min=1, help="trainings at a time; default: one per core, on GPUs one per GPU")]
Device = Annotated[str, Option(help="auto, cpu or cuda")]
PlanOnly = Annotated[bool, Option("--plan", help="say what it would do and cost, and end")]

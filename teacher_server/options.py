"""The options of ``teacher-server`` that several of its commands share."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from shared.errors import InputError
from teacher_server.config_file import use_config

MOST_CALLS = 2**63 - 1
"""What the ledger can count."""
Teacher = Annotated[
    str,
    typer.Option(
        help="zoo:NAME, torchvision:NAME, timm:NAME, export:FILE.pt2, python:FILE.py:FUNCTION, fake:C or a checkpoint"
    ),
]
SomeTeacher = Annotated[str | None, typer.Option(help="as for serve; not with --server")]
Weights = Annotated[Path | None, typer.Option(help="safetensors, or a state dict")]
Cache = Annotated[Path, typer.Option(help="folder of the cache; made if absent")]
SomeCache = Annotated[Path | None, typer.Option(help="folder of the cache; made if absent; not with --server")]
DATASET_HELP = "digits, folder:PATH, torchvision:NAME, python:FILE.py:FUNCTION; all splits without a /SPLIT; repeatable"
Datasets = Annotated[list[str] | None, typer.Option(help=DATASET_HELP)]
SomeDatasets = Annotated[list[str], typer.Option(help=DATASET_HELP)]
Classes = Annotated[int | None, typer.Option(help="width of the logits, where nothing else says it")]
Device = Annotated[
    str,
    typer.Option(help="auto, cpu, cuda or cuda:N; several side by side: cuda:0,cuda:1 or cuda:all (cpu,cpu to try)"),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="compile the teacher before it is ready (minutes), on CUDA with graphs; batches are filled up to 1, 8, 32 "
        "or --batch images",
    ),
]
Precision = Annotated[str, typer.Option(help="float32, bfloat16 or float16: the arithmetic of the forward pass")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of the teacher; default: cores - 1")]
TrustExport = Annotated[bool, typer.Option("--trust-export", help="load an exported program even if that runs pickle")]
DataRoot = Annotated[Path | None, typer.Option(help="where torchvision data sets lie; default: data")]
Download = Annotated[bool, typer.Option("--download", help="download missing torchvision data sets")]
Outputs = Annotated[
    str | None,
    typer.Option(
        help="what to keep, such as logits,features (default), logits=int8,features=float16 or "
        "logits,maps.1,preacts.2,attention.2,input_grad,constants"
    ),
]
AddOutputs = Annotated[str | None, typer.Option(help="outputs to add to caches that exist, for all rows they hold")]
Dtype = Annotated[
    str | None,
    typer.Option(help="dtype to keep answers in where --outputs names none: float16 (default), float32 or int8"),
]
Batch = Annotated[int, typer.Option(min=1, help="images per teacher forward pass")]
MaxDelay = Annotated[float, typer.Option(min=0, help="how long an idle teacher waits for a batch to grow")]
Budget = Annotated[int | None, typer.Option(min=0, max=MOST_CALLS, help="most teacher calls")]
Run = Annotated[str, typer.Option(help="name under which calls are counted and bounded")]
SomeRun = Annotated[
    str | None,
    typer.Option(
        help="name under which calls are counted and bounded",
        show_default="default; with --server and a key, the first run of the key",
    ),
]
Sample = Annotated[int | None, typer.Option(min=0, help="how many rows to draw, smaller samples nest in larger ones")]
Seed = Annotated[int, typer.Option(help="which sample to draw")]
RowsFile = Annotated[Path | None, typer.Option("--rows", help="file with one row per line, or an .npy of integers")]
Views = Annotated[str, typer.Option(help="views such as 0 or 0,5 or 1-162")]
Server = Annotated[
    str | None,
    typer.Option(help="address of a server that runs, http://HOST:PORT: it does the fill; --dataset names one of its"),
]
ApiKey = Annotated[str | None, typer.Option(envvar="TEACHONCE_API_KEY", help="key for --server")]
Config = Annotated[
    Path | None,
    typer.Option(
        is_eager=True,
        callback=use_config,
        help="TOML file of options such as port = 8000; the command line and the environment win over it",
    ),
]
ViewPolicyOption = Annotated[
    str | None,
    typer.Option(
        "--view-policy",
        help="what views 1, 2, ... are: crop4flip and the like, randaug, rrc, cutmix or mixup, with parameters as in"
        " randaug:n=2,m=9; default: the data set's own crops",
    ),
]
WITH_SERVER = ("server", "api_key", "dataset", "sample", "seed", "rows", "views", "budget", "run")
"""Options of `fill` that mean something to a server."""


def refuse_others(context: typer.Context, *, allowed: Collection[str], why: str) -> None:
    """Raise `InputError` for options on the command line that would be ignored."""
    # By name: the class of a source is private to typer.
    sources = {name: context.get_parameter_source(name) for name in context.params if name not in allowed}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    ignored = [f"--{name.replace('_', '-')}" for name in given]
    if ignored:
        raise InputError(f"leave out {', '.join(ignored)}: {why}")

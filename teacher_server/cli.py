"""The command ``teacher-server``: serve a teacher, fill a cache, or plan a fill."""

import logging
import os
import signal
from pathlib import Path
from typing import Annotated

import typer

from shared.command import run_command
from shared.errors import InputError
from shared.malloc import keep_freed_memory
from teacher_server.key_command import app as key_app
from teacher_server.log_lines import LogFormat, LogLevel, set_up_log
from teacher_server.opening import RowOptions, TeacherOptions
from teacher_server.option_texts import added_outputs, kept_outputs, run_budgets
from teacher_server.options import (
    WITH_SERVER,
    AddOutputs,
    ApiKey,
    Batch,
    Budget,
    Cache,
    Classes,
    Compile,
    Config,
    DataRoot,
    Datasets,
    Device,
    Download,
    Dtype,
    MaxDelay,
    Outputs,
    Precision,
    RowsFile,
    Run,
    Sample,
    Seed,
    Server,
    SomeCache,
    SomeDatasets,
    SomeRun,
    SomeTeacher,
    Teacher,
    Threads,
    TrustExport,
    ViewPolicyOption,
    Views,
    Weights,
    refuse_others,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Run the teacher once, keep everything it said.",
)
app.add_typer(key_app, name="key")


@app.command(context_settings={"auto_envvar_prefix": "TEACHONCE"})
def serve(
    *,
    teacher: Teacher,
    cache: Cache,
    dataset: Datasets = None,
    weights: Weights = None,
    classes: Classes = None,
    device: Device = "auto",
    precision: Precision = "float32",
    compile: Compile = False,
    threads: Threads = None,
    trust_export: TrustExport = False,
    data_root: DataRoot = None,
    download: Download = False,
    view_policy: ViewPolicyOption = None,
    outputs: Outputs = None,
    dtype: Dtype = None,
    budget: Budget = None,
    run: Annotated[list[str] | None, typer.Option(help="NAME or NAME=CALLS: a run that may ask; repeatable")] = None,
    host: Annotated[
        str, typer.Option(help="address to listen on; others than loopback need --api-key-file")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")] = 8000,
    allowed_host: Annotated[list[str] | None, typer.Option(help="name that a Host header may hold; repeatable")] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="keys that may ask, made by teacher-server key; empty: nobody yet")
    ] = None,
    batch: Batch = 256,
    max_delay_ms: MaxDelay = 2.0,
    queue: Annotated[int, typer.Option(min=1, help="images that may wait; more are refused with 503")] = 8192,
    max_body_mb: Annotated[int, typer.Option(min=1, help="largest request body, in MiB")] = 64,
    max_upload_mb: Annotated[
        int | None, typer.Option(min=1, help="all uploads being answered, in MiB; default: 512, or 4 bodies if more")
    ] = None,
    max_connections: Annotated[int, typer.Option(min=1, help="open at once; idle ones make room for new ones")] = 2048,
    deadline_s: Annotated[float, typer.Option(min=0.1, help="seconds until a caller is told 504")] = 60.0,
    log_format: Annotated[LogFormat, typer.Option(help="lines for people, or one JSON object each")] = LogFormat.TEXT,
    log_level: Annotated[LogLevel, typer.Option(help="the least to tell; info has a line per request")] = LogLevel.INFO,
    config: Config = None,
) -> None:
    """Answer over HTTP; SIGTERM finishes and keeps what was asked."""
    # Here, so that `--help` and the other commands do not load a web framework.
    from teacher_server.key_editing import prepare_key_file
    from teacher_server.serve import RunBudgets, serve_until_signal
    from teacher_server.settings import AnsweringSettings, ServerSettings, TransportSettings

    keep_freed_memory(os.environ)
    set_up_log(log_format, level=log_level)
    if api_key_file is not None:
        prepare_key_file(api_key_file)
    settings = ServerSettings(
        host=host,
        api_key_file=api_key_file,
        allowed_hosts=frozenset(name.lower() for name in allowed_host or ()),
        max_body_bytes=max_body_mb * 2**20,
        max_upload_bytes=max_upload_mb and max_upload_mb * 2**20,
        transport=TransportSettings(connections=max_connections),
        deadline_s=deadline_s,
        answering=AnsweringSettings(batch_images=batch, max_delay_s=max_delay_ms / 1000, queue_images=queue),
    )
    signals = serve_until_signal(
        settings,
        port=port,
        cache=cache,
        teacher=TeacherOptions(
            spec=teacher,
            weights=weights,
            classes=classes,
            device=device,
            precision=precision,
            compiled=compile,
            trust_export=trust_export,
            threads=threads,
        ),
        datasets=dataset or [],
        data_root=data_root,
        download=download,
        view_policy=view_policy,
        outputs=kept_outputs(outputs, dtype=dtype),
        budgets=RunBudgets(whole=budget, runs=run_budgets(run or ())),
        ready=lambda url: print(f"listening on {url}", flush=True),
    )
    if signal.SIGINT in signals:
        raise KeyboardInterrupt


@app.command()
def fill(
    context: typer.Context,
    *,
    dataset: SomeDatasets,
    teacher: SomeTeacher = None,
    cache: SomeCache = None,
    server: Server = None,
    api_key: ApiKey = None,
    weights: Weights = None,
    classes: Classes = None,
    device: Device = "auto",
    precision: Precision = "float32",
    compile: Compile = False,
    threads: Threads = None,
    trust_export: TrustExport = False,
    data_root: DataRoot = None,
    download: Download = False,
    sample: Sample = None,
    seed: Seed = 0,
    rows: RowsFile = None,
    views: Views = "0",
    view_policy: ViewPolicyOption = None,
    outputs: Outputs = None,
    add_outputs: AddOutputs = None,
    dtype: Dtype = None,
    budget: Budget = None,
    run: SomeRun = None,
    batch: Batch = 256,
) -> None:
    """Ask about rows of a data set until all are cached; stopped and started again, it goes on where it was."""
    from teacher_server.adding import add_outputs as add_to_caches
    from teacher_server.commands import FillOptions, fill_cache

    keep_freed_memory(os.environ)
    chosen = RowOptions(sample=sample, seed=seed, file=rows)
    if server is not None:
        from teacher_server.remote_fill import RemoteFillOptions, fill_on_server

        refuse_others(context, allowed=WITH_SERVER, why="the server at --server has its own")
        remote = RemoteFillOptions(
            server=server,
            api_key=api_key,
            datasets=tuple(dataset),
            rows=chosen,
            views=views,
            budget=budget,
            run=run,
        )
        print(fill_on_server(remote))
        return
    if teacher is None or cache is None:
        raise InputError("give --teacher and --cache, or --server with the address of a server that runs")
    options = FillOptions(
        teacher=TeacherOptions(
            spec=teacher,
            weights=weights,
            classes=classes,
            device=device,
            precision=precision,
            compiled=compile,
            trust_export=trust_export,
            threads=threads,
        ),
        datasets=tuple(dataset),
        cache=cache,
        data_root=data_root,
        download=download,
        rows=chosen,
        views=views,
        view_policy=view_policy,
        outputs=None if add_outputs else kept_outputs(outputs, dtype=dtype),
        added=added_outputs(add_outputs, dtype=dtype, outputs=outputs, rows=chosen, views=views),
        budget=budget,
        run="default" if run is None else run,
        batch_images=batch,
    )
    print(fill_cache(options) if options.added is None else add_to_caches(options))


@app.command()
def plan(
    *,
    teacher: Teacher,
    dataset: SomeDatasets,
    cache: Cache,
    weights: Weights = None,
    classes: Classes = None,
    device: Device = "auto",
    precision: Precision = "float32",
    compile: Compile = False,
    threads: Threads = None,
    trust_export: TrustExport = False,
    data_root: DataRoot = None,
    download: Download = False,
    sample: Sample = None,
    seed: Seed = 0,
    rows: RowsFile = None,
    views: Views = "0",
    view_policy: ViewPolicyOption = None,
    outputs: Outputs = None,
    add_outputs: AddOutputs = None,
    dtype: Dtype = None,
    budget: Budget = None,
    run: Run = "default",
    batch: Batch = 256,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="images/s of the teacher, to say how long it takes")
    ] = None,
) -> None:
    """Say what a fill would cost, without calling the teacher or changing the cache."""
    from teacher_server.commands import FillOptions
    from teacher_server.plan_command import plan_fills

    chosen = RowOptions(sample=sample, seed=seed, file=rows)
    options = FillOptions(
        teacher=TeacherOptions(
            spec=teacher,
            weights=weights,
            classes=classes,
            device=device,
            precision=precision,
            compiled=compile,
            trust_export=trust_export,
            threads=threads,
        ),
        datasets=tuple(dataset),
        cache=cache,
        data_root=data_root,
        download=download,
        rows=chosen,
        views=views,
        view_policy=view_policy,
        outputs=None if add_outputs else kept_outputs(outputs, dtype=dtype),
        added=added_outputs(add_outputs, dtype=dtype, outputs=outputs, rows=chosen, views=views),
        budget=budget,
        run=run,
        batch_images=batch,
    )
    for line in plan_fills(options, rate=rate):
        print(line)


def main() -> None:
    """Entry point."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    run_command(app)


if __name__ == "__main__":
    main()

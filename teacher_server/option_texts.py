"""What options written as text mean: outputs with their dtypes, runs with their budgets."""

from collections.abc import Sequence

from cache.layout import OUTPUT_DTYPES
from shared.errors import InputError
from shared.outputs import CONSTANTS, INPUT_GRAD, map_number
from teacher_server.opening import RowOptions
from teacher_server.options import MOST_CALLS

NAMES = ("logits", "features", INPUT_GRAD, CONSTANTS)


def kept_outputs(outputs: str | None, *, dtype: str | None) -> dict[str, str] | None:
    """What a new cache keeps, by name; None = as created, or the default where new."""
    if outputs is None and dtype is None:
        return None
    pairs = [part.partition("=") for part in (outputs or "logits,features").split(",")]
    kept = {name: own or dtype or "float16" for name, _, own in pairs}
    unknown = [name for name in kept if name not in NAMES and map_number(name) is None]
    if unknown or len(kept) < len(pairs):
        raise InputError(
            f"cannot keep outputs {outputs!r}; use logits or logits,features, and maps.K, preacts.K, attention.K, "
            f"{INPUT_GRAD}, {CONSTANTS} where the teacher has them, each =DTYPE if wanted"
        )
    for chosen in kept.values():
        if chosen not in OUTPUT_DTYPES:
            raise InputError(f"cannot keep answers as {chosen[:40]!r}; use {', '.join(OUTPUT_DTYPES)}")
    return kept


def added_outputs(
    added: str | None, *, dtype: str | None, outputs: str | None, rows: RowOptions, views: str
) -> dict[str, str] | None:
    """What caches that exist get besides, by name; None: nothing."""
    if added is None:
        return None
    if outputs is not None or rows.selects or views != "0":
        raise InputError(
            "--add-outputs is about all that a cache holds: leave out --outputs, --sample, --rows and --views"
        )
    kept = kept_outputs(f"logits,{added}", dtype=dtype) or {}
    del kept["logits"]
    return kept


def run_budgets(texts: Sequence[str]) -> dict[str, int | None]:
    """Runs with their budgets, each named once."""
    runs: dict[str, int | None] = {}
    for name, budget in map(_run_budget, texts):
        if name in runs:
            raise InputError(f"--run names {name[:80]!r} twice; give each run once")
        runs[name] = budget
    return runs


def _run_budget(text: str) -> tuple[str, int | None]:
    """``NAME`` or ``NAME=CALLS``."""
    name, equals, calls = text.partition("=")
    if equals and not (calls.isascii() and calls.isdigit() and len(calls) < len(str(MOST_CALLS))):
        raise InputError(f"cannot read --run {text[:80]!r}; write NAME, or NAME=CALLS such as paper=1600")
    return name, int(calls) if equals else None

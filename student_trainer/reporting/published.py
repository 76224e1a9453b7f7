"""A published table of calls needed to reach an accuracy, as a CSV file: pair, method, and a column per accuracy."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shared.errors import InputError
from student_trainer.reporting.reaching import reduction

PRINTED = "delta"
"""The name of the row that holds the printed reductions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedCalls:
    """One pair of networks."""

    pair: str
    targets: tuple[str, ...]
    """The columns, such as ``acc55``."""
    calls: Mapping[str, Mapping[str, float | None]]
    """By method and target; None: not printed."""
    printed: Mapping[str, float | None]
    """The reductions as printed, in %; empty where the file has none."""

    @property
    def method(self) -> str:
        """The method that the reductions are about: the last one."""
        return list(self.calls)[-1]

    def reduction(self, target: str) -> float | None:
        """Its calls against the next best method's, in %."""
        return reduction({method: row[target] for method, row in self.calls.items()}, method=self.method)


def read_published(path: Path) -> tuple[PublishedCalls, ...]:
    """Read a calls table; lines that begin with # are comments. Raises InputError."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip() and line[0] != "#"]
    except UnicodeDecodeError:
        raise InputError(
            f"{path} is no text; a calls table is a CSV file: pair, method and a column per accuracy"
        ) from None
    reader = csv.DictReader(lines)
    columns = tuple(reader.fieldnames or ())
    if columns[:2] != ("pair", "method") or len(columns) < 3:
        raise InputError(
            f"{path} has the columns {', '.join(columns) or 'none'}; write pair, method, then one per accuracy"
        )
    rows = [(line["pair"], line["method"], _numbers(path, line, columns[2:])) for line in reader]
    pairs = dict.fromkeys(pair for pair, _, _ in rows)
    return tuple(_table(pair, targets=columns[2:], rows=rows) for pair in pairs)


def _table(
    pair: str, *, targets: tuple[str, ...], rows: list[tuple[str, str, dict[str, float | None]]]
) -> PublishedCalls:
    here = {method: numbers for name, method, numbers in rows if name == pair}
    printed = here.pop(PRINTED, {})
    if not here:
        raise InputError(f"{pair!r} has no method beside {PRINTED!r}; add its rows")
    return PublishedCalls(pair=pair, targets=targets, calls=here, printed=printed)


def _numbers(path: Path, line: Mapping[str, str | None], columns: tuple[str, ...]) -> dict[str, float | None]:
    try:
        return {column: _number(line[column]) for column in columns}
    except ValueError as error:
        raise InputError(
            f"{path}, {line['pair']}, {line['method']}: {error}; write a number, or - where there is none"
        ) from None


def _number(text: str | None) -> float | None:
    return None if text is None or text.strip() in {"", "-"} else float(text)

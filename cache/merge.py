"""Several caches of one teacher into one: answers side by side, costs added up, conflicts refused."""

import errno
import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache.adoption import adopt_answers, count_missing
from cache.agreement import check_agreement
from cache.answer_source import CacheAnswers, slot_ranges
from cache.catalog import read_catalog
from cache.constants import copy_constants
from cache.layout import ADDING, LEDGER
from cache.ledger_schema import SLOT_BITS
from cache.lock import WriterLock
from cache.merged_costs import Added, Costs, add_costs, finish_costs, read_costs
from cache.reader import CacheReader
from cache.records import check_same_dataset
from cache.renumber import Charge
from cache.staging import staged_folder
from cache.upkeep import Upkeep, read_upkeep
from cache.verify import find_damage
from cache.writer import CacheHandle, CacheWriter
from shared.errors import CorruptCacheError, IdentityError, InputError, UnknownNameError

SEPARATE_WAYS = (
    "a copy of this cache that went separate ways was merged before: calls that both remember are counted twice, "
    "because too many is safe and too few is not"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Merged:
    """What one source brought."""

    source: Path
    new: int
    """Answers that the target did not have."""
    known: int
    """Answers that it had already."""
    added: Added
    """What was added to the ledger."""
    notes: tuple[str, ...]
    """What became of budgets, and what the user should know about the calls."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One cache to be merged, open for reading."""

    path: Path
    parts: tuple[CacheAnswers, ...]
    """One per data set."""
    costs: Costs


def merge_caches(sources: Sequence[Path], target: Path, *, teacher: str | None = None) -> list[Merged]:
    """Merge what one teacher said in each of ``sources`` into ``target``, made whole or not at all where it is new.

    Everything is compared before anything is written. An existing target that was interrupted in the middle lacks no
    count, and the same command brings the answers that are missing. Raises `IdentityError` for sources that do not
    belong together or contradict each other, `CorruptCacheError`, `CacheLockedError`.
    """
    paths = [path.resolve() for path in sources]
    if len(set(paths)) < len(paths) or target.resolve() in paths:
        raise InputError("a cache is named twice: name each source once, and another folder as the target")
    with ExitStack() as stack:
        for path in sources:
            _lock(path, stack=stack)
        names = [_check(path, teacher=teacher) for path in sources]
        if len(set(names)) > 1:
            raise IdentityError(
                f"{sources[0]} holds answers of {names[0]}, another of {', '.join(sorted(set(names[1:])))}: "
                "answers of different teachers are not merged"
            )
        opened = [_open(path, teacher=names[0]) for path in sources]
        if (target / LEDGER).exists():
            return _merge_into(target, opened)
        _check_agreement([part for source in opened for part in source.parts])
        with staged_folder(target) as folder:
            return _merge_into(folder, opened)


def _lock(path: Path, *, stack: ExitStack) -> None:
    """Nobody writes a source meanwhile: no server, and on a read-only volume nobody can."""
    read_catalog(path)
    try:
        stack.callback(WriterLock(path).release)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES):
            raise


def _check(path: Path, *, teacher: str | None) -> str:
    """Id of the one teacher that is meant, in a cache that is sound."""
    for finding in find_damage(path):
        raise CorruptCacheError(f"{finding}; nothing was merged, `logit-cache repair {path}` takes it out")
    if not (path / LEDGER).exists():
        raise InputError(f"{path} has no {LEDGER}: what its answers cost is unknown; merge the whole cache")
    for entry in read_catalog(path, unfinished=True):
        if entry.dataset.name.endswith(ADDING):
            raise InputError(
                f"{path} is in the middle of `teacher-server fill --add-outputs` for "
                f"{entry.dataset.name.removesuffix(ADDING)}: let it finish first"
            )
    ids = sorted({entry.teacher.id for entry in read_catalog(path)})
    meant = [known for known in ids if teacher in (None, known)] or [
        known for known in ids if known.startswith(teacher or "")
    ]
    if not meant:
        raise UnknownNameError(
            f"{path} holds nothing of {teacher or 'any teacher'}; it has {', '.join(ids) or 'nothing'}"
        )
    if len(meant) > 1:
        raise InputError(f"{path} holds answers of {' and '.join(meant)}: say whose to merge, --teacher {meant[0]}")
    return meant[0]


def _open(path: Path, *, teacher: str) -> Source:
    parts = _parts(path, teacher=teacher)
    # After the answers: what was paid for them is in it.
    return Source(path=path, parts=parts, costs=read_costs(path, teacher=teacher))


def _parts(path: Path, *, teacher: str) -> tuple[CacheAnswers, ...]:
    return tuple(
        CacheAnswers(
            CacheReader.open(path, teacher=entry.teacher.id, dataset=entry.dataset.name, journal=True), name=str(path)
        )
        for entry in read_catalog(path)
        if entry.teacher.id == teacher
    )


def _check_agreement(parts: Sequence[CacheAnswers]) -> None:
    """The same data sets, the same outputs, the same answers."""
    first: dict[str, CacheAnswers] = {}
    for part in parts:
        known = first.setdefault(part.dataset.name, part)
        check_same_dataset(known.dataset, part.dataset)
        if known.dtypes != part.dtypes:
            raise IdentityError(
                f"{part.dataset.name} is kept with {_listed(known)} in {known.name}, with {_listed(part)} in "
                f"{part.name}: only caches with the same outputs are merged"
            )
    check_agreement(parts)


def _merge_into(target: Path, sources: Sequence[Source]) -> list[Merged]:
    """Costs first, so that no answer is ever there without them; then answers; then who consumed them."""
    teacher = sources[0].parts[0].teacher
    with CacheWriter.open(target) as writer:
        present = _parts(target, teacher=teacher.id)
        _check_agreement([*present, *(part for source in sources for part in source.parts)])
        merged = [_bring(source, writer=writer) for source in sources]
        for source in sources:
            copy_constants(source.path, target, teacher=teacher.id)
        return merged


def _bring(source: Source, *, writer: CacheWriter) -> Merged:
    handles = {
        part.dataset.name: writer.open_cache(part.teacher, part.dataset, part.dtypes, part.forms)
        for part in source.parts
    }
    numbers = {number: handles[name].index for name, number in source.costs.caches.items()}
    contents = {
        part.dataset.name: {"slots": part.num_slots, "keys": _digest(part, part.num_slots)} for part in source.parts
    }
    missing = {
        handles[part.dataset.name].index: count_missing(handles[part.dataset.name], writer=writer, source=part)
        for part in source.parts
    }
    with writer.ledger() as ledger:
        same = [
            note
            for note in read_upkeep(ledger.database, what="merge")
            if source.costs.ledger and note.detail["ledger"] == source.costs.ledger
        ]
        # Notes from before they named their teacher may be about any.
        teacher = source.parts[0].teacher.id
        of_teacher = [note for note in same if note.detail.get("teacher", teacher) == teacher]
        before = _merged_before(source, notes=of_teacher)
        note, numbers, added = add_costs(
            ledger,
            source.costs,
            source=source.path,
            numbers=numbers,
            missing=missing,
            contents=contents,
            before=before,
            budgets_before=same[-1] if same else None,
        )
    adopted = [adopt_answers(handles[part.dataset.name], writer=writer, source=part) for part in source.parts]
    charges = _charges_here(source, writer=writer, handles=handles, numbers=numbers)
    with writer.ledger() as ledger:
        finish_costs(ledger, number=note, charges=charges)
    return Merged(
        source=source.path,
        new=sum(one.new for one in adopted),
        known=sum(one.known for one in adopted),
        added=added,
        notes=(*added.notes, *([SEPARATE_WAYS] if of_teacher and before is None else [])),
    )


def _merged_before(source: Source, *, notes: Sequence[Upkeep]) -> Upkeep | None:
    """The last time that this ledger was merged, if it only grew since: slots are appended, never changed."""
    parts = {part.dataset.name: part for part in source.parts}

    def grew(contents: dict[str, Any]) -> bool:
        return all(
            name in parts
            and parts[name].num_slots >= then["slots"]
            and _digest(parts[name], then["slots"]) == then["keys"]
            for name, then in contents.items()
        )

    return next((note for note in reversed(notes) if grew(note.detail["contents"])), None)


def _digest(part: CacheAnswers, slots: int) -> str:
    digest = hashlib.sha256()
    for chosen in slot_ranges(slots):
        digest.update(part.keys(chosen).tobytes())
    return digest.hexdigest()


def _charges_here(
    source: Source, *, writer: CacheWriter, handles: dict[str, CacheHandle], numbers: dict[int, int]
) -> list[Charge]:
    """Places in the target of everything that was consumed in the source, with who consumed it."""
    parts = {source.costs.caches[part.dataset.name]: part for part in source.parts}
    here = []
    for payer, place in source.costs.charges:
        cache, slot = place >> SLOT_BITS, place & ((1 << SLOT_BITS) - 1)
        if cache not in parts:
            # Answers that a repair or a removal took: consumed all the same.
            here.append((payer, (numbers[cache] << SLOT_BITS) + slot))
            continue
        part = parts[cache]
        key = part.keys(np.array([slot], dtype=np.int64)).tobytes()
        found = writer.find(part.teacher.id, key, cache=handles[part.dataset.name])
        if found is not None:
            here.append((payer, found.number))
    return here


def _listed(part: CacheAnswers) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in part.dtypes.items())

"""What one transaction is about to add: decided first, then written, then made real in memory.

Shape key: B answers, A answer bytes of one slot.
"""

import sqlite3
from collections.abc import Sequence

from cache.batch import AnswerBatch
from cache.counts import CellId
from cache.handle import CacheHandle, Kind, Place, place_from
from cache.history import Line
from cache.journal import insert_entries
from cache.layout import ArraySpec, Bytes
from cache.ledger import Ledger
from cache.opening import Teachers
from cache.payer import Payer
from cache.tail import Entry

AliasItem = tuple[int, int, int, Place]
"""Row, view, label, and the place of an answer to the same pixels."""


class Stage:
    """New slots of any caches; what a stage has decided, its later items see."""

    def __init__(self, teachers: Teachers) -> None:
        self.calls: dict[CellId, int] = {}
        """Committed calls by who paid and for which cache."""
        self._history: list[tuple[Line, int, int]] = []
        """What the history is told, with images and answers."""
        self._teachers = teachers
        self._entries: dict[int, list[Entry]] = {}
        self._slots: dict[tuple[int, int, int], int] = {}
        self._keys: dict[tuple[str, bytes], dict[Kind, int]] = {}
        self._aliases: dict[int, int] = {}
        self._charges: dict[Payer, list[int]] = {}

    def add_batch(self, batch: AnswerBatch, answers: Bytes) -> list[Place]:
        """Stage a batch with its packed answers [B, A]; places of its items, then of its aliases."""
        places = []
        calls = 0
        for at, (row, view, label) in enumerate(zip(batch.rows, batch.views, batch.labels, strict=True)):
            entry = Entry(-1, int(row), int(view), int(label), batch.keys[at].tobytes(), answers[at].tobytes())
            known = self._find(batch.cache, entry.key)
            # An answer committed meanwhile wins; ours was an attempt that nobody needed.
            place = self._add(batch.cache, entry=entry, known=known)
            places.append(place)
            calls += batch.cache.calls_per_answer * (known is None)
        for row, view, label, at in batch.aliases:
            places.append(self._add_copy(batch.cache, row=row, view=view, label=label, place=places[at]))
        if batch.run is not None:
            self._charge(Payer(batch.owner, batch.run), places)
            if batch.reservation is not None:
                self._pay(batch, payer=batch.reservation.payer, calls=calls)
        return places

    def _pay(self, batch: AnswerBatch, *, payer: Payer, calls: int) -> None:
        cache = batch.cache.index
        self.calls[payer, cache] = self.calls.get((payer, cache), 0) + calls
        if batch.call is not None:
            self._history.append(((batch.call, payer, cache), batch.calls, calls))

    def add_alias(self, cache: CacheHandle, *, payer: Payer, item: AliasItem) -> Place:
        """Stage a slot of its own for (row, view, label) with the bytes of ``place``."""
        row, view, label, place = item
        alias = self._add_copy(cache, row=row, view=view, label=label, place=place)
        self._charge(payer, [alias])
        return alias

    def write(self, database: sqlite3.Connection, *, ledger: Ledger) -> None:
        """Within a transaction: write everything."""
        for cache, entries in self._entries.items():
            insert_entries(database, cache=cache, entries=entries)
        database.executemany("INSERT INTO aliases VALUES (?, ?)", self._aliases.items())
        ledger.write_calls(self.calls)
        for payer, places in self._charges.items():
            ledger.charges.stage(payer, places)
        for line, images, answers in self._history:
            ledger.history.stage(line, images=images, answers=answers)

    def apply(self) -> list[CacheHandle]:
        """The transaction is durable: make it real in memory. Returns the caches that grew."""
        handles = [self._teachers.handle(cache) for cache in self._entries]
        for handle in handles:
            handle.append(self._entries[handle.index])
        for number, canonical in self._aliases.items():
            place = place_from(number)
            self._teachers.handle(place.cache).aliases[place.slot] = canonical
        for (teacher_id, key), kinds in self._keys.items():
            for kind, number in kinds.items():
                self._teachers.add_key(teacher_id, kind=kind, key=key, number=number)
        return handles

    def _find(self, cache: CacheHandle, key: bytes) -> int | None:
        found = self._teachers.find(cache.teacher.id, key, kind=cache.kind)
        if found is not None:
            return found
        staged = self._keys.get((cache.teacher.id, key), {})
        return next((number for kind, number in staged.items() if kind >= cache.kind), None)

    def _slot_of(self, cache: CacheHandle, *, row: int, view: int) -> int | None:
        staged = self._slots.get((cache.index, row, view))
        return cache.slot_of(row, view) if staged is None else staged

    def _add(self, cache: CacheHandle, *, entry: Entry, known: int | None) -> Place:
        if entry.row < 0 and known is not None:
            return place_from(known)
        if entry.row >= 0 and (slot := self._slot_of(cache, row=entry.row, view=entry.view)) is not None:
            return Place(cache.index, slot)
        if known is not None:
            entry = entry._replace(answers=self._answers(place_from(known), specs=cache.specs))
        else:
            entry = entry._replace(answers=self._first_said(cache, entry=entry))
        place = self._append(cache, entry=entry)
        if known is None:
            self._keys.setdefault((cache.teacher.id, entry.key), {})[cache.kind] = place.number
        else:
            self._aliases[place.number] = known
        return place

    def _add_copy(self, cache: CacheHandle, *, row: int, view: int, label: int, place: Place) -> Place:
        if (slot := self._slot_of(cache, row=row, view=view)) is not None:
            return Place(cache.index, slot)
        key = self._entry_key(place)
        entry = Entry(-1, row, view, label, key, self._answers(place, specs=cache.specs))
        alias = self._append(cache, entry=entry)
        self._aliases[alias.number] = self._canonical(place)
        return alias

    def _first_said(self, cache: CacheHandle, *, entry: Entry) -> bytes:
        """The answers of an entry, but for outputs that a cache of another kind holds: what was said first stays."""
        said = self._teachers.find_parts(cache.teacher.id, entry.key, kind=cache.kind)
        for kind, number in self._keys.get((cache.teacher.id, entry.key), {}).items():
            said = dict.fromkeys((name for name, _ in kind & cache.kind), number) | said
        if not said:
            return entry.answers
        parts, at = [], 0
        for spec in cache.specs:
            mine = entry.answers[at : at + spec.slot_bytes]
            first = said.get(spec.output)
            parts.append(mine if first is None else self._answers(place_from(first), specs=(spec,)))
            at += spec.slot_bytes
        return b"".join(parts)

    def _append(self, cache: CacheHandle, *, entry: Entry) -> Place:
        entries = self._entries.setdefault(cache.index, [])
        slot = cache.num_slots + len(entries)
        # An upload's row is its arrival order.
        row = slot if entry.row < 0 else entry.row
        entries.append(entry._replace(slot=slot, row=row))
        self._slots[cache.index, row, entry.view] = slot
        return Place(cache.index, slot)

    def _staged(self, place: Place) -> Entry | None:
        before = self._teachers.handle(place.cache).num_slots
        return self._entries[place.cache][place.slot - before] if place.slot >= before else None

    def _answers(self, place: Place, *, specs: tuple[ArraySpec, ...]) -> bytes:
        """Bytes of these outputs of an answer, one after another; it was kept with all of them."""
        handle, staged = self._teachers.handle(place.cache), self._staged(place)
        if staged is None:
            return handle.answers(place.slot, specs)
        if specs == handle.specs:
            return staged.answers
        parts, at = {}, 0
        for spec in handle.specs:
            parts[spec.name] = staged.answers[at : at + spec.slot_bytes]
            at += spec.slot_bytes
        return b"".join(parts[spec.name] for spec in specs)

    def _entry_key(self, place: Place) -> bytes:
        staged = self._staged(place)
        return self._teachers.handle(place.cache).key(place.slot) if staged is None else staged.key

    def _canonical(self, place: Place) -> int:
        staged = self._aliases.get(place.number)
        if staged is not None:
            return staged
        return self._teachers.handle(place.cache).canonical(place.slot)

    def _charge(self, payer: Payer, places: Sequence[Place]) -> None:
        self._charges.setdefault(payer, []).extend(self._canonical(place) for place in places)

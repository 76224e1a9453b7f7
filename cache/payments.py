"""The half of a writer that pays: calls reserved before they are made, runs and their budgets."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import RLock

from cache.handle import CacheHandle
from cache.ledger import Ledger
from cache.reservation import Reservation
from cache.reservations import Reservations
from shared.errors import TeachonceError


class Payments:
    """What `CacheWriter` adds answers to; all methods may be called from any thread."""

    def __init__(self, ledger: Ledger, *, lock: RLock) -> None:
        self._lock = lock
        """Held while the ledger is used."""
        self._ledger = ledger
        self._reservations = Reservations(ledger)

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        """The ledger itself, for commands that merge and import; nobody else uses it meanwhile."""
        with self._lock:
            yield self._ledger

    def reserve(self, *, run: str, cache: CacheHandle, calls: int) -> Reservation:
        """Durably count ``calls`` attempts, all or none; raises `BudgetExhaustedError`, `UnknownNameError`."""
        (outcome,) = self.reserve_all([(run, cache, calls)])
        if isinstance(outcome, TeachonceError):
            raise outcome
        return outcome

    def reserve_all(self, requests: Sequence[tuple[str, CacheHandle, int]]) -> list[Reservation | TeachonceError]:
        """`reserve` for several (run, cache, calls) in one transaction; errors stand in the place of their request."""
        with self._lock:
            return self._reservations.reserve(requests)

    def release(self, reservation: Reservation, *, calls: int) -> None:
        """Give back calls whose forward never started."""
        with self._lock:
            self._reservations.release(reservation, calls=calls)

    def fail(self, reservation: Reservation, *, calls: int) -> None:
        """Settle calls whose forward started and brought no answer: they stay attempts."""
        with self._lock:
            self._reservations.settle(reservation, calls=calls)

    def ensure_run(self, name: str, budget: int | None = None) -> None:
        """Create a run; one that exists keeps its counts, and its budget unless another is given."""
        with self._lock:
            self._ledger.ensure_run(name, budget=budget)

    def set_budget(self, run: str, budget: int | None) -> None:
        """Bound the attempts of a run for ever; raises `BudgetConflictError` below what it made already."""
        with self._lock:
            self._ledger.set_budget(run, budget)

    def remaining(self, run: str, budget: int | None = None) -> int | None:
        """Attempts that a run may still make, were ``budget`` its own; None: as it is. `Ledger.remaining` says more."""
        with self._lock:
            return self._ledger.remaining(run, budget=budget)

    def set_total_budget(self, budget: int | None) -> None:
        """Bound the attempts of all runs together; raises `BudgetConflictError` below what was made already."""
        with self._lock:
            self._ledger.set_total_budget(budget)

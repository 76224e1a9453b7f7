"""The half of a writer that pays: calls reserved before they are made, runs and their budgets."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import RLock

from cache.handle import CacheHandle
from cache.ledger import Ledger
from cache.model_call import ModelCall
from cache.payer import LOCAL_OWNER
from cache.reservation import CallRequest, Reservation
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

    def reserve(self, *, run: str, cache: CacheHandle, calls: int, owner: str = LOCAL_OWNER) -> Reservation:
        """Durably count ``calls`` attempts, all or none; raises `BudgetExhaustedError`, `UnknownNameError`."""
        (outcome,) = self.reserve_all([CallRequest(run=run, owner=owner, cache=cache, calls=calls)])
        if isinstance(outcome, TeachonceError):
            raise outcome
        return outcome

    def reserve_all(self, requests: Sequence[CallRequest]) -> list[Reservation | TeachonceError]:
        """`reserve` for several requests in one transaction; errors stand in the place of their request."""
        with self._lock:
            return self._reservations.reserve(requests)

    def release(self, reservation: Reservation, *, calls: int) -> None:
        """Give back calls whose forward never started."""
        with self._lock:
            self._reservations.release(reservation, calls=calls)

    def fail(self, reservation: Reservation, *, calls: int, call: ModelCall | None = None) -> None:
        """Settle calls whose forward started and brought no answer: they stay attempts.

        ``call``: what the history says about the batch; durable with the next transaction.
        """
        with self._lock:
            self._reservations.settle(reservation, calls=calls)
            if call is not None:
                self._ledger.history.note((call, reservation.payer, reservation.cache.index), images=calls)

    def ensure_run(self, name: str, budget: int | None = None) -> None:
        """Create a run; one that exists keeps its counts, and its budget unless another is given."""
        with self._lock:
            self._ledger.ensure_run(name, budget=budget)

    def set_budget(self, run: str, budget: int | None) -> None:
        """Bound the attempts of a run for ever; raises `BudgetConflictError` below what it made already."""
        with self._lock:
            self._ledger.set_budget(run, budget)

    def raise_budget(self, run: str, budget: int | None) -> None:
        """Create a run, or give it a larger budget: one that is larger already stays, and the log says so."""
        with self._lock:
            self._ledger.raise_budget(run, budget)

    def set_owner_budget(self, owner: str, budget: int | None) -> None:
        """Bound the attempts of a key owner under all runs; raises `BudgetConflictError` below what was made."""
        with self._lock:
            self._ledger.set_owner_budget(owner, budget)

    def bound_owner(self, owner: str, budget: int | None) -> None:
        """`set_owner_budget`, but one below what was made already is no error: it allows no more."""
        with self._lock:
            self._ledger.bound_owner(owner, budget)

    def remaining(self, run: str, budget: int | None = None, *, owner: str = LOCAL_OWNER) -> int | None:
        """Attempts that ``owner`` may still make under a run, were ``budget`` its own; see `Ledger.remaining`."""
        with self._lock:
            return self._ledger.remaining(run, budget=budget, owner=owner)

    def set_total_budget(self, budget: int | None) -> None:
        """Bound the attempts of all runs together; raises `BudgetConflictError` below what was made already."""
        with self._lock:
            self._ledger.set_total_budget(budget)

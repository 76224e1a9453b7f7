"""Calls that are paid for and not settled yet."""

from collections import Counter
from collections.abc import Sequence

from cache.batch import AnswerBatch
from cache.ledger import Ledger
from cache.reservation import CallRequest, Reservation
from shared.errors import InputError, TeachonceError


class Reservations:
    """Reserved calls are attempts in the ledger from the start; here is only how many of them are open."""

    def __init__(self, ledger: Ledger) -> None:
        self.open_calls = 0
        self._ledger = ledger

    def reserve(self, requests: Sequence[CallRequest]) -> list[Reservation | TeachonceError]:
        """Durably reserve the calls of each request, all or none."""
        if negative := [request.calls for request in requests if request.calls < 0]:
            raise InputError(f"cannot reserve {negative[0]} calls")
        outcomes = self._ledger.reserve([(request.payer, request.cache.index, request.calls) for request in requests])
        results: list[Reservation | TeachonceError] = []
        for request, error in zip(requests, outcomes, strict=True):
            if error is not None:
                results.append(error)
                continue
            calls = request.calls
            self.open_calls += calls
            results.append(Reservation(payer=request.payer, cache=request.cache, calls=calls, left=calls))
        return results

    def settle(self, reservation: Reservation, *, calls: int) -> None:
        """Close calls; they stay attempts."""
        if not 0 <= calls <= reservation.left:
            raise InputError(f"{calls} calls cannot be settled: {reservation.left} of {reservation.calls} are open")
        reservation.left -= calls
        self.open_calls -= calls

    def release(self, reservation: Reservation, *, calls: int) -> None:
        """Close calls that were never made: durably no attempts any more."""
        self.settle(reservation, calls=calls)
        self._ledger.give_back(reservation.payer, cache=reservation.cache.index, calls=calls)


def check_paid(batches: Sequence[AnswerBatch]) -> None:
    """Raise `InputError` for batches with more answers than their reservations have open calls."""
    needed: Counter[Reservation] = Counter()
    for batch in batches:
        if batch.reservation is not None:
            needed[batch.reservation] += batch.calls
    for reservation, calls in needed.items():
        if calls > reservation.left:
            raise InputError(f"{calls} calls needed, but only {reservation.left} of {reservation.calls} are open")

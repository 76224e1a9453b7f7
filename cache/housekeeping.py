"""A thread that looks in every second, or when woken: counts become durable, full blocks and quiet tails are folded."""

import logging
import threading
from collections.abc import Callable

from shared.errors import TeachonceError

log = logging.getLogger(__name__)

EVERY_S = 1.0


class Housekeeping:
    """Calls ``tidy`` every second, and soon after `wake`, until stopped."""

    def __init__(self, tidy: Callable[[], None]) -> None:
        self._tidy = tidy
        self._wake = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="cache-housekeeping", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is something to do now."""
        self._wake.set()

    def stop(self) -> None:
        """End the thread; what it has begun is finished."""
        self._stopped = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._wake.wait(EVERY_S)
            self._wake.clear()
            if self._stopped:
                return
            try:
                self._tidy()
            except (TeachonceError, OSError) as error:
                # Nothing is lost: it is tried again, and the next commit meets the same trouble and reports it.
                log.warning("housekeeping: %s", error)

"""A thread that looks in every second: counts become durable, and a quiet writer folds its tail."""

import logging
import threading
from collections.abc import Callable

from shared.errors import TeachonceError

log = logging.getLogger(__name__)

EVERY_S = 1.0


class Housekeeping:
    """Calls ``tidy`` every second until stopped."""

    def __init__(self, tidy: Callable[[], None]) -> None:
        self._tidy = tidy
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cache-housekeeping", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what it has begun is finished."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            try:
                self._tidy()
            except (TeachonceError, OSError) as error:
                # Nothing is lost: it is tried again, and the next commit meets the same trouble and reports it.
                log.warning("housekeeping: %s", error)

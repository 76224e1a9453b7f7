"""The status of the server as the dashboard shows it: made at most twice a second, however many watch."""

import asyncio
from importlib.metadata import version
from time import monotonic
from typing import Any

from orjson import dumps

from teacher_server.metrics import Metrics
from teacher_server.pulse import INTERVAL_S, Pulse
from teacher_server.readings import Reading, quantile, take_reading
from teacher_server.service import Service

FRESH_S = 0.5
"""How old an answer may be."""
RATE_S = 5.0
"""Rates are over this time."""
RECENT_S = 60.0
"""Latencies and recent errors are over this time."""
Json = dict[str, Any]


class Status:
    """Reads a service and its metrics; open `pulse` while the application runs."""

    def __init__(self, service: Service, *, metrics: Metrics) -> None:
        self.pulse = Pulse(self._read)
        self.fills = False
        """Whether there is a route that lists fills."""
        self._service = service
        self._metrics = metrics
        # Read from a file of the installation.
        self._version = version("teachonce")
        self._began_s = monotonic()
        self._past: tuple[int, float] | None = None
        self._page = b""
        self._page_s = -FRESH_S
        self._making: asyncio.Task[bytes] | None = None

    async def current(self) -> bytes:
        """The status as JSON; everyone who asks meanwhile waits for the same."""
        if monotonic() - self._page_s < FRESH_S:
            return self._page
        if self._making is None:
            self._making = asyncio.create_task(self._make())
        # A watcher that leaves must not take it from the others.
        return await asyncio.shield(self._making)

    async def _make(self) -> bytes:
        try:
            now = await asyncio.to_thread(self._read)
            ledger = await self._service.ledger()
            self._page = dumps(self._describe(now, ledger=ledger))
            self._page_s = monotonic()
            return self._page
        finally:
            self._making = None

    def _read(self) -> Reading:
        now = take_reading(self._service, self._metrics)
        if self._past is None:
            # Asked for as soon as the server starts; what it computed before this is in the history already.
            calls, seconds = self._service.teacher_time()
            self._past = (calls - now.images, seconds - now.forward_s)
        return now

    def _describe(self, now: Reading, *, ledger: Json) -> Json:
        return {
            "server": self._server(),
            "teacher": self._teacher(),
            "ledger": ledger,
            "saved": self._saved(now),
            "load": self._load(now),
            "history": self._history(),
            "datasets": self._datasets(),
            "rejected": self._rejected(now),
        }

    def _server(self) -> Json:
        return {
            "version": self._version,
            "uptime_s": round(monotonic() - self._began_s, 1),
            "trouble": self._service.answering.trouble,
            "keys": self._service.settings.api_key_file is not None,
            "fills": self.fills,
        }

    def _teacher(self) -> Json:
        teacher = self._service.teacher
        about = teacher.description
        return {"id": about.id, "arch": about.arch, "classes": about.classes, "device": teacher.device}

    def _saved(self, now: Reading) -> Json:
        calls, seconds = self._past or (0, 0.0)
        calls, seconds = calls + now.images, seconds + now.forward_s
        per_call = seconds / calls if calls > 0 else None
        return {
            "calls": now.free,
            "share": now.free / now.answers if now.answers else None,
            "seconds_per_call": per_call,
            "seconds": None if per_call is None else per_call * now.free,
        }

    def _load(self, now: Reading) -> Json:
        answering = self._service.answering
        last = now.since(self.pulse.before(now, seconds=RATE_S))
        minute = now.since(self.pulse.before(now, seconds=RECENT_S))
        p50, p99 = (quantile(minute.latencies, share) for share in (0.5, 0.99))
        return {
            "teacher_per_second": last.speed.teacher_per_second,
            "cache_per_second": last.speed.cache_per_second,
            "hit_rate": last.free / last.answers if last.answers else None,
            "requests_per_second": last.speed.requests_per_second,
            "queue_images": answering.queue_images,
            "inflight_images": answering.waiting_images,
            "p50_ms": None if p50 is None else p50 * 1000,
            "p99_ms": None if p99 is None else p99 * 1000,
            "mean_batch": now.images / total if (total := max(now.batches.values(), default=0)) else None,
            "batch_sizes": _bars(now),
        }

    def _history(self) -> Json:
        teacher, cached = self.pulse.rates()
        return {"interval_s": INTERVAL_S, "teacher": teacher, "cache": cached}

    def _datasets(self) -> list[Json]:
        served = self._service.datasets
        return [
            {
                "name": name,
                "rows": cache.dataset.rows if name in served else None,
                "slots": cache.num_slots,
                "outputs": list(cache.outputs),
            }
            for name, cache in list(self._service.caches.items())
        ]

    def _rejected(self, now: Reading) -> list[Json]:
        recent = now.since(self.pulse.before(now, seconds=RECENT_S)).rejected
        often = sorted(now.rejected.items(), key=lambda one: -one[1])
        return [{"reason": reason, "count": count, "last_minute": recent[reason]} for reason, count in often]


def _bars(now: Reading) -> list[Json]:
    """Batches by size, from the smallest bar that holds any to the largest."""
    bars = []
    first = 1
    below = 0
    for end, count in sorted(now.batches.items()):
        last = None if end == float("inf") else int(end)
        bars.append({"first": first, "last": last, "batches": count - below})
        first, below = (last or 0) + 1, count
    filled = [index for index, bar in enumerate(bars) if bar["batches"]]
    return bars[filled[0] : filled[-1] + 1] if filled else []

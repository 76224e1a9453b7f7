"""What the ledger and the queue hold, read when Prometheus asks: never counted twice, and right after a restart too."""

from collections.abc import Iterator, Mapping
from threading import Lock
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from teacher_server.service import Service

MOST_RUNS = 100
"""Runs with a label of their own; what later ones used is summed."""
LATER_RUNS = "(later)"
"""Label of that sum; no run can be called so."""


class LedgerCollector(Collector):
    """Reads a service's ledger and queue at every scrape, in the thread of whoever scrapes."""

    def __init__(self, service: Service) -> None:
        self._service = service
        # In the order they were first seen, so that a run never moves into or out of the sum.
        self._named: dict[str, None] = {}
        self._lock = Lock()

    def describe(self) -> Iterator[Metric]:
        """Nothing is read before the first scrape."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All families, in a fixed order."""
        yield from self._now()
        ledger = self._service.ledger_now()
        yield from _totals(ledger)
        yield from self._runs(ledger)

    def _now(self) -> Iterator[Metric]:
        answering = self._service.answering
        teacher = GaugeMetricFamily("teacher_info", "1, labelled with the teacher that answers", labels=("teacher",))
        teacher.add_metric((self._service.teacher_id,), 1)
        yield teacher
        ready = float(answering.trouble is None)
        yield GaugeMetricFamily("teacher_ready", "1 where GET /readyz answers 200, else 0", value=ready)
        yield GaugeMetricFamily(
            "teacher_queue_images", "Images that no batch has taken yet", value=answering.queue_images
        )
        yield GaugeMetricFamily("teacher_inflight_keys", "Distinct images on their way", value=answering.waiting_images)

    def _runs(self, ledger: Mapping[str, Any]) -> Iterator[Metric]:
        runs: Mapping[str, Mapping[str, int | None]] = ledger["runs"]
        named = self._name(runs)
        limit = GaugeMetricFamily("teacher_budget_limit", "Most attempts of a run with a budget", labels=("run",))
        used = GaugeMetricFamily("teacher_budget_used", "Attempts that a run has made", labels=("run",))
        calls = CounterMetricFamily("teacher_run_calls", "Teacher calls that a run has paid for", labels=("run",))
        for name in named:
            if runs[name]["budget"] is not None:
                limit.add_metric((name,), _number(runs[name]["budget"]))
            used.add_metric((name,), _number(runs[name]["attempts"]))
            calls.add_metric((name,), _number(runs[name]["teacher_calls"]))
        if others := [run for name, run in runs.items() if name not in named]:
            used.add_metric((LATER_RUNS,), sum(_number(run["attempts"]) for run in others))
            calls.add_metric((LATER_RUNS,), sum(_number(run["teacher_calls"]) for run in others))
        yield from (limit, used, calls)

    def _name(self, runs: Mapping[str, object]) -> list[str]:
        """The runs with a label of their own."""
        # Two may scrape at the same time.
        with self._lock:
            for name in runs:
                if len(self._named) < MOST_RUNS:
                    self._named.setdefault(name)
            return [name for name in self._named if name in runs]


def _totals(ledger: Mapping[str, Any]) -> Iterator[Metric]:
    yield CounterMetricFamily("teacher_calls", "Answers of the teacher that are kept", value=ledger["teacher_calls"])
    yield CounterMetricFamily("teacher_attempts", "Teacher calls begun, which budgets bound", value=ledger["attempts"])
    images = CounterMetricFamily(
        "teacher_images", "Answers by where they came from; computed ones in teacher calls", labels=("source",)
    )
    for source, column in (("hit", "hits"), ("joined", "joined"), ("computed", "teacher_calls")):
        images.add_metric((source,), ledger[column])
    yield images
    reserved = ledger["reserved"]
    yield GaugeMetricFamily("teacher_budget_reserved", "Attempts paid for whose answers are awaited", value=reserved)
    if ledger["budget"] is not None:
        total = ledger["budget"]
        yield GaugeMetricFamily("teacher_total_budget_limit", "Most attempts of all runs together", value=total)


def _number(value: int | None) -> float:
    return float(value or 0)

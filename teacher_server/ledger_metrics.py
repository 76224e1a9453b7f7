"""What the ledger and the queue hold, read when Prometheus asks: never counted twice, and right after a restart too."""

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from teacher_server.label_names import LATER, LabelNames
from teacher_server.service import Service


class LedgerCollector(Collector):
    """Reads a service's ledger and queue at every scrape, in the thread of whoever scrapes."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._runs, self._owners = LabelNames(), LabelNames()

    def describe(self) -> Iterator[Metric]:
        """Nothing is read before the first scrape."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All families, in a fixed order."""
        yield from self._now()
        ledger = self._service.ledger_now()
        yield from _totals(ledger)
        yield from _spendings(ledger["runs"], kind="run", prefix="", names=self._runs)
        yield from _spendings(ledger["owners"], kind="owner", prefix="owner_", names=self._owners)

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


def _spendings(
    spendings: Mapping[str, Mapping[str, int | None]], *, kind: str, prefix: str, names: LabelNames
) -> Iterator[Metric]:
    """What every run, or key owner, may use and has used; what the later ones used is summed."""
    named = names.own(spendings)
    limit = GaugeMetricFamily(
        f"teacher_{prefix}budget_limit", f"Most attempts of a {kind} with a budget", labels=(kind,)
    )
    used = GaugeMetricFamily(f"teacher_{prefix}budget_used", f"Attempts that a {kind} has made", labels=(kind,))
    calls = CounterMetricFamily(f"teacher_{kind}_calls", f"Teacher calls that a {kind} has paid for", labels=(kind,))
    for name in named:
        if spendings[name]["budget"] is not None:
            limit.add_metric((name,), _number(spendings[name]["budget"]))
        used.add_metric((name,), _number(spendings[name]["attempts"]))
        calls.add_metric((name,), _number(spendings[name]["teacher_calls"]))
    if others := [spending for name, spending in spendings.items() if name not in named]:
        used.add_metric((LATER,), sum(_number(spending["attempts"]) for spending in others))
        calls.add_metric((LATER,), sum(_number(spending["teacher_calls"]) for spending in others))
    yield from (limit, used, calls)


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

"""What the server's counters say at one moment, and what happened between two moments."""

from dataclasses import dataclass
from time import monotonic
from typing import NamedTuple, TypeVar

from teacher_server.metrics import Metrics
from teacher_server.service import Service

ANSWERING_ROUTES = ("/v1/logits", "/v1/images")
ANSWERING_END = "/infer"
Name = TypeVar("Name", float, str)
Buckets = dict[float, int]
"""Upper end -> observations up to it, as Prometheus counts them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """Counters since the start, or the difference of two readings."""

    at_s: float
    """Monotonic clock; of a difference: how long it took."""
    answers: int
    """Kept answers that were sent or computed, whatever they cost."""
    free: int
    """Of these, the ones that took no call."""
    images: int
    """Images that the teacher looked at."""
    forward_s: float
    """How long that took."""
    requests: int
    batches: Buckets
    """By images per batch."""
    latencies: Buckets
    """Questions by seconds until they were answered."""
    rejected: dict[str, int]
    """By reason."""

    def since(self, before: "Reading") -> "Reading":
        """What happened after ``before``."""
        return Reading(
            at_s=self.at_s - before.at_s,
            answers=self.answers - before.answers,
            free=self.free - before.free,
            images=self.images - before.images,
            forward_s=self.forward_s - before.forward_s,
            requests=self.requests - before.requests,
            batches=_differences(self.batches, before.batches),
            latencies=_differences(self.latencies, before.latencies),
            rejected=_differences(self.rejected, before.rejected),
        )

    @property
    def speed(self) -> "Step":
        """Of a difference: how fast it was."""
        return Step(NOTHING, self)


NOTHING = Reading(
    at_s=0.0, answers=0, free=0, images=0, forward_s=0.0, requests=0, batches={}, latencies={}, rejected={}
)


class Step(NamedTuple):
    """Two readings, of which only the speed matters: hundreds are looked at every second."""

    before: Reading
    after: Reading

    @property
    def teacher_per_second(self) -> float:
        """Answers that the teacher computed."""
        return self._rate(self.after.answers - self.after.free - self.before.answers + self.before.free)

    @property
    def cache_per_second(self) -> float:
        """Answers that took no call."""
        return self._rate(self.after.free - self.before.free)

    @property
    def requests_per_second(self) -> float:
        """Questions that were answered or refused."""
        return self._rate(self.after.requests - self.before.requests)

    def _rate(self, number: int) -> float:
        seconds = self.after.at_s - self.before.at_s
        return round(number / seconds, 1) if seconds > 0 else 0.0


def take_reading(service: Service, metrics: Metrics) -> Reading:
    """Read all counters; waits for the ledger, so not from the event loop."""
    ledger = service.ledger_now()
    free = ledger["hits"] + ledger["joined"]
    batches: Buckets = {}
    latencies: Buckets = {}
    rejected: dict[str, int] = {}
    numbers = dict.fromkeys(("teacher_forward_images_total", "teacher_forward_seconds_sum", "requests"), 0.0)
    for sample in metrics.samples():
        if sample.name == "teacher_batch_size_bucket":
            _add(batches, float(sample.labels["le"]), sample.value)
        elif sample.name == "teacher_request_seconds_bucket" and _answers(sample.labels["route"]):
            _add(latencies, float(sample.labels["le"]), sample.value)
        elif sample.name == "teacher_request_seconds_count" and _answers(sample.labels["route"]):
            numbers["requests"] += sample.value
        elif sample.name == "teacher_rejected_total":
            rejected[sample.labels["reason"]] = int(sample.value)
        elif sample.name in numbers:
            numbers[sample.name] = sample.value
    images, forward_s, requests = numbers.values()
    return Reading(
        at_s=monotonic(),
        answers=free + ledger["teacher_calls"],
        free=free,
        images=int(images),
        forward_s=forward_s,
        requests=int(requests),
        batches=batches,
        latencies=latencies,
        rejected=rejected,
    )


def quantile(buckets: Buckets, share: float) -> float | None:
    """The value below which ``share`` of the observations lie, between the ends of its bucket; None without any.

    An observation beyond the last end counts as that end.
    """
    ends = sorted(buckets)
    total = buckets[ends[-1]] if ends else 0
    wanted = share * total
    below, low = 0, 0.0
    for end in ends if total else ():
        if buckets[end] >= wanted:
            return low if end == float("inf") else low + (end - low) * (wanted - below) / (buckets[end] - below)
        below, low = buckets[end], end
    return None


def _answers(route: str) -> bool:
    return route.startswith(ANSWERING_ROUTES) or route.endswith(ANSWERING_END)


def _add(buckets: Buckets, end: float, value: float) -> None:
    buckets[end] = buckets.get(end, 0) + int(value)


def _differences(now: dict[Name, int], before: dict[Name, int]) -> dict[Name, int]:
    return {name: number - before.get(name, 0) for name, number in now.items()}

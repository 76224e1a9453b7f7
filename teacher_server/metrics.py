"""What Prometheus is told: how often and how long, observed in this process; how much, read from the ledger.

Every application has a registry of its own. Nothing a caller writes becomes a label, but for names of runs and
keys that exist.
"""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from shared.errors import TeachonceError
from teacher_server.label_names import LabelNames
from teacher_server.observer import Observer

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"})
OTHER = "other"
"""Label of what has no name of its own."""
BATCH_BUCKETS = tuple(2**power for power in range(13))
"""1 to 4096 images."""
SHOWN = (
    "teacher_batch_size_bucket",
    "teacher_request_seconds_bucket",
    "teacher_request_seconds_count",
    "teacher_rejected_total",
    "teacher_forward_images_total",
    "teacher_forward_seconds_sum",
)
"""What the dashboard is made of."""
SECONDS_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics(Observer):
    """Counters and histograms of one application; `render` shows them with what `watch` was given."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        # Resident memory, CPU seconds, open files.
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "teacher_requests_total",
            "Requests answered, by route template, method and status",
            ("route", "method", "code"),
            registry=self._registry,
        )
        self._owner_requests = Counter(
            "teacher_owner_requests_total",
            "Requests with a key, by its name; local = on a server without keys",
            ("owner",),
            registry=self._registry,
        )
        self._owner_names = LabelNames()
        self._request_seconds = Histogram(
            "teacher_request_seconds",
            "From the headers of a request to the end of its answer",
            ("route",),
            buckets=SECONDS_BUCKETS,
            registry=self._registry,
        )
        self._rejected = Counter(
            "teacher_rejected_total",
            "Requests answered with an error, by its code",
            ("reason",),
            registry=self._registry,
        )
        self._corrupt = Counter(
            "teacher_store_corrupt_total", "Requests that met bytes against their checksum", registry=self._registry
        )
        self._forward_calls = Counter(
            "teacher_forward_calls_total", "Forward passes of the teacher, one per batch", registry=self._registry
        )
        self._forward_images = Counter(
            "teacher_forward_images_total", "Images in these forward passes", registry=self._registry
        )
        self._batch_size = Histogram(
            "teacher_batch_size", "Images per forward pass", buckets=BATCH_BUCKETS, registry=self._registry
        )
        self._forward_seconds = self._seconds("forward", "One forward pass")
        self._queue_seconds = self._seconds("queue", "Until a batch took the images of a question, once per batch")
        self._decode_seconds = self._seconds("decode", "Reading, decoding and rendering the pixels of a batch")
        self._commit_seconds = self._seconds("ledger_commit", "Making the answers of a batch durable with their counts")

    def _seconds(self, step: str, about: str) -> Histogram:
        return Histogram(f"teacher_{step}_seconds", about, buckets=SECONDS_BUCKETS, registry=self._registry)

    def watch(self, collector: Collector) -> None:
        """Ask ``collector`` at every `render` too."""
        self._registry.register(collector)

    def samples(self) -> Iterator[Sample]:
        """What was observed in this process, for the dashboard; without what `watch` was given."""
        for family in self._registry.restricted_registry(SHOWN).collect():
            yield from family.samples

    def render(self, accept: str) -> tuple[bytes, str]:
        """The page and its content type, in the form that an Accept header asks for. Waits for the ledger."""
        encode: Callable[[CollectorRegistry], bytes]
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def queued(self, seconds: float) -> None:
        """See `Observer`."""
        self._queue_seconds.observe(seconds)

    def loaded(self, seconds: float) -> None:
        """See `Observer`."""
        self._decode_seconds.observe(seconds)

    def forwarded(self, images: int, *, seconds: float) -> None:
        """See `Observer`."""
        self._forward_calls.inc()
        self._forward_images.inc(images)
        self._batch_size.observe(images)
        self._forward_seconds.observe(seconds)

    def committed(self, seconds: float) -> None:
        """See `Observer`."""
        self._commit_seconds.observe(seconds)

    def asked_by(self, owner: str) -> None:
        """One request of a key's owner."""
        self._owner_requests.labels(self._owner_names.label(owner)).inc()

    def turned_away(self, error: TeachonceError) -> None:
        """What came was no request, or one that nobody could read to its end."""
        self._requests.labels(OTHER, OTHER, str(error.status)).inc()
        self._rejected.labels(error.code).inc()

    def answered(self, *, route: str | None, method: str, status: int, seconds: float, error: str | None) -> None:
        """One request: ``route`` is the template of its path, None where none fits; ``error`` the code of an error."""
        name = route or OTHER
        self._requests.labels(name, method if method in METHODS else OTHER, str(status)).inc()
        self._request_seconds.labels(name).observe(seconds)
        if error is not None or status >= 400:
            self._rejected.labels(error or OTHER).inc()
        if error == "corrupt":
            self._corrupt.inc()

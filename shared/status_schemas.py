"""JSON of the dashboard's routes: what a server is doing now, and which rows of a data set are cached."""

from pydantic import BaseModel, ConfigDict, Field

from shared.schemas import LedgerCounts


class Told(BaseModel):
    """Nothing that is not described here."""

    model_config = ConfigDict(extra="forbid")


class ServerStatus(Told):
    """The process."""

    version: str
    uptime_s: float
    trouble: str | None = Field(description="why nothing should be asked now; null = all is well")
    keys: bool = Field(description="whether API keys are in use")
    fills: bool = Field(description="whether GET /v1/fills exists")


class TeacherStatus(Told):
    """Who answers."""

    id: str
    arch: str
    classes: int
    device: str


class SavedStatus(Told):
    """What nobody had to pay again."""

    calls: int = Field(description="answers from the cache, and requests that joined a call under way")
    share: float | None = Field(description="of all answers, 0 to 1; null before the first")
    seconds_per_call: float | None = Field(description="the teacher's own time, measured; null before the first call")
    seconds: float | None = Field(description="calls x seconds_per_call")


class BatchSize(Told):
    """One bar of a histogram."""

    first: int
    last: int | None = Field(description="null = no upper end")
    batches: int


class LoadStatus(Told):
    """The last seconds; batches are counted since the start."""

    teacher_per_second: float = Field(description="images that the teacher computed")
    cache_per_second: float = Field(description="answers that took no call")
    hit_rate: float | None = Field(description="share of answers that took no call, 0 to 1; null = nobody asked")
    requests_per_second: float
    queue_images: int = Field(description="images that no batch has taken yet")
    inflight_images: int = Field(description="distinct images on their way")
    p50_ms: float | None = Field(description="of questions of the last minute; null = nobody asked")
    p99_ms: float | None
    mean_batch: float | None
    batch_sizes: list[BatchSize]


class LoadHistory(Told):
    """Answers per second, oldest first, one number per interval."""

    interval_s: float
    teacher: list[float]
    cache: list[float]


class CachedDataset(Told):
    """How much of a data set is cached."""

    name: str
    rows: int | None = Field(description="null = uploads, which have none")
    slots: int = Field(description="cached answers, all views together")
    outputs: list[str]


class Rejected(Told):
    """Requests that were answered with an error."""

    reason: str
    count: int = Field(description="since the start")
    last_minute: int


class StatusAnswer(Told):
    """``GET /v1/status``: everything that the dashboard shows, except for pictures of coverage."""

    server: ServerStatus
    teacher: TeacherStatus
    ledger: LedgerCounts
    saved: SavedStatus
    load: LoadStatus
    history: LoadHistory
    datasets: list[CachedDataset]
    rejected: list[Rejected]


class CoverageAnswer(Told):
    """``GET /v1/cache/{dataset}/{split}/coverage``."""

    dataset: str
    rows: int
    blocks: int = Field(description="parts of equal size that the rows are cut into")
    views: list[int] = Field(description="ascending; view 0, and those with at least one answer")
    more_views: int = Field(description="views with answers that are left out, the highest ones")
    cached: list[int] = Field(description="rows cached, per view")
    present: list[list[float]] = Field(description="per view and block, share of the rows that are cached, 0 to 1")

"""The error tree: what can go wrong, with the HTTP status and the exit code each kind has everywhere."""

from collections.abc import Sequence


class TeachonceError(Exception):
    """Something went wrong that the message explains: what was wrong, what was found, what would work."""

    code = "internal"
    """Stable snake_case name, sent as ``code`` in every HTTP error."""
    status = 500
    """HTTP status."""
    exit_code = 1
    """Exit code of a command that ends with this error."""
    retry_after_s: int | None = None
    """Seconds after which a retry may help; None where it does not."""


class InputError(TeachonceError):
    """What the user gave cannot be used."""

    code = "bad_request"
    status = 400
    exit_code = 2


class UnknownNameError(InputError):
    """No such teacher, student, loss, data set, split, run or row source."""

    code = "unknown_name"
    status = 404


class RowRangeError(InputError):
    """A row or view that the data set does not have."""

    code = "row_out_of_range"


class BadImageError(InputError):
    """Bytes that are not one complete image in an accepted form."""

    code = "bad_image"


class UnsupportedTypeError(InputError):
    """A body of a type that no route reads."""

    code = "unsupported_type"
    status = 415


class TooLargeError(InputError):
    """A body, image or request over its limit."""

    code = "too_large"
    status = 413


class LongHeadersError(InputError):
    """A request line or headers over their limits."""

    code = "headers_too_large"
    status = 431


class SlowBodyError(InputError):
    """A request whose headers or body did not arrive in time."""

    code = "slow_body"
    status = 408


class UnauthorizedError(InputError):
    """No API key, or a wrong one."""

    code = "unauthorized"
    status = 401


class ForbiddenError(InputError):
    """A known API key that may not do this."""

    code = "forbidden"
    status = 403


class OutputNotCachedError(InputError):
    """An output that this cache was not created with."""

    code = "output_not_cached"


class MissingRowsError(InputError):
    """Rows that no teacher has answered yet.

    ``rows`` holds all of them, ``view`` the view (None where several were asked for).
    """

    code = "not_cached"
    status = 404

    def __init__(self, message: str, *, rows: Sequence[int], view: int | None = None) -> None:
        super().__init__(message)
        self.rows = list(rows)
        self.view = view


class IdentityError(InputError):
    """A cache, data set, teacher or weights file that is not the one it is used as."""

    code = "identity_mismatch"
    status = 409


class DatasetFailedError(InputError):
    """A user's own data set failed on a row: no mistake of whoever asks a server about it."""

    code = "dataset_failed"
    status = 500


class AnswerError(InputError):
    """A teacher's answer that must not be kept: not finite, of the wrong shape, or too large for its dtype."""

    code = "bad_answer"


class BudgetExhaustedError(TeachonceError):
    """The budget does not cover the calls; none of them was made."""

    code = "budget_exhausted"
    status = 402
    exit_code = 3

    def __init__(self, message: str, *, needed: int, remaining: int) -> None:
        super().__init__(message)
        self.needed = needed
        self.remaining = remaining


class BudgetConflictError(InputError):
    """A budget below the attempts already made."""

    code = "budget_below_attempts"
    status = 409


class CacheLockedError(TeachonceError):
    """Another process writes this cache."""

    code = "cache_locked"
    status = 503
    exit_code = 4


class CorruptCacheError(TeachonceError):
    """Bytes on disk that contradict their checksum, their size or each other."""

    code = "corrupt"
    status = 500
    exit_code = 5


class UnavailableError(TeachonceError):
    """Not now: starting, draining, or the queue is full."""

    code = "unavailable"
    status = 503
    exit_code = 1
    retry_after_s = 1


class UnreachableError(UnavailableError):
    """Nobody answers at an address that the user gave."""

    code = "unreachable"
    exit_code = 2


class DeadlineError(TeachonceError):
    """The answer was not ready in time; it is computed and kept all the same."""

    code = "deadline"
    status = 504


class FillCancelledError(TeachonceError):
    """Somebody else cancelled a fill; what it had done is kept."""

    code = "fill_cancelled"
    status = 409


class DiskFullError(TeachonceError):
    """No room to keep another answer; nothing was lost."""

    code = "disk_full"
    status = 507


class StorageError(TeachonceError):
    """The disk failed, or may not be written; what was answered before is kept."""

    code = "storage_failed"
    status = 500


class TeacherFailedError(TeachonceError):
    """The teacher's forward pass raised; its attempts stay counted."""

    code = "teacher_failed"
    status = 500


class DeviceLostError(TeacherFailedError):
    """The teacher's device failed for good: nothing can be asked in this process any more."""

    code = "device_lost"

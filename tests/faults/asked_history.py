"""What clients asked a server and were told, what its teacher computed, and what lay on the disk when it was dead.

Moments are seconds of the monotonic clock that all processes of a machine share.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

Told = Mapping[str, tuple[bytes, ...]]
"""Output -> one answer per image, as float32 bytes whatever the protocol."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question of one client."""

    life: int
    began_s: float
    ended_s: float
    how: str
    """Protocol and kind, for people."""
    keys: tuple[str, ...]
    """In request order, hex, duplicates included."""
    places: tuple[tuple[int, int], ...] = ()
    """(row, view) of each, where rows were asked about."""
    run: str = "default"
    owner: str = "local"
    """Whose key asked."""
    spends: bool = True
    """Whether asking may cause calls."""
    status: int | None = None
    """None: the connection ended first, and nobody knows."""
    told: Told = field(default_factory=dict)
    cached: tuple[bool, ...] | None = None
    """None where the protocol does not say."""
    teacher_calls: int = 0
    needed: int = 0
    remaining: int = 0


@dataclass(frozen=True, kw_only=True)
class BudgetSet:
    """A budget that was asked for; those of one run one after another, each larger than the one before."""

    began_s: float
    ended_s: float
    run: str
    """Empty: all runs together; with an @ before it: a key owner."""
    budget: int
    status: int | None


@dataclass(frozen=True, kw_only=True)
class RunCounts:
    budget: int | None
    attempts: int
    calls: int
    charged: int = 0


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The ledger at some moment between two."""

    began_s: float
    ended_s: float
    whole: RunCounts
    runs: Mapping[str, RunCounts]
    """Of key owners too, with an @ before the name."""


@dataclass(frozen=True, kw_only=True)
class Forward:
    """One image of which the teacher was about to compute an answer."""

    life: int
    at_s: float
    run: str
    key: str
    owner: str = "local"


@dataclass(frozen=True, kw_only=True)
class Rest:
    """The cache after a life, before the next."""

    life: int
    sample: Sample
    """What the ledger on the disk says."""
    slots: list[tuple[str, Mapping[str, bytes]]]
    """Key and answers of every slot, as in `Told`."""
    logged: Mapping[str, int] = field(default_factory=dict)
    """Run -> answers that ``logit-cache history`` lists; runs without any may be left out."""
    findings: str = ""
    """What ``logit-cache verify`` complained about."""


@dataclass(frozen=True, kw_only=True)
class History:
    """All lives of one cache."""

    truth: dict[str, bytes] = field(default_factory=dict)
    """The features that the teacher says about a key, whenever it is asked."""
    asked: list[Asked] = field(default_factory=list)
    budgets: list[BudgetSet] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    forwards: list[Forward] = field(default_factory=list)
    rests: list[Rest] = field(default_factory=list)

    def answered(self) -> list[Asked]:
        return [one for one in self.asked if one.status == 200]

    def all_samples(self) -> list[Sample]:
        """Those that clients were told and those that were read from the disk, by time."""
        found = [*self.samples, *(rest.sample for rest in self.rests)]
        return sorted(found, key=lambda sample: sample.began_s)

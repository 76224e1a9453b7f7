"""Holds a server's history against its promises (design.md 4, I1 to I6): every sentence found is a broken one."""

from collections import Counter
from collections.abc import Iterable, Iterator

from asked_history import Asked, BudgetSet, Forward, History, RunCounts, Sample

STATUSES = frozenset({None, 200, 402, 404, 503})
"""Of questions: nobody knows, answered, no budget, not cached (where asking must not spend), about to stop."""


def broken_promises(history: History) -> list[str]:
    """Everything that must not have happened, each with its invariant; empty where all is well."""
    checks = (
        check_one_answer,
        check_one_forward,
        check_kept,
        check_known_is_free,
        check_counts,
        check_budgets,
        check_budgets_stay,
        check_refusals,
        check_same_bytes,
        check_sound,
        check_statuses,
    )
    return [sentence for check in checks for sentence in check(history)]


def check_one_answer(history: History) -> Iterator[str]:
    """I1 on the disk: slots of one key agree, and the ledger counts a call for each key."""
    for rest in history.rests:
        first: dict[str, object] = {}
        for key, answers in rest.slots:
            if first.setdefault(key, answers) != answers:
                yield f"I1: {_short(key)} has two answers on the disk after life {rest.life}"
        calls = rest.sample.whole.calls
        if len(first) != calls:
            yield f"I1: {len(first)} keys are kept after life {rest.life}, the ledger says {calls} calls"


def check_one_forward(history: History) -> Iterator[str]:
    """I1 in the teacher: in one life at most once per key, and never again once an answer was told or kept."""
    often = Counter((forward.life, forward.key) for forward in history.forwards)
    for (life, key), times in often.items():
        if times > 1:
            yield f"I1: {_short(key)} was computed {times} times in life {life}"
    known = _first_known(history)
    for forward in history.forwards:
        if forward.at_s > known.get(forward.key, forward.at_s):
            yield f"I1: {_short(forward.key)} was computed in life {forward.life} though it was answered before"


def check_kept(history: History) -> Iterator[str]:
    """I2: what a client was told lies on the disk, whenever the server is dead afterwards."""
    for rest in history.rests:
        kept = dict(rest.slots)
        for one in history.answered():
            if one.life > rest.life:
                continue
            for output, key, answer in _answers(one):
                if kept.get(key, {}).get(output) != answer:
                    lost = "differs on the disk" if key in kept else "is not on the disk"
                    yield f"I2: {output} of {_short(key)}, told by {one.how}, {lost} after life {rest.life}"


def check_known_is_free(history: History) -> Iterator[str]:
    """I2 and I4: what was told before is told again, without a call, whatever the budget says."""
    known = _first_told(history)
    places = _first_places(history)
    for one in history.asked:
        old = [known.get(key, one.began_s) < one.began_s for key in one.keys]
        fresh = {key for key, is_old in zip(one.keys, old, strict=True) if not is_old}
        if one.teacher_calls > len(fresh):
            yield f"I2: {one.how} caused {one.teacher_calls} calls for {len(fresh)} images not answered before"
        if one.status == 402 and one.needed > len(fresh):
            yield f"I2: {one.how} was to pay {one.needed} calls for {len(fresh)} images not answered before"
        if one.status == 200 and one.cached is not None:
            for key, is_old, is_cached in zip(one.keys, old, one.cached, strict=True):
                if is_old and not is_cached:
                    yield f"I2: {one.how} says {_short(key)} was not cached, though it was answered before"
        if one.status == 404 and all(places.get(place, one.began_s) < one.began_s for place in one.places):
            yield f"I2: {one.how} says rows are not cached that were answered before"


def check_counts(history: History) -> Iterator[str]:
    """I3: at every moment at least as many attempts as forwards begun, and a call for everything told or kept."""
    for sample in history.all_samples():
        for run, counts in _whole_and_runs(sample):
            begun = sum(forward.at_s < sample.began_s for forward in history.forwards if _pays(run, forward))
            told = _told_calls(history, run=run, before_s=sample.began_s)
            who = run or "the ledger"
            if counts.attempts < begun:
                yield f"I3: {who} counts {counts.attempts} attempts after {begun} forwards began"
            if not told <= counts.calls <= counts.attempts:
                yield f"I3: {who} counts {counts.calls} calls, {counts.attempts} attempts; clients know of {told} calls"
            if run and counts.charged < counts.calls:
                yield f"I3: {who} is charged {counts.charged} answers and made {counts.calls} calls"
    yield from _lost_attempts(history)
    yield from _strange_costs(history)


def _lost_attempts(history: History) -> Iterator[str]:
    """A crash costs no more than what was being asked: other attempts have a forward."""
    for rest in history.rests:
        for run, counts in _whole_and_runs(rest.sample):
            begun = sum(forward.life <= rest.life for forward in history.forwards if _pays(run, forward))
            open_keys = sum(
                len(set(one.keys))
                for one in history.asked
                if one.status in (None, 503) and one.spends and one.life <= rest.life and _pays(run, one)
            )
            if counts.attempts > begun + open_keys:
                yield (
                    f"I3: {run or 'the ledger'} counts {counts.attempts} attempts; {begun} forwards began, "
                    f"and {open_keys} images were in questions that nobody answered"
                )


def _strange_costs(history: History) -> Iterator[str]:
    """The list of batches has every call, and nobody is charged for what was not asked."""
    for rest in history.rests:
        for run, counts in rest.sample.runs.items():
            if rest.logged.get(run, 0) != counts.calls:
                yield f"I3: {run} made {counts.calls} calls, the history lists {rest.logged.get(run, 0)}"
            questions = [one for one in history.asked if _pays(run, one) and one.life <= rest.life]
            wanted = {key for one in questions if one.status in (None, 200, 503) for key in one.keys}
            if counts.charged > len(wanted):
                yield f"I3: {run} is charged {counts.charged} answers and asked for {len(wanted)}"


def check_budgets(history: History) -> Iterator[str]:
    """I4: no budget is passed, by the ledger's own word or by what the teacher was asked to compute."""
    for sample in history.all_samples():
        for run, counts in _whole_and_runs(sample):
            if counts.budget is not None and counts.attempts > counts.budget:
                yield f"I4: {run or 'the ledger'} made {counts.attempts} attempts with a budget of {counts.budget}"
    for run in {one.run for one in history.budgets}:
        begun = sorted(forward.at_s for forward in history.forwards if _pays(run, forward))
        for number, at_s in enumerate(begun, start=1):
            largest = max((one.budget for one in _sets(history, run) if one.began_s <= at_s), default=None)
            if largest is not None and number > largest:
                yield f"I4: {run or 'the ledger'} began {number} forwards while its budget was at most {largest}"
                break


def check_budgets_stay(history: History) -> Iterator[str]:
    """A budget that was set is the one that holds, after a crash too."""
    for sample in history.all_samples():
        for run, counts in _whole_and_runs(sample):
            sets = _sets(history, run)
            told = [one for one in sets if one.status == 200 and one.ended_s < sample.began_s]
            if not told:
                continue
            possible = {told[-1].budget} | {
                one.budget for one in sets if one.began_s > told[-1].began_s and one.began_s < sample.ended_s
            }
            if counts.budget not in possible:
                yield f"I4: {run or 'the ledger'} has a budget of {counts.budget}, not one of {sorted(possible)}"


def check_refusals(history: History) -> Iterator[str]:
    """A 402 is told only where some budget did not suffice at some time within the request, by its own numbers too."""
    samples = history.all_samples()
    for one in history.asked:
        if one.status != 402:
            continue
        if one.needed <= one.remaining or one.needed > len(set(one.keys)):
            yield f"402: {one.how} needed {one.needed} of {one.remaining} for {len(set(one.keys))} distinct images"
        least = [_least_left(history, samples, run=run, one=one) for run in (one.run, f"@{one.owner}", "")]
        if all(left is None or one.needed <= left for left in least):
            yield f"402: {one.how} needed {one.needed}, and at least {least} (run, owner, all) were left all the time"


def check_same_bytes(history: History) -> Iterator[str]:
    """I5: one question, one answer, over clients, protocols and lives; and it is about the image asked about."""
    first: dict[tuple[str, str], tuple[bytes, str]] = {}
    for one in history.answered():
        for output, key, answer in _answers(one):
            before, how = first.setdefault((output, key), (answer, one.how))
            if before != answer:
                yield f"I5: {output} of {_short(key)} by {one.how} is not what {how} was told"
            if output == "features" and answer != history.truth[key]:
                yield f"I5: features of {_short(key)} by {one.how} are another image's"


def check_sound(history: History) -> Iterator[str]:
    """I6: nothing is damaged by a kill."""
    for rest in history.rests:
        if rest.findings:
            yield f"I6: logit-cache verify after life {rest.life}: {rest.findings}"


def check_statuses(history: History) -> Iterator[str]:
    """Nothing else is ever told."""
    for one in history.asked:
        if one.status not in STATUSES or (one.spends and one.status == 404):
            yield f"status {one.status} of {one.how}"


def _pays(bound: str, one: Asked | Forward) -> bool:
    """Whether something counts against a run, an owner (with an @), or all (empty)."""
    return bound in ("", one.run, f"@{one.owner}")


def _answers(one: Asked) -> Iterable[tuple[str, str, bytes]]:
    for output, answers in one.told.items():
        for key, answer in zip(one.keys, answers, strict=True):
            yield output, key, answer


def _first_told(history: History) -> dict[str, float]:
    """Key -> when it was first told for certain."""
    first: dict[str, float] = {}
    for one in sorted(history.answered(), key=lambda one: one.ended_s):
        for key in one.keys:
            first.setdefault(key, one.ended_s)
    return first


def _first_places(history: History) -> dict[tuple[int, int], float]:
    """(row, view) -> the same."""
    first: dict[tuple[int, int], float] = {}
    for one in sorted(history.answered(), key=lambda one: one.ended_s):
        for place in one.places:
            first.setdefault(place, one.ended_s)
    return first


def _first_known(history: History) -> dict[str, float]:
    """Key -> when it was first told, or found on the disk."""
    first = _first_told(history)
    for rest in history.rests:
        for key, _ in rest.slots:
            first[key] = min(first.get(key, rest.sample.began_s), rest.sample.began_s)
    return first


def _whole_and_runs(sample: Sample) -> Iterator[tuple[str, RunCounts]]:
    yield "", sample.whole
    yield from sample.runs.items()


def _told_calls(history: History, *, run: str, before_s: float) -> int:
    answered = (one for one in history.answered() if one.ended_s < before_s and _pays(run, one))
    return sum(one.teacher_calls for one in answered)


def _sets(history: History, run: str) -> list[BudgetSet]:
    return sorted((one for one in history.budgets if one.run == run), key=lambda one: one.began_s)


def _least_left(history: History, samples: list[Sample], *, run: str, one: Asked) -> int | None:
    """Calls that a budget certainly had left while a question was asked; None: it had none, or nobody knows."""
    told = [each.budget for each in _sets(history, run) if each.status == 200 and each.ended_s < one.began_s]
    later = [counts for sample in samples if sample.began_s > one.ended_s if (counts := _of(sample, run))]
    return told[-1] - later[0].attempts if told and later else None


def _of(sample: Sample, run: str) -> RunCounts | None:
    return sample.runs.get(run) if run else sample.whole


def _short(key: str) -> str:
    return f"key {key[:8]}"

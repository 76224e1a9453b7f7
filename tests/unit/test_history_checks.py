"""The checker of the killed server (tests/faults/history_checks.py) finds every kind of broken promise."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from asked_history import Asked, BudgetSet, Forward, History, Rest, RunCounts, Sample
from history_checks import broken_promises

TRUTH = {"a": b"A's features", "b": b"B's features"}
LOGITS = {"a": b"A's logits", "b": b"B's logits"}
LOGGED = {"study": 2}
PLACES = {"a": (0, 0), "b": (1, 0), "c": (2, 0)}


def sample(at_s: float, *, budget: int, attempts: int = 2, calls: int = 2, charged: int = 2) -> Sample:
    study = RunCounts(budget=budget, attempts=attempts, calls=calls, charged=charged)
    return Sample(began_s=at_s, ended_s=at_s + 0.1, whole=replace(study, budget=None), runs={"study": study})


def asked(key: str, *, at_s: float, life: int = 1, status: int | None = 200, **fields: Any) -> Asked:
    answers = {"logits": (LOGITS[key],), "features": (TRUTH[key],)} if status == 200 else {}
    one = Asked(life=life, began_s=at_s, ended_s=at_s + 0.5, how="JSON", keys=(key,), places=(PLACES[key],))
    return replace(one, run="study", status=status, told=answers, **fields)


def slot(key: str) -> tuple[str, dict[str, bytes]]:
    return key, {"logits": LOGITS[key], "features": TRUTH[key]}


def sound() -> History:
    """Two lives: ``a`` is computed and told, ``b`` is computed before the kill and found in the second life."""
    return History(
        truth=dict(TRUTH),
        budgets=[
            BudgetSet(began_s=0, ended_s=1, run="study", budget=2, status=200),
            BudgetSet(began_s=20, ended_s=21, run="study", budget=5, status=200),
        ],
        asked=[
            asked("a", at_s=2, teacher_calls=1, cached=(False,)),
            asked("b", at_s=4, status=None),
            asked("a", at_s=14, life=2, cached=(True,)),
            asked("b", at_s=15, life=2, cached=(True,)),
            asked("c", at_s=16, life=2, status=402, needed=1, remaining=0),
            asked("c", at_s=17, life=2, status=404, spends=False),
        ],
        samples=[sample(12, budget=2), sample(22, budget=5)],
        forwards=[Forward(life=1, at_s=2.1, run="study", key="a"), Forward(life=1, at_s=4.1, run="study", key="b")],
        rests=[
            Rest(life=1, sample=sample(10, budget=2), slots=[slot("a"), slot("b")], logged=LOGGED),
            Rest(life=2, sample=sample(30, budget=5), slots=[slot("a"), slot("b"), slot("a")], logged=LOGGED),
        ],
    )


def test_a_sound_history_has_no_broken_promise() -> None:
    assert broken_promises(sound()) == []


def put(field: str, index: int, **changes: Any) -> Callable[[History], None]:
    """Forge one entry of a list of the history."""

    def forge(history: History) -> None:
        entries = getattr(history, field)
        entries[index] = replace(entries[index], **changes)

    return forge


def compute_again(life: int, at_s: float) -> Callable[[History], None]:
    return lambda history: history.forwards.append(Forward(life=life, at_s=at_s, run="study", key="a"))


OTHER = {"logits": b"other", "features": TRUTH["b"]}
FORGERIES = {
    "two answers on the disk": (put("rests", 1, slots=[slot("a"), slot("b"), ("a", OTHER)]), "I1: key a has two"),
    "an answer that was not counted": (put("rests", 1, slots=[slot("a"), slot("b"), ("c", OTHER)]), "I1: 3 keys"),
    "an image computed twice at once": (compute_again(1, 2.2), "I1: key a was computed 2 times in life 1"),
    "an answer computed again": (compute_again(2, 14.1), "I1: key a was computed in life 2 though"),
    "a lost answer": (put("rests", 1, slots=[slot("a")]), "I2: logits of key b, told by JSON, is not on"),
    "a changed answer": (
        put("rests", 1, slots=[slot("a"), ("b", OTHER)]),
        "I2: logits of key b, told by JSON, differs",
    ),
    "a call for what was answered": (put("asked", 2, teacher_calls=1), "I2: JSON caused 1 calls for 0 images"),
    "a price for what was answered": (
        put("asked", 2, status=402, needed=1, told={}),
        "I2: JSON was to pay 1 calls for 0 images",
    ),
    "an answer that was forgotten": (put("asked", 2, cached=(False,)), "I2: JSON says key a was not cached"),
    "a row that was forgotten": (
        put("asked", 2, status=404, spends=False, told={}, cached=None),
        "I2: JSON says rows are not cached",
    ),
    "an attempt that was not counted": (
        put("samples", 0, runs=sample(12, budget=2, attempts=1, calls=1, charged=1).runs),
        "I3: study counts 1 attempts after 2 forwards",
    ),
    "an attempt that all together lack": (
        put("rests", 0, sample=replace(sample(10, budget=2), whole=RunCounts(budget=None, attempts=1, calls=1))),
        "I3: the ledger counts 1 attempts after 2 forwards",
    ),
    "more calls than attempts": (
        put("samples", 0, runs=sample(12, budget=2, attempts=2, calls=3, charged=3).runs),
        "I3: study counts 3 calls, 2 attempts",
    ),
    "a call that was told and not counted": (put("asked", 0, teacher_calls=3), "clients know of 3 calls"),
    "an answer that was not charged": (
        put("samples", 0, runs=sample(12, budget=2, charged=1).runs),
        "I3: study is charged 1 answers and made 2 calls",
    ),
    "a call that the history lacks": (put("rests", 1, logged={}), "I3: study made 2 calls, the history lists 0"),
    "a charge for what nobody asked": (
        put("rests", 1, sample=sample(30, budget=5, charged=3)),
        "I3: study is charged 3 answers and asked for 2",
    ),
    "attempts out of nothing": (
        put("rests", 1, sample=sample(30, budget=5, attempts=4)),
        "I3: study counts 4 attempts; 2 forwards began, and 1 images",
    ),
    "a budget that was passed": (put("samples", 0, runs=sample(12, budget=1).runs), "I4: study made 2 attempts with"),
    "a forward that nobody had paid for": (put("budgets", 0, budget=1), "I4: study began 2 forwards while its budget"),
    "a key owner's budget that was passed": (
        put("samples", 0, runs={"@local": RunCounts(budget=1, attempts=2, calls=2, charged=2)}),
        "I4: @local made 2 attempts with a budget of 1",
    ),
    "a budget that a crash took back": (
        put("samples", 1, runs=sample(22, budget=2).runs),
        "I4: study has a budget of 2",
    ),
    "a refusal against its own numbers": (put("asked", 4, remaining=1), "402: JSON needed 1 of 1"),
    "a refusal beyond what was asked": (put("asked", 4, needed=2), "402: JSON needed 2 of 0 for 1 distinct"),
    "a refusal with money left": (put("budgets", 0, budget=4), "402: JSON needed 1, and at least [2, None, None]"),
    "two answers to one question": (
        put("asked", 2, told={"logits": (b"other",), "features": (TRUTH["a"],)}),
        "I5: logits of key a by JSON is not what JSON was told",
    ),
    "another image's answer": (
        put("asked", 0, told={"logits": (LOGITS["a"],), "features": (TRUTH["b"],)}),
        "I5: features of key a by JSON are another image's",
    ),
    "damage": (put("rests", 0, findings="logits differ"), "I6: logit-cache verify after life 1: logits differ"),
    "an internal error": (put("asked", 4, status=500), "status 500 of JSON"),
    "a question that finds nobody": (put("asked", 5, spends=True), "status 404 of JSON"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_history_is_found_out(name: str) -> None:
    forge, sentence = FORGERIES[name]
    history = sound()
    forge(history)
    assert [found for found in broken_promises(history) if sentence in found], broken_promises(history)

"""The lives of one cache: a server starts on it, many clients ask it, it dies where a seed says; again and again."""

import json
import os
import random
import signal
import time
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from asked_history import BudgetSet, Forward, History, Rest
from disk_faults import Fault, FaultyProcesses, Outcome
from plain_client import NoReplyError, PlainClient, in_threads
from seeded_load import (
    FIRST_BUDGETS,
    RUNS,
    Pictures,
    Question,
    ask,
    draw_question,
    look,
    runs_and_owners,
    sample_from,
    set_budget,
)

from cache.budgets import Budgets
from cache.catalog import read_catalog
from cache.history_report import describe_history
from cache.info import describe_cache
from cache.ledger_schema import connect_reader
from cache.reader import CacheReader
from teacher_server.opening import open_datasets

LIFE = Path(__file__).with_name("server_life.py").read_text()
VERIFY = "from cache.cli import main; main()"
PLACES = {
    "reserved": 25,
    "forward": 60,
    "answered": 15,
    "committing": 25,
    "committed": 15,
    "aliased": 15,
    "replying": 100,
    "folding": 6,
    "folded": 6,
    "budget": 4,
}
"""Named places of server_life.py, and the largest passage at which a life may end there."""
DISK = {"ledger.sqlite3": 150, "data.zarr": 80}
"""Files, and the largest write, sync or rename of them at which a life may end."""
CLIENTS = 10
QUESTIONS = 15
"""Of each client and life."""
WHOLE_BUDGET = 60
"""How much the budget of all runs grows with each life."""
OWNER_BUDGET = 12
"""The same of the key owner ``team``."""
API_KEYS = {"local": "a plain key typed by hand", "team": "the key of the team"}
"""Key owner -> key."""


@dataclass(frozen=True, kw_only=True)
class Death:
    """How a life ends; where it does not get so far, by SIGKILL once all clients are done."""

    how: str
    """A place, a file, ``outside`` or ``drain``."""
    at: int
    """Passage, or write to the file."""
    after_s: float = 0.0
    action: str = "kill"


def draw_death(chance: random.Random) -> Death:
    kind = chance.choice(("place", "place", "place", "disk", "disk", "outside", "drain"))
    if kind == "place":
        place = chance.choice(list(PLACES))
        return Death(how=place, at=chance.randint(1, PLACES[place]))
    if kind == "disk":
        file = chance.choice(list(DISK))
        return Death(how=file, at=chance.randint(1, DISK[file]), action=chance.choice(("kill", "torn")))
    return Death(how=kind, at=0, after_s=chance.uniform(0, 0.3))


class KilledServer:
    """One cache folder and everything that is known about it."""

    def __init__(self, folder: Path, *, pictures: Path, faulty: FaultyProcesses, seed: int) -> None:
        self.history = History()
        self.deaths: list[Death] = []
        self._folder = folder
        self._store = folder / "store"
        self._faulty = faulty
        self._seed = seed
        self._spec = f"folder:{pictures}"
        (dataset,) = open_datasets([self._spec], root=None, download=False, index_dir=None)
        self._pictures = Pictures(dataset, history=self.history)
        self._told: dict[tuple[object, ...], Question] = {}
        """Questions that were answered, each once."""

    def live(self, life: int, *, death: Death) -> None:
        """One life, and the look at what it left."""
        self.deaths.append(death)
        chance = random.Random(f"{self._seed}/{life}")
        outcomes: list[Outcome] = []
        began_s = time.monotonic()
        (self._faulty.folder / "out").unlink(missing_ok=True)
        server = Thread(target=lambda: outcomes.append(self._serve(life, death=death)))
        server.start()
        started = self._wait_for_start(server)
        self._note_first_budgets(life, began_s=began_s, listening=bool(started))
        if started:
            self._load(*started, life=life, death=death, chance=chance)
        server.join(timeout=60)
        if started and server.is_alive():
            # The process that started it must not wait for ever.
            os.kill(started[0], signal.SIGKILL)
            raise AssertionError(f"life {life} did not end")
        assert outcomes[0].code in ((0,) if death.how == "drain" and started else (0, -9)), outcomes[0].err
        self._read_side()
        self._rest(life)

    def live_to_the_end(self, life: int) -> None:
        """A life that nobody cuts short, which is asked again everything that was ever answered."""
        self.live(life, death=Death(how="drain", at=0, after_s=-1.0))

    # The server

    def _write_keys(self, life: int) -> Path:
        team = {"name": "team", "digest": sha256(API_KEYS["team"].encode()).hexdigest(), "scopes": ["infer"]}
        file = self._folder / "keys"
        file.touch(mode=0o600)
        file.write_text(f"{API_KEYS['local']}\n{json.dumps(team | {'budget': OWNER_BUDGET * life})}\n")
        return file

    def _serve(self, life: int, *, death: Death) -> Outcome:
        plan = {
            "side": str(self._folder / "side"),
            "place": death.how,
            "at": death.at,
            "seed": f"{self._seed}/{life}",
            "forward_s": 0.004,
            "fold_s": 0.03,
        }
        runs = [f"--run={name}={budget}" for name, budget in FIRST_BUDGETS.items()]
        options = ["--teacher=fake:10", f"--dataset={self._spec}", f"--cache={self._store}", "--port=0", "--batch=4"]
        limits = ["--log-level=error", f"--budget={WHOLE_BUDGET * life}", f"--api-key-file={self._write_keys(life)}"]
        at = death.at if death.how in DISK else 0
        fault = Fault(root=self._store, path=death.how if at else "", at=at, action=death.action)
        return self._faulty.run(LIFE, json.dumps(plan), "serve", *options, *limits, *runs, fault=fault)

    def _wait_for_start(self, server: Thread) -> tuple[int, str] | None:
        """Process id and address; None where it died before."""
        out = self._faulty.folder / "out"
        while server.is_alive():
            words = out.read_text().split() if out.exists() else []
            # Complete when the line is; the file of the life before has another address.
            if "listening" in words and words[-1].startswith("http://") and out.read_text().endswith("\n"):
                return int(words[1]), words[-1]
            time.sleep(0.002)
        return None

    def _note_first_budgets(self, life: int, *, began_s: float, listening: bool) -> None:
        status = 200 if listening else None
        known = {one.run for one in self.history.budgets if one.status == 200}
        budgets = {"": WHOLE_BUDGET * life, "@team": OWNER_BUDGET * life, **FIRST_BUDGETS}
        self.history.budgets.extend(
            BudgetSet(began_s=began_s, ended_s=time.monotonic(), run=run, budget=budget, status=status)
            for run, budget in budgets.items()
            if run in ("", "@team") or run not in known
        )

    # The clients

    def _load(self, pid: int, url: str, *, life: int, death: Death, chance: random.Random) -> None:
        if death.how in ("outside", "drain") and death.after_s >= 0:
            number = signal.SIGTERM if death.how == "drain" else signal.SIGKILL
            killer = Thread(target=_kill_after, args=(death.after_s, pid, number))
            killer.start()
        seeds = [chance.randrange(2**32) for _ in range(CLIENTS)]
        everything = death.after_s < 0
        in_threads(lambda one: self._client(url, *one, life, everything=everything), list(enumerate(seeds)))
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM if death.how == "drain" else signal.SIGKILL)

    def _client(self, url: str, number: int, seed: int, life: int, *, everything: bool) -> None:
        chance = random.Random(seed)
        owner = "team" if number >= CLIENTS // 2 else "local"
        with PlainClient(url, api_key=API_KEYS[owner]) as client, suppress(NoReplyError):
            if number == 0:
                self._treasurer(client, chance, life=life)
            elif number == 1:
                self._auditor(client, chance, life=life, everything=everything)
            for _ in range(QUESTIONS if number > 1 else 3):
                question = draw_question(chance, pictures=self._pictures, life=life)
                self._ask(client, chance, question=question, run=chance.choice(RUNS), life=life, owner=owner)

    def _ask(
        self,
        client: PlainClient,
        chance: random.Random,
        *,
        question: Question,
        run: str,
        life: int,
        owner: str = "local",
    ) -> None:
        one = replace(ask(client, chance, question=question, run=run, life=life), owner=owner)
        self.history.asked.append(one)
        if one.status == 200:
            self._told.setdefault((question.keys, question.places), question)
        if one.status is None:
            raise NoReplyError

    def _treasurer(self, client: PlainClient, chance: random.Random, *, life: int) -> None:
        """Raises budgets and reads the ledger."""
        for _ in range(4):
            self.history.samples.append(look(client))
            run = chance.choice(("study", "small"))
            most = max(one.budget for one in self.history.budgets if one.run == run)
            self.history.budgets.append(set_budget(client, run=run, budget=most + chance.randint(1, 8)))

    def _auditor(self, client: PlainClient, chance: random.Random, *, life: int, everything: bool) -> None:
        """Asks again what was answered, in the name of a run that cannot pay."""
        told = list(self._told.values())
        for question in told if everything else chance.sample(told, min(6, len(told))):
            self._ask(client, chance, question=question, run="nothing", life=life)

    # What is left

    def _read_side(self) -> None:
        """Forwards that began since the last life."""
        side = self._folder / "side"
        lines = side.read_text().splitlines()[len(self.history.forwards) :] if side.exists() else []
        life = len(self.deaths)
        for line in lines:
            at_s, run, owner, key = line.split()
            self.history.forwards.append(Forward(life=life, at_s=float(at_s), run=run, owner=owner, key=key))

    def _rest(self, life: int) -> None:
        if not (self._store / "ledger.sqlite3").exists() or not (self._store / "data.zarr").exists():
            return
        outcome = self._faulty.run(VERIFY, "verify", self._store, fault=Fault(root=self._store))
        began_s = time.monotonic()
        info = describe_cache(self._store)
        slots = [slot for entry in read_catalog(self._store) for slot in self._slots(entry.dataset.name)]
        listed, whole = describe_history(self._store), whole_budget(self._store)
        sample = sample_from(
            info, began_s=began_s, ended_s=time.monotonic(), runs=runs_and_owners(listed), budget=whole
        )
        logged: Counter[str] = Counter()
        for call in listed["calls"]:
            logged.update({call["run"]: call["answers"], f"@{call['owner']}": call["answers"]})
        findings = "" if outcome.code == 0 else outcome.out + outcome.err
        self.history.rests.append(Rest(life=life, sample=sample, slots=slots, logged=logged, findings=findings))

    def _slots(self, dataset: str) -> list[tuple[str, dict[str, bytes]]]:
        with CacheReader.open(self._store, dataset=dataset, journal=True) as reader:
            slots = np.arange(reader.num_slots)
            rows, views = reader.rows_and_views(slots)
            answers: dict[str, Any] = reader.gather(rows, view=views) if len(rows) else {}
            keys = [bytes(key).hex() for key in reader.slot_keys(slots)]
        return [
            (key, {name: array[index].astype("<f4").tobytes() for name, array in answers.items()})
            for index, key in enumerate(keys)
        ]


def whole_budget(store: Path) -> int | None:
    """What bounds all runs together, read from the ledger as it lies there."""
    database = connect_reader(store)
    assert database is not None
    with closing(database):
        return Budgets(database).total


def _kill_after(seconds: float, pid: int, number: int) -> None:
    time.sleep(seconds)
    with suppress(ProcessLookupError):
        os.kill(pid, number)

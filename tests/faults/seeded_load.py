"""Clients that ask a server what a seed draws, in all its protocols, and write down what they were told."""

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from asked_history import Asked, BudgetSet, History, RunCounts, Sample, Told
from numpy.typing import NDArray
from plain_client import NoReplyError, PlainClient, Reply
from safetensors.numpy import load, save

from shared.datasets.base import ImageDataset
from shared.fake_teacher import FakeTeacher
from shared.identity import pixel_key

DATASET = "pictures/train"
SAFETENSORS = "application/vnd.safetensors"
RUNS = ("default", "default", "study", "small")
"""Who pays, drawn at random; ``default`` is bounded by the whole budget alone."""
FIRST_BUDGETS = {"study": 12, "small": 3, "nothing": 0}
TEACHER = FakeTeacher(classes=10)

Images = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question, whatever the protocol."""

    keys: tuple[str, ...]
    images: tuple[Images, ...]
    places: tuple[tuple[int, int], ...]
    """(row, view) of each where the question is about rows; empty for uploads."""


class Pictures:
    """The images that are asked about, with their keys and what the teacher says about them."""

    def __init__(self, dataset: ImageDataset, *, history: History) -> None:
        self._dataset = dataset
        self._history = history
        self._keys: dict[bytes, str] = {}
        self.num_rows = dataset.num_rows

    def rows(self, rows: list[int], *, view: int) -> Question:
        images = [self._dataset.rendered(row, view) for row in rows]
        return self._question(images, places=tuple((row, view) for row in rows))

    def uploads(self, numbers: list[int]) -> Question:
        """Negative numbers: the image of a row."""
        return self._question([self._upload(number) for number in numbers], places=())

    def _upload(self, number: int) -> Images:
        if number < 0:
            return self._dataset.image(-number - 1)
        return np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)

    def _question(self, images: list[Images], *, places: tuple[tuple[int, int], ...]) -> Question:
        return Question(keys=tuple(self._key(image) for image in images), images=tuple(images), places=places)

    def _key(self, image: Images) -> str:
        key = pixel_key(image).hex()
        if key not in self._history.truth:
            self._history.truth[key] = _bytes(TEACHER.answer([image])["features"].astype(np.float16))[0]
        return key


def draw_question(chance: random.Random, *, pictures: Pictures, life: int) -> Question:
    """Rows or uploads, one to six, some twice, some that another client asks about, some new in this life."""
    count = chance.choice((1, 1, 2, 3, 6))
    if chance.random() < 0.3:
        numbers = [chance.randrange(life * 12, life * 12 + 24) for _ in range(count)]
        return pictures.uploads([chance.choice((number, number, -1 - number % 3)) for number in numbers])
    # View 41 has the pixels of view 0.
    view = chance.choice((0, 41, 1 + life % 40, 2 + life % 40))
    return pictures.rows([chance.randrange(pictures.num_rows) for _ in range(count)], view=view)


def ask(client: PlainClient, chance: random.Random, *, question: Question, run: str, life: int) -> Asked:
    """Ask in one of the protocols that can carry the question."""
    ways = (ask_json, ask_oip) if question.places else (ask_upload, ask_oip)
    way = chance.choice((*ways, ask_get)) if len(question.places) == 1 else chance.choice(ways)
    return way(client, chance, question=question, run=run, life=life)


def ask_json(client: PlainClient, chance: random.Random, *, question: Question, run: str, life: int) -> Asked:
    rows, views = zip(*question.places, strict=True)
    accept = chance.choice(("application/json", SAFETENSORS))
    fields = {"dataset": DATASET, "rows": rows, "view": views[0], "outputs": ["logits", "features"], "run": run}
    headers = {"content-type": "application/json", "accept": accept}
    body = json.dumps(fields).encode()
    return _asked(
        lambda: client.ask("POST", "/v1/logits", body=body, headers=headers),
        Asked(**_about(question, run, life), how=f"rows as {accept}"),
    )


def ask_get(client: PlainClient, chance: random.Random, *, question: Question, run: str, life: int) -> Asked:
    ((row, view),) = question.places
    path = f"/v1/logits/{DATASET}/{row}?view={view}&outputs=logits,features&run={run}"
    return _asked(
        lambda: client.ask("GET", path), replace(Asked(**_about(question, run, life), how="GET of a row"), spends=False)
    )


def ask_upload(client: PlainClient, chance: random.Random, *, question: Question, run: str, life: int) -> Asked:
    accept = chance.choice(("application/json", SAFETENSORS))
    headers = {"content-type": SAFETENSORS, "accept": accept}
    body = save({"images": np.stack(question.images)})
    return _asked(
        lambda: client.ask("POST", f"/v1/images?run={run}&outputs=features,logits", body=body, headers=headers),
        Asked(**_about(question, run, life), how=f"an upload as {accept}"),
    )


def ask_oip(client: PlainClient, chance: random.Random, *, question: Question, run: str, life: int) -> Asked:
    parameters: dict[str, Any] = {"run": run, "binary_data_output": chance.random() < 0.7}
    if question.places:
        rows, views = zip(*question.places, strict=True)
        name, kind, array = "row", "INT64", np.array(rows, dtype="<i8")
        parameters |= {"dataset": DATASET, "view": views[0]}
    else:
        name, kind, array = "image", "UINT8", np.stack(question.images)
    size = {"binary_data_size": array.nbytes}
    given = {"name": name, "datatype": kind, "shape": array.shape, "parameters": size}
    head = json.dumps({"parameters": parameters, "inputs": [given]}).encode()
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
    return _asked(
        lambda: client.ask("POST", f"/v2/models/{TEACHER.id}/infer", body=head + array.tobytes(), headers=headers),
        Asked(**_about(question, run, life), how=f"OIP {name}"),
    )


def _about(question: Question, run: str, life: int) -> dict[str, Any]:
    return {
        "life": life,
        "began_s": 0.0,
        "ended_s": 0.0,
        "keys": question.keys,
        "places": question.places,
        "run": run,
    }


def _asked(send: Callable[[], Reply], about: Asked) -> Asked:
    began_s = time.monotonic()
    try:
        reply = send()
    except NoReplyError:
        return replace(about, began_s=began_s, ended_s=time.monotonic())
    about = replace(about, began_s=began_s, ended_s=time.monotonic(), status=reply.status)
    if reply.status == 200:
        calls = int(reply.headers["x-teacher-calls"])
        told, cached = _read(reply)
        return replace(about, told=told, cached=cached, teacher_calls=calls)
    if reply.status == 402:
        return replace(about, needed=reply.json()["needed"], remaining=reply.json()["remaining"])
    return about


def _read(reply: Reply) -> tuple[Told, tuple[bool, ...] | None]:
    """Answers, and whether they were cached where the protocol says so."""
    if reply.headers["content-type"] == SAFETENSORS:
        length = int.from_bytes(reply.body[:8], "little")
        metadata = json.loads(reply.body[8 : 8 + length])["__metadata__"]
        tensors = load(reply.body)
        assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float16)}
        return {name: _bytes(tensor) for name, tensor in tensors.items()}, tuple(json.loads(metadata["cached"]))
    if (head_bytes := reply.headers.get("inference-header-content-length")) is not None:
        return _read_binary(reply.body, head_bytes=int(head_bytes)), None
    fields = reply.json()
    if "outputs" in fields:
        tensors = {
            each["name"]: np.array(each["data"], np.float32).reshape(each["shape"]) for each in fields["outputs"]
        }
        return {name: _bytes(tensor) for name, tensor in tensors.items()}, None
    told = {name: _bytes(np.array(fields[name], np.float32)) for name in ("logits", "features")}
    return told, tuple(fields["cached"])


def _read_binary(body: bytes, *, head_bytes: int) -> Told:
    told, at = {}, head_bytes
    for output in json.loads(body[:head_bytes])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        told[output["name"]] = _bytes(np.frombuffer(body[at : at + size], "<f4").reshape(output["shape"]))
        at += size
    return told


def _bytes(answers: NDArray[Any]) -> tuple[bytes, ...]:
    """What is kept in float16 is told exactly in float32."""
    return tuple(answer.astype("<f4").tobytes() for answer in answers)


def look(client: PlainClient) -> Sample:
    """``GET /v1/ledger``."""
    began_s = time.monotonic()
    counts = client.ask("GET", "/v1/ledger").json()
    return sample_from(
        counts, began_s=began_s, ended_s=time.monotonic(), runs=runs_and_owners(counts), budget=counts["budget"]
    )


def runs_and_owners(counts: dict[str, Any]) -> dict[str, Any]:
    """As `Sample` names them."""
    return counts["runs"] | {f"@{name}": owner for name, owner in counts["owners"].items()}


def sample_from(
    counts: dict[str, Any], *, began_s: float, ended_s: float, runs: dict[str, Any], budget: int | None
) -> Sample:
    """From a server's answer, or from ``logit-cache info``."""
    whole = RunCounts(budget=budget, attempts=counts["attempts"], calls=counts["teacher_calls"])
    return Sample(
        began_s=began_s,
        ended_s=ended_s,
        whole=whole,
        runs={
            name: RunCounts(
                budget=run["budget"], attempts=run["attempts"], calls=run["teacher_calls"], charged=run["charged"]
            )
            for name, run in runs.items()
        },
    )


def set_budget(client: PlainClient, *, run: str, budget: int) -> BudgetSet:
    """``PUT /v1/runs/NAME``."""
    began_s, status = time.monotonic(), None
    try:
        headers = {"content-type": "application/json"}
        body = json.dumps({"budget": budget}).encode()
        status = client.ask("PUT", f"/v1/runs/{run}", body=body, headers=headers).status
    except NoReplyError:
        pass
    return BudgetSet(began_s=began_s, ended_s=time.monotonic(), run=run, budget=budget, status=status)

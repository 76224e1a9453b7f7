"""The Open Inference Protocol, by the client that others wrote for it, and by hand where that client would not go."""

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from shared.fake_teacher import FakeTeacher

TEACHER = FakeTeacher(classes=10)
MODEL = f"/v2/models/{TEACHER.id}"
ROW = {"name": "row", "datatype": "INT64", "shape": [2], "data": [0, 7]}
PICTURES = {"dataset": "pictures/train"}


@pytest.fixture(scope="module")
def server(launch_server: Callable, make_images: Callable, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One server of 40 pictures, answers kept in float32, bodies of at most 1 MiB."""
    folder = tmp_path_factory.mktemp("oip")
    pictures = make_images(folder / "pictures", count=40)
    options = ("--dataset", f"folder:{pictures}", "--dtype", "float32", "--max-body-mb", "1")
    return launch_server(folder / "store", *options)


@pytest.fixture
def refusing(server: Any) -> Iterator[Any]:
    """The server, which must make no call during the test."""
    before = server.ledger()["attempts"]
    yield server
    assert server.ledger()["attempts"] == before


@pytest.fixture(scope="module")
def triton() -> Any:
    """Triton's own client, as it is published."""
    return pytest.importorskip(
        "tritonclient.http", reason="tritonclient[http] is not installed; it is in the dev extra"
    )


@pytest.fixture
def client(triton: Any, server: Any) -> Iterator[Any]:
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as opened:
        yield opened


def images(count: int, *, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def tensor(triton: Any, name: str, array: np.ndarray, *, binary: bool = True) -> Any:
    given = triton.InferInput(name, list(array.shape), {"uint8": "UINT8", "int64": "INT64"}[str(array.dtype)])
    return given.set_data_from_numpy(array, binary_data=binary)


def calls(result: Any) -> int:
    count: int = result.get_response()["parameters"]["teacher_calls"]
    return count


def assert_says(result: Any, pixels: np.ndarray) -> None:
    """The result is what the teacher says about these images."""
    for name, expected in TEACHER.answer(list(pixels)).items():
        got = result.as_numpy(name)
        assert got.dtype == np.float32
        assert got.tobytes() == expected.tobytes()


def pixels_of(server: Any, rows: list[int]) -> dict[str, np.ndarray]:
    answer = server.ask(rows, outputs=["logits", "features"]).json()
    return {name: np.array(answer[name], dtype=np.float32) for name in ("logits", "features")}


def test_triton_client_finds_the_teacher_and_what_it_takes(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(TEACHER.id)
    assert client.is_model_ready(TEACHER.id, "1")
    assert not client.is_model_ready(TEACHER.id, "2")
    assert not client.is_model_ready("resnet50")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    about = client.get_model_metadata(TEACHER.id)
    assert about == client.get_model_metadata(TEACHER.id, "1")
    assert (about["name"], about["versions"]) == (TEACHER.id, ["1"])
    assert about["inputs"] == [
        {"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
        {"name": "row", "datatype": "INT64", "shape": [-1]},
    ]
    assert about["outputs"] == [
        {"name": "logits", "datatype": "FP32", "shape": [-1, 10]},
        {"name": "features", "datatype": "FP32", "shape": [-1, 16]},
    ]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
def test_triton_client_asks_about_images_and_pays_once_for_each(
    triton: Any, client: Any, coding: str | None, binary: bool
) -> None:
    pixels = images(3, seed=10 * bool(binary) + len(coding or ""))
    twice = pixels[[0, 1, 2, 1]]
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("features", "logits")]
    how = {"request_compression_algorithm": coding, "response_compression_algorithm": coding, "outputs": wanted}
    first = client.infer(TEACHER.id, [tensor(triton, "image", twice, binary=binary)], **how)
    again = client.infer(TEACHER.id, [tensor(triton, "image", twice, binary=binary)], model_version="1", **how)
    assert_says(first, twice)
    assert_says(again, twice)
    assert (calls(first), calls(again)) == (3, 0)
    assert [output["name"] for output in first.get_response()["outputs"]] == ["features", "logits"]


def test_triton_client_asks_about_rows_of_a_data_set(triton: Any, server: Any, client: Any) -> None:
    rows = np.array([5, 3, 5], dtype=np.int64)
    inputs = [tensor(triton, "row", rows)]
    answer = client.infer(TEACHER.id, inputs, request_id="my id", parameters=PICTURES, timeout=20_000_000)
    native = pixels_of(server, rows.tolist())
    for name, expected in native.items():
        assert answer.as_numpy(name).tobytes() == expected.tobytes()
    assert answer.get_response()["id"] == "my id"
    assert calls(answer) == 2
    other = client.infer(TEACHER.id, inputs, parameters=PICTURES | {"view": 3})
    assert calls(other) == 2
    assert other.as_numpy("logits").tobytes() != native["logits"].tobytes()


@pytest.mark.parametrize("binary", [True, False])
def test_triton_client_gets_an_empty_answer_to_an_empty_question(triton: Any, client: Any, binary: bool) -> None:
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("logits", "features")]
    for name, none in (("row", np.empty(0, np.int64)), ("image", images(0, seed=0))):
        parameters = PICTURES if name == "row" else None
        answer = client.infer(
            TEACHER.id, [tensor(triton, name, none, binary=binary)], outputs=wanted, parameters=parameters
        )
        assert answer.as_numpy("logits").shape == (0, 10)
        assert answer.as_numpy("features").shape == (0, 16)
        assert calls(answer) == 0


def test_triton_client_reads_every_error(triton: Any, server: Any, client: Any) -> None:
    httpx.put(f"{server.url}/v1/runs/poor", json={"budget": 1})

    def refused(status: int, *words: str, model: str = TEACHER.id, array: Any = None, **parameters: object) -> None:
        rows = np.array([0], np.int64) if array is None else array
        name = "row" if rows.dtype == np.int64 else "image"
        with pytest.raises(triton.InferenceServerException) as raised:
            client.infer(model, [tensor(triton, name, rows)], parameters=parameters)
        assert raised.value.status() == str(status)
        assert "decoding" not in raised.value.message()
        for word in words:
            assert word in raised.value.message()

    refused(404, TEACHER.id, model="resnet50", **PICTURES)
    refused(404, "pictures/train", dataset="x/y")
    refused(400, "dataset", "pictures/train")
    refused(400, "tenant", tenant="a", **PICTURES)
    refused(404, "/v1/runs", run="nobody", **PICTURES)
    refused(400, "40", "0 to 39", array=np.array([40]), **PICTURES)
    refused(402, "budget", run="poor", array=images(2, seed=50))
    refused(413, "4096", array=np.zeros(4097, np.int64), **PICTURES)
    refused(413, "bytes", array=np.zeros((1, 1024, 1024, 3), np.uint8))
    with pytest.raises(triton.InferenceServerException, match=r"maps\.9"):
        wanted = [triton.InferRequestedOutput("maps.9")]
        client.infer(TEACHER.id, [tensor(triton, "row", np.array([0]))], outputs=wanted, parameters=PICTURES)
    with pytest.raises(triton.InferenceServerException, match="lists the routes"):
        client.load_model(TEACHER.id)


def test_triton_client_asks_while_it_waits(triton: Any, client: Any) -> None:
    pixels = images(6, seed=60)
    waiting = [client.async_infer(TEACHER.id, [tensor(triton, "image", pixels[i : i + 2])]) for i in range(0, 6, 2)]
    for start, answer in zip(range(0, 6, 2), waiting, strict=True):
        assert_says(answer.get_result(), pixels[start : start + 2])


def test_triton_client_with_asyncio(triton: Any, server: Any) -> None:
    aio = pytest.importorskip("tritonclient.http.aio")
    pixels = images(4, seed=70)

    async def story() -> list[Any]:
        async with aio.InferenceServerClient(server.url.removeprefix("http://")) as client:
            assert await client.is_model_ready(TEACHER.id)
            assert (await client.get_model_metadata(TEACHER.id))["name"] == TEACHER.id
            with pytest.raises(triton.InferenceServerException, match=TEACHER.id):
                await client.infer("resnet50", [tensor(triton, "image", pixels)])
            same = [client.infer(TEACHER.id, [tensor(triton, "image", pixels)]) for _ in range(8)]
            for coding in ("gzip", "deflate"):
                how = {"request_compression_algorithm": coding, "response_compression_algorithm": coding}
                same.append(client.infer(TEACHER.id, [tensor(triton, "image", pixels)], **how))
            return list(await asyncio.gather(*same))

    answers = asyncio.run(story())
    for answer in answers:
        assert_says(answer, pixels)
    assert sum(calls(answer) for answer in answers) == 4


def test_plain_json_is_enough(server: Any) -> None:
    body = {"id": "a\n", "inputs": [ROW], "outputs": [{"name": "logits"}], "parameters": PICTURES}
    answer = httpx.post(f"{server.url}{MODEL}/infer", json=body)
    assert answer.headers["content-type"] == "application/json"
    assert "content-encoding" not in answer.headers  # httpx takes gzip, and does not insist on it
    logits = pixels_of(server, [0, 7])["logits"]
    told = answer.json()
    assert answer.headers["x-teacher-calls"] == str(told.pop("parameters")["teacher_calls"])
    assert told == {
        "model_name": TEACHER.id,
        "model_version": "1",
        "id": "a\n",
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [2, 10], "data": [json.loads(str(x)) for x in logits.flat]}
        ],
    }
    nested = {"name": "image", "datatype": "UINT8", "shape": [1, 2, 1, 3], "data": [[[[1, 2, 3]], [[4, 5, 6]]]]}
    flat = nested | {"data": [1, 2, 3, 4, 5, 6]}
    said = [httpx.post(f"{server.url}{MODEL}/infer", json={"inputs": [given]}).json() for given in (nested, flat)]
    assert said[0]["outputs"] == said[1]["outputs"]
    assert (said[0]["parameters"], said[1]["parameters"]) == ({"teacher_calls": 1}, {"teacher_calls": 0})
    assert httpx.get(f"{server.url}/v2/").json() == httpx.get(f"{server.url}/v2").json()


def test_each_output_may_come_as_json_or_as_bytes(server: Any) -> None:
    outputs = [{"name": "features", "parameters": {"binary_data": False}}, {"name": "logits"}]
    body = {"inputs": [ROW], "outputs": outputs, "parameters": PICTURES | {"binary_data_output": True}}
    answer = httpx.post(f"{server.url}{MODEL}/infer", json=body)
    length = int(answer.headers["inference-header-content-length"])
    told = json.loads(answer.content[:length])["outputs"]
    assert (len(told[0]["data"]), told[1]["parameters"]) == (32, {"binary_data_size": 80})
    assert answer.content[length:] == pixels_of(server, [0, 7])["logits"].tobytes()


IMAGE = {"name": "image", "datatype": "UINT8", "shape": [1, 2, 2, 3]}


def binary(
    given: dict[str, Any], data: bytes, *, size: object = None, **fields: object
) -> tuple[bytes, dict[str, str]]:
    """A body whose one input follows the JSON, and its header."""
    size = len(data) if size is None else size
    head = json.dumps({"inputs": [given | {"parameters": {"binary_data_size": size}}], **fields}).encode()
    return head + data, {"inference-header-content-length": str(len(head))}


def plain(*inputs: object, **fields: object) -> tuple[bytes, dict[str, str]]:
    return json.dumps({"inputs": inputs, "parameters": PICTURES, **fields}).encode(), {}


def with_length(value: str) -> tuple[bytes, dict[str, str]]:
    return binary(IMAGE, bytes(12))[0], {"inference-header-content-length": value}


def compressed(body: bytes, *, coding: str = "gzip") -> tuple[bytes, dict[str, str]]:
    return body, {"content-encoding": coding}


def data(*values: object, **changes: object) -> tuple[bytes, dict[str, str]]:
    return plain(ROW | {"data": list(values)} | changes)


GOOD = plain(ROW)[0]
BAD: dict[str, tuple[tuple[bytes, dict[str, str]], int, str]] = {
    "nothing": ((b"", {}), 400, "inputs"),
    "no inputs": (plain(), 400, "inputs"),
    "null for inputs": ((b'{"inputs": null}', {}), 400, "inputs"),
    "an object for inputs": ((b'{"inputs": {}}', {}), 400, "inputs"),
    "many inputs": (plain(*[ROW] * 65), 400, "inputs"),
    "inputs twice": ((GOOD[:-1] + b', "inputs": []}', {}), 400, "inputs"),
    "an input's name twice": ((GOOD.replace(b'"name"', b'"name": "image", "name"'), {}), 400, "'name'"),
    "many outputs": (plain(ROW, outputs=[{"name": "logits"}] * 65), 400, "outputs"),
    "two inputs": (plain(ROW, IMAGE | {"data": [0] * 12}), 400, "exactly one"),
    "one input twice": (plain(ROW, ROW), 400, "exactly one"),
    "an unknown input": (plain(ROW | {"name": "x"}), 400, "'row' INT64"),
    "another datatype": (plain(ROW | {"datatype": "INT32"}), 400, "send INT64"),
    "strings of bytes": (binary(ROW | {"datatype": "BYTES", "data": None}, b"\xff" * 4), 400, "send INT64"),
    "a datatype in small letters": (plain(ROW | {"datatype": "int64"}), 400, "send INT64"),
    "no datatype": (plain(ROW | {"datatype": None}), 400, "datatype"),
    "no data": (plain(IMAGE), 400, "binary_data_size"),
    "data in both places": (binary(ROW, bytes(16), parameters=PICTURES), 400, "one of"),
    "bytes that nobody asked about": (
        (GOOD + b"more", {"inference-header-content-length": str(len(GOOD))}),
        400,
        "4 bytes follow",
    ),
    "bytes without the header": ((binary(IMAGE, bytes(12))[0], {}), 400, "JSON"),
    "one byte short": (binary(IMAGE, bytes(11)), 400, "takes 12 bytes"),
    "one byte long": (binary(IMAGE, bytes(13)), 400, "takes 12 bytes"),
    "fewer bytes than said": (binary(IMAGE, bytes(11), size=12), 400, "11 bytes follow"),
    "more bytes than said": (binary(IMAGE, bytes(13), size=12), 400, "13 bytes follow"),
    "a size that is no number": (binary(IMAGE, bytes(12), size="12"), 400, "binary_data_size"),
    "a size of 1.5": (binary(IMAGE, bytes(12), size=1.5), 400, "binary_data_size"),
    "a size below zero": (binary(IMAGE, bytes(12), size=-1), 400, "binary_data_size"),
    "a size that is true": (binary(IMAGE, bytes(12), size=True), 400, "binary_data_size"),
    "a huge size": (binary(IMAGE, bytes(12), size=2**63), 400, "binary_data_size"),
    "a huge shape": (binary(IMAGE | {"shape": [2**62, 2**62, 2, 3]}, bytes(12)), 400, "no UINT8 tensor"),
    "a huge shape of nothing": (binary(IMAGE | {"shape": [2**62, 0, 2, 3]}, b""), 400, "no UINT8 tensor"),
    "many images of nothing": (binary(IMAGE | {"shape": [2**40, 0, 2, 3]}, b""), 413, "4096"),
    "a number": (binary(IMAGE | {"shape": []}, bytes(1)), 400, "[B, H, W, 3]"),
    "a shape of floats": (binary(IMAGE | {"shape": [1.0, 2, 2, 3]}, bytes(12)), 400, "shape"),
    "a shape below zero": (binary(IMAGE | {"shape": [-1, 2, 2, 3]}, bytes(12)), 400, "shape"),
    "a shape of many dimensions": (binary(IMAGE | {"shape": [1] * 10_000}, bytes(1)), 400, "shape"),
    "a shape without a batch": (binary(IMAGE | {"shape": [2, 2, 3]}, bytes(12)), 400, "[B, H, W, 3]"),
    "channels first": (binary(IMAGE | {"shape": [1, 3, 2, 2]}, bytes(12)), 400, "[B, H, W, 3]"),
    "no pixels": (binary(IMAGE | {"shape": [1, 0, 2, 3]}, b""), 400, "[B, H, W, 3]"),
    "a matrix of rows": (plain(ROW | {"shape": [1, 2]}), 400, "[B]"),
    "a view of an image": (binary(IMAGE, bytes(12), parameters={"view": 1}), 400, "leave them out"),
    "a value too many": (data(1, 2, 3), 400, "'data' is [3]"),
    "ragged lists": (data([1], [2, 3]), 400, "[1] in 'data'"),
    "a float": (data(0, 1.0), 400, "1.0"),
    "true": (data(0, True), 400, "True"),
    "NaN": (data(0, float("nan")), 400, "nan"),
    "2^63": (data(0, 2**63), 400, "no INT64"),
    "256 in an image": (plain(IMAGE | {"data": [0] * 11 + [256]}, parameters={}), 400, "no UINT8"),
    "5000 digits": ((data(0, 0)[0].replace(b"[0, 0]", b"[0, " + b"9" * 5000 + b"]"), {}), 400, "JSON"),
    "a row below": (data(0, -1), 400, "0 to 39"),
    "deep lists": ((b'{"inputs": ' + b"[" * 100_000, {}), 400, "JSON"),
    "an output twice": (plain(ROW, outputs=[{"name": "logits"}] * 2), 400, "2 times"),
    "an unknown output": (plain(ROW, outputs=[{"name": "maps.1"}]), 400, "logits"),
    "an option that would be ignored": (plain(ROW, parameters=PICTURES | {"priority": 1}), 400, "priority"),
    "classification": (
        plain(ROW, outputs=[{"name": "logits", "parameters": {"classification": 3}}]),
        400,
        "classification",
    ),
    "shared memory": (plain(IMAGE | {"parameters": {"shared_memory_region": "x"}}), 400, "shared_memory_region"),
    "a long id": (plain(ROW, id="x" * 2000), 400, "id"),
    "much JSON": ((b" " * (2**20 - 10) + GOOD, {}), 413, "bytes"),
    "a raw request": (with_length("0"), 400, "names no input"),
    **{
        f"a length {value!r}": (with_length(value), 400, "length")
        for value in ("-1", "abc", "1e3", "", "9999", "9" * 20)
    },
    "a length within the JSON": (with_length("5"), 400, "JSON"),
    "a truncated gzip": (compressed(gzip.compress(GOOD)[:-9]), 400, "too early"),
    "garbage for gzip": (compressed(GOOD), 400, "gzip"),
    "garbage behind a gzip": (compressed(gzip.compress(GOOD) + b"more"), 400, "4 bytes after"),
    "gzip for deflate": (compressed(gzip.compress(GOOD), coding="deflate"), 400, "deflate"),
    "a gzip of a gzip": (compressed(gzip.compress(gzip.compress(GOOD)), coding="gzip, gzip"), 415, "gzip, gzip"),
    "brotli": (compressed(b"", coding="br"), 415, "br"),
    "a gzip bomb": (compressed(gzip.compress(bytes(2**24))), 413, "inflates to over 1048576"),
    "a deflate bomb": (compressed(zlib.compress(bytes(2**20 + 1)), coding="deflate"), 413, "inflates"),
    "a page's form": ((GOOD, {"content-type": "text/plain"}), 415, "text/plain"),
    "a page's bytes": ((GOOD, {"origin": "null"}), 415, "octet-stream"),
}


def test_a_bad_request_is_refused_and_costs_no_call(refusing: Any) -> None:
    with httpx.Client(base_url=refusing.url) as client:
        for name, ((body, headers), status, word) in BAD.items():
            answer = client.post(f"{MODEL}/infer", content=body, headers=headers)
            assert answer.status_code == status, (name, answer.text)
            told = answer.json()
            assert word in told["error"], (name, told)
            assert set(told) == {"error", "code", "request_id"}, name
        several = [("inference-header-content-length", "5")] * 2
        assert client.post(f"{MODEL}/infer", content=GOOD, headers=several).status_code == 400
        assert client.post(f"{MODEL}/infer?run=a", content=GOOD).status_code == 400
        assert client.post(f"{MODEL}/versions/2/infer", content=GOOD).status_code == 404
        assert client.get(f"{MODEL}/infer").status_code == 405
        assert client.get(f"{MODEL}/stats").json()["code"] == "not_found"

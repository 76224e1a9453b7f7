"""A real server and everything it must refuse: always the one JSON error, never a call, never a dead server.

The 30 kinds of bad input that servers are known to fail at, and where each is tested (here where nothing is said):

1 keys: test_server_operation · 2, 3 hosts, other sites · 4 lengths; a length that lies: test_server_sockets
5 tiny chunks: test_server_sockets · 6 compressed bodies, 7 header lengths, 8 binary sizes, 9 shapes, 10 datatypes,
11 floats, 12 strings of bytes, 13 lists of inputs and outputs: test_oip · 14 JSON, 15 rows, 16 names · 17 images: here
and unit/test_pixels · 18 addresses for images · 19 slow, 20 ambiguous: test_server_sockets · 21 verbs: here and, on
every route, test_server_contract · 22 what needs a key: test_server_operation; loading: test_oip · 23 request ids
24, 25 one call for many, budgets: test_server_concurrency · 26 kills, 27 disks: test_cache_kill, test_cache_faults,
test_server_answers · 28 another teacher: contract/test_cache_store · 29 pickles · 30 signals, ports, locks:
test_server_operation, test_server_answers
"""

import io
import json
import pickle
import re
import socket
import zlib
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

JSON = "application/json"
SAFETENSORS = "application/vnd.safetensors"
GOOD = {"dataset": "pictures/train", "rows": [0]}
GOOD_BODY = json.dumps(GOOD).encode()


@pytest.fixture(scope="module")
def server(launch_server: Callable, make_images: Callable, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One server for all bad requests; at the end it has made no call."""
    folder = tmp_path_factory.mktemp("bad")
    pictures = make_images(folder / "pictures", count=10)
    process = launch_server(folder / "store", "--dataset", f"folder:{pictures}", "--max-body-mb", "1")
    yield process
    assert process.ledger()["attempts"] == 0
    assert httpx.get(f"{process.url}/readyz").json() == {"ready": True}


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def assert_error(response: httpx.Response, status: int, code: str, *words: str) -> None:
    assert response.status_code == status, response.text
    body = response.json()
    assert body["code"] == code, body
    assert body["request_id"] == response.headers["x-request-id"]
    assert "\n" not in body["error"]
    for word in words:
        assert word in body["error"]


BODIES = {
    "not json": (b"{", 400, "bad_request", ()),
    "nothing": (b"", 400, "bad_request", ()),
    "garbage behind": (json.dumps(GOOD).encode() + b"x", 400, "bad_request", ()),
    "deep": (b"[" * 100_000, 400, "bad_request", ()),
    "a byte order mark": (b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), 400, "bad_request", ()),
    "bad utf-8": (b'{"dataset": "\xff"}', 400, "bad_request", ()),
    "lone surrogate": (b'{"dataset": "\\ud800", "rows": [0]}', 400, "bad_request", ()),
    "a list": (b"[]", 400, "bad_request", ()),
    "an unknown field": (json.dumps({**GOOD, "teacher": "x"}).encode(), 400, "bad_request", ("teacher",)),
    "no rows": (b'{"dataset": "pictures/train"}', 400, "bad_request", ("rows",)),
    "a bool": (json.dumps({**GOOD, "rows": [True]}).encode(), 400, "bad_request", ("rows.0",)),
    "a float": (json.dumps({**GOOD, "rows": [1.0]}).encode(), 400, "bad_request", ("rows.0",)),
    "a string": (json.dumps({**GOOD, "rows": ["1"]}).encode(), 400, "bad_request", ("rows.0",)),
    "NaN": (b'{"dataset": "pictures/train", "rows": [NaN]}', 400, "bad_request", ()),
    "1e400": (b'{"dataset": "pictures/train", "rows": [1e400]}', 400, "bad_request", ()),
    "2^70": (json.dumps({**GOOD, "rows": [2**70]}).encode(), 400, "bad_request", ("rows.0",)),
    "5000 digits": (b'{"dataset": "pictures/train", "rows": [' + b"9" * 5000 + b"]}", 400, "bad_request", ()),
    "a row below": (json.dumps({**GOOD, "rows": [0, -1]}).encode(), 400, "row_out_of_range", ("-1", "0 to 9")),
    "a row above": (json.dumps({**GOOD, "rows": [10]}).encode(), 400, "row_out_of_range", ("10", "0 to 9")),
    "a row far above": (json.dumps({**GOOD, "rows": [2**62]}).encode(), 400, "row_out_of_range", ("0 to 9",)),
    "a view above": (json.dumps({**GOOD, "view": 163}).encode(), 400, "row_out_of_range", ("163", "0 to 162")),
    "a huge view": (json.dumps({**GOOD, "view": 2**70}).encode(), 400, "bad_request", ("view",)),
    "a field twice": (
        b'{"dataset": "pictures/train", "rows": [0], "rows": [1]}',
        400,
        "bad_request",
        ("'rows'", "2 times"),
    ),
    "a field twice, written in two ways": (GOOD_BODY[:-1] + b', "r\\u006fws": [1]}', 400, "bad_request", ("'rows'",)),
    "an unknown data set": (json.dumps({**GOOD, "dataset": "x/y"}).encode(), 404, "unknown_name", ("pictures/train",)),
    "a path": (json.dumps({**GOOD, "dataset": "../../etc"}).encode(), 404, "unknown_name", ()),
    "an unknown output": (json.dumps({**GOOD, "outputs": ["maps.1"]}).encode(), 400, "output_not_cached", ("logits",)),
    "no outputs": (json.dumps({**GOOD, "outputs": []}).encode(), 400, "bad_request", ("outputs",)),
    "an unknown run": (json.dumps({**GOOD, "run": "nobody"}).encode(), 404, "unknown_name", ("/v1/runs",)),
    "JSON of many bytes": (b" " * 300_000 + json.dumps(GOOD).encode(), 413, "too_large", ("JSON", "262144")),
    "too many rows": (json.dumps({**GOOD, "rows": [0] * 4097}).encode(), 413, "too_large", ("4096",)),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_bad_json_body_is_refused(server: Any, name: str) -> None:
    body, status, code, words = BODIES[name]
    response = httpx.post(f"{server.url}/v1/logits", content=body, headers={"content-type": JSON})
    assert_error(response, status, code, *words)


def truncated() -> bytes:
    return png(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))[:-200]


def huge() -> bytes:
    whole = bytearray(png(np.zeros((4, 4, 3), dtype=np.uint8)))
    whole[16:24] = (9000).to_bytes(4, "big") * 2
    whole[29:33] = zlib.crc32(whole[12:29]).to_bytes(4, "big")
    return bytes(whole)


def sixteen_bit() -> bytes:
    return png(np.zeros((4, 4), dtype=np.uint16))


IMAGES = {
    "nothing": (b"", 400, "bad_image"),
    "text": (b"http://169.254.169.254/latest", 400, "bad_image"),
    "an address of the data": (b"data:image/png;base64,AAAA", 400, "bad_image"),
    "a file's address": (b"file:///etc/passwd", 400, "bad_image"),
    "an SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 400, "bad_image"),
    "an EPS": (b"%!PS-Adobe-3.0 EPSF-3.0", 400, "bad_image"),
    "a PDF": (b"%PDF-1.7", 400, "bad_image"),
    "a TIFF": (b"II*\x00" + bytes(64), 400, "bad_image"),
    "a pickle": (pickle.dumps([1]), 400, "bad_image"),
    "a truncated PNG": (truncated(), 400, "bad_image"),
    "a GIF": (b"GIF89a" + bytes(64), 400, "bad_image"),
    "a picture of 81 megapixels": (huge(), 413, "too_large"),
    "16 bits": (sixteen_bit(), 400, "bad_image"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_a_bad_image_is_refused(server: Any, name: str) -> None:
    body, status, code = IMAGES[name]
    response = httpx.post(f"{server.url}/v1/images", content=body, headers={"content-type": "image/png"})
    assert_error(response, status, code)
    assert "0x" not in response.text


def array_file() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


TENSORS = {
    "nothing": b"",
    "garbage": b"x" * 100,
    "a pickle": pickle.dumps({"images": np.zeros((1, 4, 4, 3), dtype=np.uint8)}),
    "an array file of objects": array_file(),
    "a zip": b"PK\x03\x04" + bytes(100),
    "a header longer than the body": (2**40).to_bytes(8, "little") + b"{}",
    "another name": save({"pixels": np.zeros((1, 4, 4, 3), dtype=np.uint8)}),
    "two tensors": save({"images": np.zeros((1, 4, 4, 3), np.uint8), "more": np.zeros(1, np.uint8)}),
    "floats": save({"images": np.zeros((1, 4, 4, 3), dtype=np.float32)}),
    "one image without a batch": save({"images": np.zeros((4, 4, 3), dtype=np.uint8)}),
    "channels first": save({"images": np.zeros((1, 3, 4, 4), dtype=np.uint8)}),
    "no height": save({"images": np.zeros((1, 0, 4, 3), dtype=np.uint8)}),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_bad_tensor_body_is_refused(server: Any, name: str) -> None:
    response = httpx.post(f"{server.url}/v1/images", content=TENSORS[name], headers={"content-type": SAFETENSORS})
    assert_error(response, 400, "bad_request")


PREFLIGHT = {"origin": "http://evil.example", "access-control-request-method": "POST"}
OVERRIDE = {"x-http-method-override": "POST"}
REQUESTS = {
    "no such route": ("GET", "/v1/nothing", {}, b"", 404, "not_found"),
    "no such route with a slash": ("GET", "/v1/ledger/", {}, b"", 404, "not_found"),
    "another verb": ("DELETE", "/v1/logits", {}, b"", 405, "method_not_allowed"),
    "a page of another site asks first": ("OPTIONS", "/v1/logits", PREFLIGHT, b"", 405, "method_not_allowed"),
    "another verb in a header": (
        "GET",
        "/v1/logits",
        {"x-http-method-override": "POST"},
        b"",
        405,
        "method_not_allowed",
    ),
    "a teacher to load": ("POST", "/v2/repository/models/x/load", {}, b"", 404, "not_found"),
    "shared memory": ("GET", "/v2/systemsharedmemory/status", {}, b"", 404, "not_found"),
    "a model that is NUL": ("GET", "/v2/models/%00", {}, b"", 404, "unknown_name"),
    "a model of 300 characters": ("GET", "/v2/models/" + "a" * 300, {}, b"", 404, "unknown_name"),
    "a model that is a path": ("GET", "/v2/models/..%2f..%2fetc", {}, b"", 404, "not_found"),
    "a run that looks like another": ("GET", "/v1/runs/d%D0%B5fault", {}, b"", 404, "unknown_name"),
    "form data": ("POST", "/v1/logits", {"content-type": "text/plain"}, b"{}", 415, "unsupported_type"),
    "no content type": ("POST", "/v1/images", {}, b"x", 400, "bad_image"),
    "no content type for JSON": ("POST", "/v1/logits", {}, GOOD_BODY, 415, "unsupported_type"),
    "an empty content type": ("POST", "/v1/images", {"content-type": ""}, b"x", 415, "unsupported_type"),
    "no content type from a page": ("POST", "/v1/images", {"origin": "null"}, b"x", 415, "unsupported_type"),
    "gzip": ("POST", "/v1/logits", {"content-type": JSON, "content-encoding": "gzip"}, b"", 415, "unsupported_type"),
    "multipart": (
        "POST",
        "/v1/images",
        {"content-type": "multipart/form-data; boundary=x"},
        b"",
        415,
        "unsupported_type",
    ),
    "too long": ("POST", "/v1/images", {"content-type": "image/png"}, bytes(2**20 + 1), 413, "too_large"),
    "a row that is no number": ("GET", "/v1/logits/pictures/train/x", {}, b"", 400, "row_out_of_range"),
    "a row below": ("GET", "/v1/logits/pictures/train/-1", {}, b"", 400, "row_out_of_range"),
    "a row above": ("GET", "/v1/logits/pictures/train/10", {}, b"", 400, "row_out_of_range"),
    "an unknown data set": ("GET", "/v1/logits/pictures/%2e%2e/0", {}, b"", 404, "unknown_name"),
    "an unknown run": ("GET", "/v1/runs/nobody", {}, b"", 404, "unknown_name"),
    "a run that is no name": ("PUT", "/v1/runs/A%0A", {"content-type": JSON}, b'{"budget": 1}', 404, "unknown_name"),
    "a budget below zero": ("PUT", "/v1/runs/a", {"content-type": JSON}, b'{"budget": -1}', 400, "bad_request"),
    "no budget": ("PUT", "/v1/runs/a", {"content-type": JSON}, b"{}", 400, "bad_request"),
    "a run beside a JSON body": ("POST", "/v1/logits?run=a", {"content-type": JSON}, GOOD_BODY, 400, "bad_request"),
    "a budget beside a JSON body": (
        "PUT",
        "/v1/runs/a?x=1",
        {"content-type": JSON},
        b'{"budget": 1}',
        400,
        "bad_request",
    ),
    "a misspelt parameter": ("GET", "/v1/logits/pictures/train/0?veiw=3", {}, b"", 400, "bad_request"),
    "a parameter given twice": ("GET", "/v1/logits/pictures/train/0?view=3&view=4", {}, b"", 400, "bad_request"),
    "a view of an upload": ("POST", "/v1/images?view=3", {"content-type": "image/png"}, b"x", 400, "bad_request"),
    "another host": ("GET", "/v1/ledger", {"host": "evil.example"}, b"", 400, "bad_request"),
    "a host with a path": ("GET", "/v1/ledger", {"host": "localhost/healthz?"}, b"", 400, "bad_request"),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_bad_request_is_refused(server: Any, name: str) -> None:
    method, path, headers, body, status, code = REQUESTS[name]
    response = httpx.request(method, server.url + path, headers=headers, content=body)
    assert_error(response, status, code)
    assert not any(name.startswith("access-control") for name in response.headers)


def test_a_body_without_a_length_is_cut_off_at_the_limit(server: Any) -> None:
    chunks = (bytes(2**16) for _ in range(64))
    try:
        response = httpx.post(f"{server.url}/v1/images", content=chunks, headers={"content-type": "image/png"})
    except httpx.TransportError:
        return  # closed while we were still sending
    assert_error(response, 413, "too_large")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_that_sends_all_before_it_reads_is_told_that_it_sent_too_much(server: Any, chunked: bool) -> None:
    for _ in range(5):
        connection = HTTPConnection(server.url.removeprefix("http://"), timeout=30)
        # A generator has no length, so it goes in chunks.
        body = (bytes(2**16) for _ in range(31)) if chunked else bytes(31 * 2**16)
        connection.request("POST", "/v1/images", body=body, headers={"content-type": "image/png"})
        answer = connection.getresponse()
        told = json.loads(answer.read())
        connection.close()
        assert (answer.status, answer.headers["connection"], told["code"]) == (413, "close", "too_large")


def test_a_client_that_asks_before_it_sends_too_much_is_refused_at_once(server: Any) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as raw:
        lines = f"Host: localhost\r\nContent-Length: {2**20 + 1}\r\nExpect: 100-continue\r\n"
        raw.sendall(f"POST /v1/images HTTP/1.1\r\n{lines}\r\n".encode())
        assert raw.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_two_hosts_or_none_are_refused(server: Any) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    for lines in ("Host: localhost\r\nHost: localhost\r\n", ""):
        with socket.create_connection((host, int(port)), timeout=5) as raw:
            raw.sendall(f"GET /v1/ledger HTTP/1.1\r\n{lines}Connection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: raw.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 400 ")


def test_a_request_id_is_echoed_only_where_it_is_harmless(server: Any) -> None:
    kept = httpx.get(f"{server.url}/healthz", headers={"x-request-id": "abc-123"})
    replaced = httpx.get(f"{server.url}/healthz", headers={"x-request-id": "<b>" + "x" * 100})
    assert kept.headers["x-request-id"] == "abc-123"
    assert replaced.headers["x-request-id"].isalnum()
    assert len(replaced.headers["x-request-id"]) == 16


def test_the_reference_lists_every_route_and_status_that_can_occur(server: Any) -> None:
    document = httpx.get(f"{server.url}/openapi.json").json()
    named = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert {"InferAnswer", "InputTensor"} <= named <= set(document["components"]["schemas"])
    paths = document["paths"]
    assert set(paths) == {
        "/",
        "/assets/{name}",
        "/docs",
        "/healthz",
        "/metrics",
        "/readyz",
        "/v1/cache",
        "/v1/cache/{dataset}/{split}/coverage",
        "/v1/fills",
        "/v1/fills/{fill_id}",
        "/v1/fills/{fill_id}/events",
        "/v1/images",
        "/v1/ledger",
        "/v1/logits",
        "/v1/logits/{dataset}/{split}/{row}",
        "/v1/runs/{name}",
        "/v1/status",
        "/v1/status/events",
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/{model}",
        "/v2/models/{model}/infer",
        "/v2/models/{model}/ready",
        "/v2/models/{model}/versions/{version}",
        "/v2/models/{model}/versions/{version}/infer",
        "/v2/models/{model}/versions/{version}/ready",
    }
    asking = {"200", "400", "401", "402", "403", "404", "408", "413", "415", "431", "500", "503", "504", "507"}
    assert set(paths["/v1/logits"]["post"]["responses"]) == asking
    assert set(paths["/v1/images"]["post"]["responses"]) == asking
    assert set(paths["/v2/models/{model}/versions/{version}/infer"]["post"]["responses"]) == asking
    assert "422" not in json.dumps(paths)

"""A real server: what is asked once is computed once, kept, and answered the same for ever."""

import io
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

from shared.client import TeacherClient
from shared.fake_teacher import FakeTeacher
from shared.identity import pixel_key

SAFETENSORS = "application/vnd.safetensors"


def picture(seed: int, *, size: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=form, lossless=True)
    return buffer.getvalue()


def post_image(url: str, body: bytes, kind: str, **query: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/images", content=body, headers={"content-type": kind}, params=query, timeout=30)


def test_the_second_request_and_the_one_after_a_restart_cost_no_call(
    launch_server: Callable, tmp_path: Path, pictures: Path
) -> None:
    options = ("--dataset", f"folder:{pictures}")
    server = launch_server(tmp_path / "store", *options)
    first = server.ask([3, 0, 3], outputs=["logits", "features"])
    second = server.ask([3, 0, 3], outputs=["logits", "features"])
    assert server.stop() == 0
    server = launch_server(tmp_path / "store", *options)
    third = server.ask([3, 0, 3], outputs=["logits", "features"])

    assert first.json()["cached"] == [False, False, False]
    assert [answer.headers["x-teacher-calls"] for answer in (first, second, third)] == ["2", "0", "0"]
    assert second.json() == first.json() | {"cached": [True] * 3, "teacher_calls": 0}
    assert third.json() == second.json()
    assert server.ledger()["teacher_calls"] == 2
    assert server.stop() == 0


def test_json_is_the_shortest_decimal_of_what_is_kept_and_binary_is_what_is_kept(
    launch_server: Callable, tmp_path: Path, pictures: Path
) -> None:
    server = launch_server(tmp_path / "store", "--dataset", f"folder:{pictures}")
    answer = server.ask([5])
    with TeacherClient(server.url) as client:
        binary = client.logits("pictures/train", [5])
    pixels = np.asarray(Image.open(sorted(pictures.rglob("*.png"), key=lambda path: (path.parent.name, path.name))[5]))
    expected = FakeTeacher(classes=10).answer([pixels])["logits"].astype(np.float16)

    assert binary["logits"].dtype == np.float16
    np.testing.assert_array_equal(binary["logits"], expected)
    text = ",".join(str(value) for value in expected[0].astype(np.float32))
    assert f'"logits":[[{text}]]' in answer.text


def test_a_png_and_a_webp_of_the_same_pixels_are_one_call_and_one_key(launch_server: Callable, tmp_path: Path) -> None:
    server = launch_server(tmp_path / "store")
    png = post_image(server.url, encoded(picture(1), "PNG"), "image/png").json()
    webp = post_image(server.url, encoded(picture(1), "WEBP"), "image/webp").json()

    assert png["keys"] == webp["keys"] == [pixel_key(picture(1)).hex()]
    assert (png["teacher_calls"], webp["teacher_calls"]) == (1, 0)
    assert png["logits"] == webp["logits"]


def test_an_upload_of_a_cached_row_costs_nothing_and_the_other_way_round(
    launch_server: Callable, tmp_path: Path, pictures: Path
) -> None:
    server = launch_server(tmp_path / "store", "--dataset", f"folder:{pictures}")
    files = sorted((pictures / "train" / "cat").iterdir())
    row = server.ask([0]).json()
    upload = post_image(server.url, files[0].read_bytes(), "image/png").json()
    uploaded_first = post_image(server.url, files[1].read_bytes(), "image/png").json()
    row_after = server.ask([1]).json()

    assert (upload["teacher_calls"], upload["cached"], upload["logits"]) == (0, [True], row["logits"])
    assert (uploaded_first["teacher_calls"], row_after["teacher_calls"]) == (1, 0)
    assert row_after["logits"] == uploaded_first["logits"]
    assert server.ledger()["teacher_calls"] == 2


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WebP"])
def test_an_image_without_a_content_type_is_known_by_its_bytes(
    launch_server: Callable, tmp_path: Path, form: str
) -> None:
    server = launch_server(tmp_path / "store")
    body = encoded(picture(1), form)
    named = post_image(server.url, body, f"image/{form.lower()}")
    plain = httpx.post(f"{server.url}/v1/images", content=body)
    assert plain.status_code == 200, plain.text
    assert (plain.json()["keys"], plain.json()["cached"]) == (named.json()["keys"], [True])


def test_many_images_in_one_binary_body_are_answered_in_order(launch_server: Callable, tmp_path: Path) -> None:
    server = launch_server(tmp_path / "store")
    images = np.stack([picture(1), picture(2), picture(1)])
    with TeacherClient(server.url) as client:
        answers = client.images(images, outputs=("logits", "features"))

    assert answers.teacher_calls == 2
    expected = FakeTeacher(classes=10).answer(list(images))
    np.testing.assert_array_equal(answers["logits"], expected["logits"].astype(np.float16))
    np.testing.assert_array_equal(answers["features"], expected["features"].astype(np.float16))
    assert answers.keys == tuple(pixel_key(image).hex() for image in images)


def test_a_link_answers_cached_rows_and_never_spends(launch_server: Callable, tmp_path: Path, pictures: Path) -> None:
    server = launch_server(tmp_path / "store", "--dataset", f"folder:{pictures}")
    missing = httpx.get(f"{server.url}/v1/logits/pictures/train/7")
    asked = server.ask([7], outputs=["features"])
    found = httpx.get(f"{server.url}/v1/logits/pictures/train/7", params={"outputs": "features"})

    assert (missing.status_code, missing.json()["code"]) == (404, "not_cached")
    assert found.json()["features"] == asked.json()["features"]
    assert server.ledger()["teacher_calls"] == 1


def test_identical_images_of_a_data_set_cost_one_call(launch_server: Callable, tmp_path: Path, pictures: Path) -> None:
    cats = sorted((pictures / "train" / "cat").iterdir())
    cats[4].write_bytes(cats[2].read_bytes())
    server = launch_server(tmp_path / "store", "--dataset", f"folder:{pictures}")
    together = server.ask([2, 4]).json()
    server.stop()
    server = launch_server(tmp_path / "store", "--dataset", f"folder:{pictures}")
    again = httpx.get(f"{server.url}/v1/logits/pictures/train/4").json()

    assert together["teacher_calls"] == 1
    assert together["logits"][0] == together["logits"][1] == again["logits"][0]


def test_a_view_has_its_own_answers_save_the_one_that_is_the_image_itself(
    launch_server: Callable, tmp_path: Path, pictures: Path
) -> None:
    server = launch_server(tmp_path / "store", "--dataset", f"folder:{pictures}")
    policy = httpx.get(f"{server.url}/v1/cache").json()["datasets"][0]["view_policy"]
    assert policy == "crop4flip"
    calls = [server.ask([1], view=view).json()["teacher_calls"] for view in (0, 41, 1, 1)]
    assert calls == [1, 0, 1, 0]


def test_the_cache_route_tells_what_is_served(launch_server: Callable, tmp_path: Path, pictures: Path) -> None:
    server = launch_server(tmp_path / "store", "--dataset", f"folder:{pictures}")
    server.ask([1, 2])
    with TeacherClient(server.url) as client:
        told = client.cache()
        assert client.ready()

    assert told["teachers"][0]["id"] == FakeTeacher(classes=10).id
    assert told["teachers"][0]["description"] == FakeTeacher(classes=10).description.attributes()
    assert told["datasets"][0]["name"] == "pictures/train"
    assert told["datasets"][0]["rows"] == 40
    assert told["caches"][0]["present"] == {"0": 2}


def test_a_run_is_made_bounded_and_counted(launch_server: Callable, tmp_path: Path, pictures: Path) -> None:
    server = launch_server(tmp_path / "store", "--dataset", f"folder:{pictures}", "--run", "paper=3")
    server.ask([0, 1], run="default")
    with TeacherClient(server.url) as client:
        client.logits("pictures/train", [1, 2, 3], run="paper")
        counts = client.run("paper")
        refused = server.ask([4, 5], run="paper")
        unknown = server.ask([4], run="nobody")
        raised = client.set_budget("paper", 4)
        lowered = httpx.put(f"{server.url}/v1/runs/paper", json={"budget": 1})

    assert counts == {"budget": 3, "remaining": 1, "attempts": 2, "teacher_calls": 2, "charged": 3}
    assert (refused.status_code, refused.json()["needed"], refused.json()["remaining"]) == (402, 2, 1)
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_name")
    assert raised["remaining"] == 2
    assert (lowered.status_code, lowered.json()["code"]) == (409, "budget_below_attempts")


def test_an_empty_question_has_an_empty_answer(launch_server: Callable, tmp_path: Path, pictures: Path) -> None:
    server = launch_server(tmp_path / "store", "--dataset", f"folder:{pictures}")
    with TeacherClient(server.url) as client:
        rows = client.logits("pictures/train", [])
        images = client.images(np.zeros((0, 8, 8, 3), dtype=np.uint8))

    assert rows["logits"].shape == images["logits"].shape == (0, 10)


def test_the_answers_metadata_is_json_strings(launch_server: Callable, tmp_path: Path) -> None:
    server = launch_server(tmp_path / "store")
    body = save({"images": picture(1)[None]})
    headers = {"content-type": SAFETENSORS, "accept": SAFETENSORS}
    answer = httpx.post(f"{server.url}/v1/images", content=body, headers=headers)
    header = answer.content[8 : 8 + int.from_bytes(answer.content[:8], "little")].decode()

    assert answer.headers["content-type"] == SAFETENSORS
    assert '"cached":"[false]"' in header
    assert '"teacher_calls":"1"' in header

"""The pages in a real browser: live figures, pictures, keyboard, phone, dark, a server that goes and comes back."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium on PATH: apt-get install chromium")
expect = playwright.expect

HERE = Path(__file__).parent
LONG_RUN = f"a-long-name-{'x' * 50}"
CONTRAST = (HERE / "page_contrast.js").read_text()
"""Texts with less than 4.5:1 against what they stand on."""
ACCESS = (HERE / "page_access.js").read_text()
"""What a screen reader would stumble over."""


class Browser:
    """Pages of one browser, with everything that they asked for and complained about."""

    def __init__(self, browser: Any, *, url: str) -> None:
        self.url = url
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._browser = browser

    def open(self, path: str, *, width: int = 1280, scheme: str = "light") -> Any:
        """A page of the module's server, or any address, in a fresh window."""
        page = self._browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page.set_default_timeout(10_000)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda line: self.complaints.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(self.url + path if path.startswith("/") else path)
        return page


@pytest.fixture(scope="module")
def start(
    launch_server: Callable[..., Any], make_images: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Any]:
    folder = tmp_path_factory.mktemp("dashboard")
    pictures = make_images(folder / "pictures", count=40)
    return lambda *options: launch_server(
        folder / "store", "--dataset", f"folder:{pictures}", "--run", "paper=30", "--run", LONG_RUN, *options
    )


@pytest.fixture(scope="module")
def server(start: Callable[..., Any]) -> Any:
    return start()


@pytest.fixture(scope="module")
def browser(server: Any) -> Iterator[Browser]:
    # As root, Chromium starts only without its sandbox; it sees nothing but the test's own server.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield Browser(launched, url=server.url)
        launched.close()


@pytest.fixture(scope="module")
def page(browser: Browser) -> Any:
    """One dashboard that stays open, as people leave it."""
    return browser.open("/")


def test_figures_follow_what_is_asked(server: Any, page: Any) -> None:
    expect(page.locator("#state")).to_have_text("Ready")
    expect(page.locator("#calls")).to_have_text("0")
    assert server.ask(list(range(20)), run="paper").status_code == 200
    expect(page.locator("#calls")).to_have_text("20")
    assert server.ask(list(range(20)), run="paper").status_code == 200
    assert server.ask(list(range(40)), run="paper").status_code == 402
    expect(page.locator("#saved")).to_have_text("20")
    expect(page.locator("#saved-note")).to_contain_text("50% of all answers")
    expect(page.locator("#left")).to_have_text("10")
    expect(page.locator("#runs tr", has_text="paper")).to_contain_text("20 of 30")
    expect(page.locator("#rejected")).to_contain_text("budget exhausted")
    expect(page.locator("#batches li")).to_have_count(1)
    expect(page).to_have_title("Ready · 20 calls – teachonce")
    expect(page.locator("#rates path.area.teacher")).to_have_attribute("d", re.compile("^M.+Z$"))


def test_a_picture_shows_which_rows_are_cached(server: Any, page: Any) -> None:
    assert server.ask([38, 39], view=5).status_code == 200
    picture = page.get_by_role("img", name="Coverage of pictures/train")
    expect(picture).to_have_attribute(
        "aria-label", "Coverage of pictures/train: view 0: 50% of 40 rows; view 5: 5% of 40 rows"
    )
    blocks = picture.evaluate(
        """canvas => {
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            const at = (x, y) => data.slice(4 * (y * canvas.width + x)).slice(0, 4).join();
            return [0, 8].map(y => [...Array(canvas.width).keys()].map(x => at(x, y)));
        }"""
    )
    full, empty = blocks[0][0], blocks[0][39]
    assert full != empty
    assert blocks == [[full] * 20 + [empty] * 20, [empty] * 38 + [full] * 2]


def test_everything_can_be_reached_and_opened_by_keyboard(page: Any) -> None:
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(9):
        page.keyboard.press("Tab")
        at = page.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent")
        ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        reached.append((at.strip(), ring))
        if at == "As a table":
            page.keyboard.press("Enter")
    assert [name for name, ring in reached if ring != "none"] == [
        "Skip to the figures",
        "teachonce",
        "API",
        "Ledger",
        "Metrics",
        "As a table",
        "Coverage of pictures/train, by view",
        "Runs",
        "Errors and refusals",
    ]
    expect(page.locator("details tr", has_text="view 5")).to_contain_text("5%")


def test_fills_are_listed_with_how_far_they_have_come(server: Any, page: Any) -> None:
    begun = httpx.post(f"{server.url}/v1/fills", json={"dataset": "pictures/train", "rows": [0, 1, 2]})
    assert begun.status_code == 202
    expect(page.locator("#fills tr", has_text="pictures/train")).to_contain_text("pictures/train, views 03 of 3")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_on_a_phone_in_both_schemes(browser: Browser, scheme: str) -> None:
    page = browser.open("/", width=320, scheme=scheme)
    long_name = page.locator("#runs th", has_text="a-long-name")
    expect(long_name).to_be_visible()
    # The figure beside the name can be seen.
    assert long_name.evaluate("cell => cell.nextElementSibling.getBoundingClientRect().right < 320")
    assert long_name.evaluate("cell => cell.getBoundingClientRect().width > 90")
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    assert page.evaluate("document.querySelector('#runs .scroll').scrollWidth > 320")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(background) < 64) == (scheme == "dark")
    assert page.evaluate(CONTRAST) == []
    assert page.evaluate(ACCESS) == []
    page.close()


def test_the_reference_shows_every_route_its_body_and_its_statuses(browser: Browser, server: Any) -> None:
    page = browser.open("/docs#/Answers/ask_rows_v1_logits_post")
    document = httpx.get(f"{server.url}/openapi.json").json()
    expect(page.locator(".opblock")).to_have_count(sum(len(verbs) for verbs in document["paths"].values()))
    shown = {path.replace("\u200b", "") for path in page.locator(".opblock-summary-path").all_inner_texts()}
    assert shown == set(document["paths"])
    expect(page.locator(".opblock-section-request-body")).to_contain_text("digits/train")
    statuses = page.locator(".responses-wrapper .response-col_status").all_inner_texts()
    assert {status for status in statuses if status.isdigit()} == set(
        document["paths"]["/v1/logits"]["post"]["responses"]
    )
    assert page.locator("h1:visible").all_inner_texts() == ["API"]
    page.close()


def test_nothing_comes_from_another_host_and_nobody_complains(browser: Browser) -> None:
    assert len(browser.requests) > 20
    assert {url for url in browser.requests if not url.startswith((f"{browser.url}/", "data:"))} == set()
    assert browser.complaints == []


def test_a_server_that_goes_is_missed_and_found_again(server: Any, page: Any, start: Callable[..., Any]) -> None:
    assert server.stop() == 0
    expect(page.locator("#state")).to_have_text("No answer")
    expect(page.get_by_role("alert")).to_contain_text("trying again")
    expect(page).to_have_title("No answer – teachonce")
    expect(page.locator("#calls")).to_have_text("22")
    start("--port", server.url.rpartition(":")[2])
    expect(page.locator("#state")).to_have_text("Ready")
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.locator("#calls")).to_have_text("22")
    # What a call takes is in the ledger: it is known without another one.
    expect(page.locator("#time-note")).to_contain_text("per call")


def test_who_logs_in_sees_the_dashboard_and_may_log_out(
    launch_server: Callable[..., Any], browser: Browser, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a key for whoever looks\n")
    page = browser.open(launch_server(tmp_path / "store", "--api-key-file", str(keys)).url)
    assert page.evaluate(ACCESS) == []
    page.get_by_label("API key").fill("a key for whoever looks")
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("#state")).to_have_text("Ready")
    expect(page.locator("#owners")).to_contain_text("Owner")
    page.set_viewport_size({"width": 360, "height": 800})
    below = "logout.getBoundingClientRect().top - document.querySelector('nav').getBoundingClientRect().top"
    assert abs(page.evaluate(below)) < 12
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("API key")).to_be_visible()
    page.close()

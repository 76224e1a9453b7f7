"""Pages for people: HTML files of this package, with the headers that keep other sites out."""

from functools import cache
from html import escape
from importlib.resources import files
from string import Template

from starlette.responses import HTMLResponse, Response

POLICY = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
"""Of every page: nothing from another host, and in no frame."""
SAFE_HEADERS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
"""Of every page and of what it is made of."""
PAGE_HEADERS = {**SAFE_HEADERS, "content-security-policy": POLICY, "cache-control": "no-store"}
"""Of a page that is kept nowhere."""


def page_reply(name: str, *, status: int = 200, **texts: str) -> Response:
    """``pages/NAME`` with ``texts`` in place of ``$name``."""
    page = _template(name).substitute({key: escape(text) for key, text in texts.items()})
    return HTMLResponse(page, status_code=status, headers=PAGE_HEADERS)


@cache
def _template(name: str) -> Template:
    return Template(files("teacher_server").joinpath("pages", name).read_text(encoding="utf-8"))

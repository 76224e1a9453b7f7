"""Pages for people: HTML files of this package, with the headers that keep other sites out."""

from functools import cache
from html import escape
from importlib.resources import files
from string import Template

from starlette.responses import HTMLResponse, Response

PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
"""Of every page: nothing from another host, in no frame, kept nowhere."""


def page_reply(name: str, *, status: int = 200, **texts: str) -> Response:
    """``pages/NAME`` with ``texts`` in place of ``$name``."""
    page = _template(name).substitute({key: escape(text) for key, text in texts.items()})
    return HTMLResponse(page, status_code=status, headers=PAGE_HEADERS)


@cache
def _template(name: str) -> Template:
    return Template(files("teacher_server").joinpath("pages", name).read_text(encoding="utf-8"))

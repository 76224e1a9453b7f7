"""Pages for people: the dashboard and the reference, with all they need; nothing comes from another host."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from shared.errors import UnknownNameError
from teacher_server.openapi import documented
from teacher_server.page_reply import POLICY, SAFE_HEADERS

router = APIRouter(tags=["Pages"])

STYLE, SCRIPT, SVG, HTML = "text/css", "text/javascript", "image/svg+xml", "text/html"
ASSETS = {
    "style.css": ("teacher_server.pages", STYLE),
    "format.js": ("teacher_server.pages", SCRIPT),
    "parts.js": ("teacher_server.pages", SCRIPT),
    "coverage.js": ("teacher_server.pages", SCRIPT),
    "dashboard.js": ("teacher_server.pages", SCRIPT),
    "docs.css": ("teacher_server.pages", STYLE),
    "docs.js": ("teacher_server.pages", SCRIPT),
    "favicon.svg": ("teacher_server.pages", SVG),
    "swagger-ui.css": ("fastapi_offline.static", STYLE),
    "swagger-ui-bundle.js": ("fastapi_offline.static", SCRIPT),
}
"""Name -> package that it lies in, and type: what is not listed is not served."""
DOCS_POLICY = f"{POLICY}; img-src 'self' data:"
"""Swagger UI draws its arrows with pictures in its style sheet."""
HEADERS = {**SAFE_HEADERS, "cache-control": "no-cache"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Asset:
    """One file, read once."""

    content: bytes
    media_type: str
    etag: str


@cache
def read_asset(name: str, package: str, media_type: str) -> Asset:
    """A file of an installed package."""
    content = files(package.partition(".")[0]).joinpath(*package.split(".")[1:], name).read_bytes()
    return Asset(content=content, media_type=media_type, etag=f'"{sha256(content).hexdigest()[:20]}"')


def _told(*types: str, errors: tuple[int, ...] = ()) -> dict[str, Any]:
    """Keyword arguments of a route decorator: files of these types, or 304 where the caller has it."""
    told = documented(None, errors=errors, answer_types={kind: {"schema": {"type": "string"}} for kind in types})
    told["responses"][304] = {"description": "Not modified: If-None-Match holds its ETag"}
    return told


@router.get("/", **_told(HTML), response_class=HTMLResponse)
async def dashboard(request: Request) -> Response:
    """The dashboard."""
    return _send(request, read_asset("index.html", "teacher_server.pages", HTML), policy=POLICY)


@router.get("/docs", **_told(HTML), response_class=HTMLResponse)
async def reference_page(request: Request) -> Response:
    """This reference, to read and to try."""
    return _send(request, read_asset("docs.html", "teacher_server.pages", HTML), policy=DOCS_POLICY)


@router.get("/assets/{name}", **_told(STYLE, SCRIPT, SVG, errors=(404,)), response_class=Response)
async def asset(request: Request, name: str) -> Response:
    """What the pages are made of."""
    if name not in ASSETS:
        raise UnknownNameError(f"no asset {name[:80]!r}; there are {', '.join(ASSETS)}")
    return _send(request, read_asset(name, *ASSETS[name]), policy=POLICY)


@router.get("/favicon.ico", include_in_schema=False)
async def favicon(request: Request) -> Response:
    """What browsers ask for whatever the page says; they take the type from the header."""
    return await asset(request, "favicon.svg")


def _send(request: Request, asset: Asset, *, policy: str) -> Response:
    headers: Mapping[str, str] = {**HEADERS, "etag": asset.etag, "content-security-policy": policy}
    if request.headers.get("if-none-match") == asset.etag:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, media_type=asset.media_type, headers=headers)

"""Routes of the login: a browser shows a key once, and looks with a cookie from then on. Plain forms, no JavaScript."""

from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from shared.errors import ForbiddenError, InputError, TooLargeError
from teacher_server.access import Access, session_token
from teacher_server.keys import ApiKey, Scope
from teacher_server.page_reply import PAGE_HEADERS, page_reply
from teacher_server.reading import expect_type
from teacher_server.request_record import note_error
from teacher_server.sessions import COOKIE, LIFETIME_S

# Pages for people: the reference lists what programs use.
router = APIRouter(include_in_schema=False)

FORM = "application/x-www-form-urlencoded"
MAX_FORM_BYTES = 4096
PAGE = "login.html"


@router.get("/login")
async def show_login(request: Request) -> Response:
    """The form; a server without keys needs none."""
    return _go("/") if _access(request).ring is None else page_reply(PAGE, message="")


@router.post("/login")
async def log_in(request: Request) -> Response:
    """A session for a key that may look; else the form again, with what was wrong."""
    access = _access(request)
    if access.ring is None:
        return _go("/")
    _check_origin(request)
    key = await access.find(await _read_key(request))
    if key is None:
        return _refuse(request, status=401, code="unauthorized", message="This is no key of this server.")
    if not key.scopes & {Scope.METRICS, Scope.ADMIN}:
        message = f"The key {key.name} may not look: it lacks the scope {Scope.METRICS}."
        return _refuse(request, status=403, code=ForbiddenError.code, message=message)
    return _welcome(request, key=key)


@router.post("/logout")
async def log_out(request: Request) -> Response:
    """End the session, if there is one."""
    _check_origin(request)
    _access(request).sessions.end(session_token(request.scope["headers"]))
    reply = _go("/login")
    reply.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
    return reply


def _welcome(request: Request, *, key: ApiKey) -> Response:
    reply = _go("/")
    reply.set_cookie(
        COOKIE,
        _access(request).sessions.begin(key),
        max_age=LIFETIME_S,
        path="/",
        secure=request.scope["scheme"] == "https",
        httponly=True,
        samesite="strict",
    )
    return reply


def _refuse(request: Request, *, status: int, code: str, message: str) -> Response:
    note_error(request.scope, code=code, message=message)
    reply = page_reply(PAGE, status=status, message=message)
    if status == 401:
        reply.headers["www-authenticate"] = "Bearer"
    return reply


def _go(path: str) -> Response:
    # See Other: whatever it was, the next request is a GET.
    return RedirectResponse(path, status_code=303, headers=PAGE_HEADERS)


def _check_origin(request: Request) -> None:
    """Raise `ForbiddenError` for a form on another site's page.

    Not by Origin: a page that sends no referrer sends `Origin: null` with its own form.
    """
    if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        raise ForbiddenError("this form was sent from another site; open /login of this server")


async def _read_key(request: Request) -> bytes:
    """The field ``key`` of a small form."""
    expect_type(request, allowed=(FORM,))
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_FORM_BYTES:
            raise TooLargeError(f"a form of more than {MAX_FORM_BYTES} bytes; send one field: key")
    try:
        fields = parse_qs(body.decode("ascii", errors="replace"), max_num_fields=8)
    except ValueError as error:
        raise InputError("too many fields in the form; send one: key") from error
    return fields.get("key", [""])[0].strip().encode()


def _access(request: Request) -> Access:
    access: Access = request.app.state.access
    return access

"""Which scope of an API key opens which route: one table. What it does not name is for admin alone."""

import re

from starlette.routing import Match
from starlette.types import Scope as HttpScope

from shared.errors import ForbiddenError
from teacher_server.keys import ApiKey, Scope

PROBES = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
"""How it is, asked every few seconds: answered even where there is no room for anybody else."""
OPEN_PATHS = PROBES | {"/login", "/logout", "/favicon.ico"}
"""Answered without a key: probes carry none, who logs in has none yet, and browsers ask for a picture on their own."""
OPEN_FOLDER = "/assets/"
"""What the pages are made of: the same for everyone, and holds nothing about this server."""
LOOK = frozenset({"GET", "HEAD"})
"""Methods that change nothing: all that a browser's session may do."""
POST = frozenset({"POST"})
MODEL = r"/v2/models/[^/]+(/versions/[^/]+)?"
RUN = re.compile(r"/v1/runs/([^/]+)")
TABLE = (
    (POST, r"/v1/logits|/v1/images", (Scope.INFER,)),
    (POST, rf"{MODEL}/infer", (Scope.INFER,)),
    (LOOK, r"/v1/logits/.+", (Scope.INFER,)),
    (LOOK, rf"/v2/?|{MODEL}(/ready)?", (Scope.INFER, Scope.METRICS)),
    (LOOK, r"/v1/cache(/.+)?", (Scope.INFER, Scope.METRICS)),
    (LOOK, r"/metrics|/v1/ledger|/v1/runs/[^/]+|/v1/status(/.*)?", (Scope.METRICS,)),
    (LOOK, r"/|/docs|/openapi\.json", (Scope.METRICS,)),
    # Whose a fill is, its routes know.
    (POST, r"/v1/fills(/.+)?", (Scope.INFER,)),
    (frozenset({"DELETE"}), r"/v1/fills/.+", (Scope.INFER,)),
    (LOOK, r"/v1/fills(/.+)?", (Scope.INFER, Scope.METRICS)),
)
"""Methods, a pattern of whole paths, and scopes of which one is enough."""
RULES = tuple((methods, re.compile(pattern), scopes) for methods, pattern, scopes in TABLE)


def is_open(path: str) -> bool:
    """Whether a path needs no key."""
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDER)


def has_route(scope: HttpScope) -> bool:
    """Whether any route has the path of a request, whatever its method."""
    return any(route.matches(scope)[0] is not Match.NONE for route in scope["app"].routes)


def scopes_for(method: str, path: str) -> tuple[Scope, ...]:
    """Scopes of which one is enough, besides admin; ``path`` is the one that routing uses."""
    for methods, pattern, scopes in RULES:
        if method in methods and pattern.fullmatch(path):
            return scopes
    return ()


def check_permission(key: ApiKey, *, method: str, path: str) -> None:
    """Raise `ForbiddenError` for a request that a key has no scope for."""
    if Scope.ADMIN in key.scopes:
        return
    wanted = scopes_for(method, path)
    if key.scopes.intersection(wanted) or _is_own_run(key, method=method, path=path):
        return
    needed = " or ".join(wanted) or Scope.ADMIN
    raise ForbiddenError(
        f"the key {key.name!r} has the scopes {', '.join(sorted(key.scopes))}, and {method} {path[:200]!r} needs "
        f"{needed}; another key is made by: teacher-server key make NAME --scope {(*wanted, Scope.ADMIN)[0]}"
    )


def check_run(key: ApiKey, run: str) -> None:
    """Raise `ForbiddenError` for a run that a key may not spend under."""
    if not key.may_use(run):
        own = ", ".join(key.runs or ())
        raise ForbiddenError(f"the key {key.name!r} may not ask under the run {run[:80]!r}; its own: {own}")


def _is_own_run(key: ApiKey, *, method: str, path: str) -> bool:
    run = RUN.fullmatch(path) if method in LOOK and Scope.INFER in key.scopes else None
    return run is not None and key.may_use(run[1])

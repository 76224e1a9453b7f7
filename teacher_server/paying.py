"""Which run pays for an answer, whatever the route."""

from fastapi import Request

from teacher_server.keys import ApiKey
from teacher_server.permissions import check_run
from teacher_server.service import DEFAULT_RUN, service_of


def paying_run(request: Request, *, asked: str | None) -> str:
    """The run asked for, else the first of the key's own, else `default`.

    Raises `ForbiddenError` for one that is not the key's, `UnknownNameError` for one that nobody made.
    """
    key: ApiKey = request.state.key
    service = service_of(request)
    own = DEFAULT_RUN if key.runs is None else key.runs[0]
    run = own if asked is None else asked
    check_run(key, run)
    request.state.run = service.check_run(run)
    return run

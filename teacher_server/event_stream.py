"""Server-sent events to one watcher, for as long as it may see them."""

from collections.abc import AsyncIterator, Callable

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from teacher_server.access import Access


class EventStream(StreamingResponse):
    """Events until the key that they were asked with, or its session, ends; ``left`` is called however that comes."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], *, request: Request, left: Callable[[], None]) -> None:
        # The second header is for nginx, which would collect the events and send them together.
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(_while_allowed(events, request=request), headers=headers)
        self._left = left

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._left()


async def _while_allowed(events: AsyncIterator[bytes], *, request: Request) -> AsyncIterator[bytes]:
    access: Access = request.app.state.access
    async for event in events:
        if not await access.still_counts(request.scope):
            return
        yield event

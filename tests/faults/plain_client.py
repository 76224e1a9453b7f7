"""An HTTP client for threads that ask a lot: one connection each, kept open, little of its own time."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from threading import Barrier, Thread
from typing import Any, Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class NoReplyError(Exception):
    """The connection ended before the reply had."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    status: int
    headers: dict[str, str]
    """By lower-case name."""
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class PlainClient:
    """One connection to a server on this machine; a context manager."""

    def __init__(self, url: str, *, timeout_s: float = 60.0, api_key: str = "") -> None:
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._connection = HTTPConnection(url.removeprefix("http://"), timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def ask(self, method: str, path: str, *, body: bytes | None = None, headers: dict[str, str] | None = None) -> Reply:
        """One request; `NoReplyError` where nobody knows what became of it."""
        try:
            self._connection.request(method, path, body=body, headers=self._headers | (headers or {}))
            reply = self._connection.getresponse()
            named = {name.lower(): value for name, value in reply.getheaders()}
            content = reply.read()
            # A head that ends early reads like one with fewer headers, and a body without end.
            if named.get("content-length") != str(len(content)):
                raise NoReplyError(f"{method} {path}: half a head")
            return Reply(status=reply.status, headers=named, body=content)
        except (OSError, HTTPException) as error:
            raise NoReplyError(f"{method} {path}: {error!r}") from error


def in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """``work`` on every item, each in a thread of its own, all beginning together; the first error is raised."""
    start = Barrier(len(items))
    results: list[Any] = [None] * len(items)
    errors: list[BaseException] = []

    def run(index: int) -> None:
        start.wait()
        try:
            results[index] = work(items[index])
        except BaseException as error:
            errors.append(error)

    threads = [Thread(target=run, args=(index,)) for index in range(len(items))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results

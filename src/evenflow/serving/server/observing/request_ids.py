"""The outermost layer of the application: every request gets an id and a record, and an answer even to what nobody foresaw."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evenflow.serving.server.http.error_answers import error_response
from evenflow.serving.server.observing.request_record import RequestObserver, RequestRecord, put_record

log = logging.getLogger("evenflow.server")

_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


class RequestIds:
    """Gives every answer an x-request-id (the caller's own, if it is sane), and tells ``observers`` of every request."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        clock: Callable[[], float],
        unix_time: Callable[[], float],
        observers: Sequence[RequestObserver] = (),
    ) -> None:
        self._app = app
        self._clock = clock
        self._unix_time = unix_time
        self._observers = observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"").decode("latin-1")
        request_id = given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
        record = RequestRecord(request_id, scope["method"], scope["path"], self._clock(), self._unix_time())
        put_record(scope, record)
        for observer in self._observers:
            observer.began(record, Headers(scope=scope))

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            record.error = error
            log.exception("request %s (%s %s) failed", request_id, scope["method"], scope["path"])
            if record.status:
                raise
            await error_response(error)(scope, receive, send_with_id)
        finally:
            record.ended_s = self._clock()
            for observer in self._observers:
                observer.ended(record)


__all__ = ["RequestIds"]

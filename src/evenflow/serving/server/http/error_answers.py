"""From an exception to an HTTP status and OpenAI's error body: the only place where codes are chosen."""

from __future__ import annotations

import math

import msgspec
from starlette.responses import Response

from evenflow.base import errors
from evenflow.base.errors import EvenFlowError
from evenflow.serving.client.messages import RequestOutput
from evenflow.serving.server.http.body_errors import BodyTooLarge, UnsupportedMedia

LONGEST_MESSAGE = 2000
"""Characters. A message may quote what the caller sent; what they sent may be megabytes."""

_STATUS: dict[type[BaseException], tuple[int, str, str | None]] = {
    UnsupportedMedia: (415, "invalid_request_error", "unsupported_media_type"),
    BodyTooLarge: (413, "invalid_request_error", "body_too_large"),
    errors.PromptTooLong: (400, "invalid_request_error", "context_length_exceeded"),
    errors.InvalidRequest: (400, "invalid_request_error", None),
    errors.AdapterCacheFull: (503, "server_error", "adapter_cache_full"),
    errors.AdapterUnavailable: (503, "server_error", "adapter_unavailable"),
    errors.AdapterDamaged: (503, "server_error", "adapter_damaged"),
    errors.AdapterRejected: (400, "invalid_request_error", "adapter_rejected"),
    errors.AdapterError: (400, "invalid_request_error", "adapter_error"),
    errors.AdapterExists: (400, "invalid_request_error", "adapter_exists"),
    errors.AdapterNotFound: (404, "invalid_request_error", "model_not_found"),
    errors.InvalidKey: (401, "authentication_error", "invalid_api_key"),
    errors.NotAllowed: (403, "permission_error", "not_allowed"),
    errors.BudgetSpent: (429, "insufficient_quota", "insufficient_quota"),
    errors.ClientOverLimit: (429, "rate_limit_error", "rate_limit_exceeded"),
    errors.SLOUnreachable: (503, "server_error", "slo_unreachable"),
    errors.ServerFull: (503, "server_error", "server_is_overloaded"),
    errors.EngineDead: (503, "server_error", "engine_dead"),
}
_INTERNAL = (500, "server_error", None)
_ANTHROPIC = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class ErrorDetail(msgspec.Struct):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None
    predicted_ttft_s: float | msgspec.UnsetType = msgspec.UNSET
    """With the code slo_unreachable: the predicted time from the request's arrival to its first token."""


class ErrorResponse(msgspec.Struct):
    """The body of every answer that is not a success."""

    error: ErrorDetail


def error_response(error: BaseException) -> Response:
    """OpenAI's error body with its status and headers."""
    return Response(msgspec.json.encode(body_of(error)), status_of(error), headers_of(error), "application/json")


def messages_error_response(error: BaseException) -> Response:
    """Anthropic's error body with the same status and headers."""
    told = body_of(error).error
    body = {"type": "error", "error": {"type": _ANTHROPIC.get(status_of(error), "api_error"), "message": told.message}}
    return Response(msgspec.json.encode(body), status_of(error), headers_of(error), "application/json")


def status_of(error: BaseException) -> int:
    """HTTP status of ``error``."""
    return _describe(error)[0]


def body_of(error: BaseException) -> ErrorResponse:
    """OpenAI's error body. What is not our own exception is not shown to callers."""
    _, kind, code = _describe(error)
    if not isinstance(error, EvenFlowError):
        return ErrorResponse(ErrorDetail("the server failed to answer this request; its log says why", kind))
    detail = ErrorDetail(clean(str(error)), kind, getattr(error, "param", None), code)
    if isinstance(error, errors.SLOUnreachable):
        detail.predicted_ttft_s = round(error.predicted_ttft_s, 3)
    return ErrorResponse(detail)


def headers_of(error: BaseException) -> dict[str, str]:
    """When to come back, and whether to: what the openai client reads before it retries."""
    if isinstance(error, errors.InvalidKey):
        return {"www-authenticate": "Bearer"}
    if isinstance(error, (errors.AdapterDamaged, errors.AdapterCacheFull, errors.AdapterUnavailable)):
        # It is being made again; others end; the host gets better.
        return {"retry-after": "1", "retry-after-ms": "1000"}
    if not isinstance(error, errors.Rejected):
        return {}
    if not math.isfinite(error.retry_after_s):
        return {"x-should-retry": "false"}
    wait_s = max(error.retry_after_s, 0.001)
    if isinstance(error, errors.BudgetSpent):  # clients would try again in vain, long before the month ends
        return {"retry-after": str(math.ceil(wait_s)), "x-should-retry": "false"}
    return {"retry-after": str(math.ceil(wait_s)), "retry-after-ms": str(math.ceil(wait_s * 1000))}


def error_of(output: RequestOutput) -> EvenFlowError:
    """The exception that an engine's output with ``error_type`` stands for."""
    kind = getattr(errors, output.error_type or "", EvenFlowError)
    if issubclass(kind, errors.InvalidRequest):
        return kind(output.error, output.param)
    if issubclass(kind, errors.SLOUnreachable):
        return kind(output.error, output.retry_after_s, output.predicted_ttft_s)
    if issubclass(kind, errors.Rejected):
        return kind(output.error, output.retry_after_s)
    if issubclass(kind, errors.AdapterRejected):
        return errors.AdapterError(output.error)
    return kind(output.error)


def clean(text: str) -> str:
    """``text`` as it may be sent: of bounded length, without lone surrogates."""
    if len(text) > LONGEST_MESSAGE:
        text = text[:LONGEST_MESSAGE] + " ..."
    return text.encode("utf-8", "replace").decode()


def _describe(error: BaseException) -> tuple[int, str, str | None]:
    for kind in type(error).__mro__:
        if kind in _STATUS:
            return _STATUS[kind]
    return _INTERNAL

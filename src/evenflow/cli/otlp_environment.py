"""Whether the environment asks for traces, in the variables that OpenTelemetry has for it."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping

log = logging.getLogger("evenflow.cli")

_EXPORTER = "opentelemetry.exporter.otlp.proto.http"


def endpoint_of_environment(environment: Mapping[str, str]) -> str:
    """The collector's address; empty if no traces are wanted, or if they cannot be sent, which is logged.

    The variables may have been set for another program: what they ask for in vain does not keep a server from starting.
    """
    full = environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")
    base = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    endpoint = full or (base.rstrip("/") + "/v1/traces" if base else "")
    if not endpoint or environment.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return ""
    name = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" if full else "OTEL_EXPORTER_OTLP_ENDPOINT"
    protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL") or ""
    if protocol not in ("", "http/protobuf"):
        log.warning("no traces: %s is set, for the protocol %s; allowed: http/protobuf", name, protocol)
        return ""
    if not _is_installed(_EXPORTER):
        log.warning("no traces: %s is set, and sending them needs the SDK: pip install 'evenflow[otel]'", name)
        return ""
    return endpoint


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


__all__ = ["endpoint_of_environment"]

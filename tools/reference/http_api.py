"""The reference of the HTTP interface: every route and every body, from the server's own OpenAPI document."""

from __future__ import annotations

from typing import Any, cast

from evenflow.serving.server.app import create_app
from evenflow.serving.server.server_config import ServerConfig
from reference.markdown import cell, code, page, table

INTRO = """\
Every route of the server and the fields of every body, from the same types that bodies are decoded
into. A running server has the document at `/openapi.json` and a page of it at `/docs`. Statuses and
error codes are explained in [Troubleshooting](../operate/troubleshooting.md)."""

Schema = dict[str, Any]


def document() -> Schema:
    """The OpenAPI document of a server; no engine is started for it."""
    nothing = cast(Any, None)
    return create_app(nothing, nothing, nothing, ServerConfig()).openapi()


def http_page() -> str:
    """The page: routes, then bodies by name."""
    spec = document()
    routes = [_route(path, method, operation) for path, method, operation in routes_of(spec)]
    schemas = spec["components"]["schemas"]
    bodies = [_body(name, schemas[name]) for name in sorted(schemas) if schemas[name].get("properties")]
    return page(
        "HTTP interface",
        INTRO,
        "## Routes\n\n" + table(["route", "what it does", "body", "answer", "refusals"], routes),
        "## Bodies",
        *bodies,
    )


def routes_of(spec: Schema) -> list[tuple[str, str, Schema]]:
    """(path, method, operation) of every route that the document names."""
    return [(path, method, operation) for path, methods in spec["paths"].items() for method, operation in methods.items()]


def _route(path: str, method: str, operation: Schema) -> list[str]:
    body = operation.get("requestBody", {}).get("content", {})
    answers = operation["responses"]
    refusals = ", ".join(status for status in sorted(answers) if status != "200")
    about = operation.get("description") or operation.get("summary") or ""
    return [code(f"{method.upper()} {path}"), cell(about), _types(body), _types(answers["200"].get("content", {})), refusals]


def _types(content: Schema) -> str:
    return ", ".join(_type(body["schema"]) if media == "application/json" else code(media) for media, body in content.items())


def _body(name: str, schema: Schema) -> str:
    required = schema.get("required", ())
    rows = [
        [code(field), _type(about), _default(field, about, required), cell(about.get("description", ""))]
        for field, about in schema["properties"].items()
    ]
    parts = [f"### {name}", cell(schema.get("description", "")), table(["field", "type", "default", "meaning"], rows)]
    return "\n\n".join(part for part in parts if part)


def _default(field: str, about: Schema, required: Any) -> str:
    if field in required:
        return "required"
    return code(about["default"]) if about.get("default") is not None else ""


def _type(schema: Schema) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(choice) for choice in schema["anyOf"] if choice.get("type") != "null"))
    if "enum" in schema:
        return " or ".join(code(value) for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}" if schema.get("items") else "list"
    return str(schema.get("type", "any"))

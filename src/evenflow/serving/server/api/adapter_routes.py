"""The routes for adapters: vLLM's and SGLang's calls, SageMaker's aliases, and a resource of our own.

Whoever changes or inspects adapters needs an administrator's key, once any key is configured.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from evenflow.base.errors import AdapterError, AdapterExists, AdapterNotFound, EvenFlowError, InvalidRequest
from evenflow.serving.client.messages import AdapterInfo
from evenflow.serving.server.api.endpoint import json_reply, read_admin_request, require_admin
from evenflow.serving.server.api.responses import AdapterCard, AdapterList, PassedOver, SGLangAnswer
from evenflow.serving.server.api.schema import CreateAdapterRequest, LoadLoraAdapterRequest, UnloadLoraAdapterRequest
from evenflow.serving.server.api.state import ServerState
from evenflow.serving.server.http.body_parsing import BodyParser
from evenflow.serving.server.http.openapi import documented

_REFUSALS = (400, 401, 403, 404, 408, 413, 415, 503)


def add_adapter_routes(app: FastAPI, state: ServerState) -> None:
    """Register the routes on ``app``."""
    rule = state.config.unknown_fields
    load_parser, unload_parser = (
        BodyParser(LoadLoraAdapterRequest, unknown_fields=rule),
        BodyParser(UnloadLoraAdapterRequest, unknown_fields=rule),
    )
    create_parser = BodyParser(CreateAdapterRequest, unknown_fields=rule)

    @app.post("/v1/load_lora_adapter", **documented(LoadLoraAdapterRequest, "text/plain", _REFUSALS))
    async def load_lora_adapter(request: Request) -> Response:
        """Register an adapter (vLLM's call)."""
        state.check_open()
        body = await read_admin_request(state, request, load_parser)
        name = await _load(state, body)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    @app.post("/v1/unload_lora_adapter", **documented(UnloadLoraAdapterRequest, "text/plain", _REFUSALS))
    async def unload_lora_adapter(request: Request) -> Response:
        """Forget an adapter; running requests end with it (vLLM's call)."""
        state.check_open()
        body = await read_admin_request(state, request, unload_parser)
        name = await _unload(state, body.lora_name, purge=body.purge_cache)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    @app.post("/v1/pin_lora_adapter", **documented(UnloadLoraAdapterRequest, "text/plain", _REFUSALS))
    async def pin_lora_adapter(request: Request) -> Response:
        """Load an adapter into the arena and keep it there (the body of vLLM's unload call)."""
        return await pin_by_body(request, True)

    @app.post("/v1/unpin_lora_adapter", **documented(UnloadLoraAdapterRequest, "text/plain", _REFUSALS))
    async def unpin_lora_adapter(request: Request) -> Response:
        """Let an adapter be evicted again (the body of vLLM's unload call)."""
        return await pin_by_body(request, False)

    @app.post(
        "/load_lora_adapter",
        **documented(LoadLoraAdapterRequest, SGLangAnswer, (400, 401, 403, 408, 413, 415, 503), failure=SGLangAnswer),
    )
    async def sglang_load(request: Request) -> Response:
        """Register an adapter (SGLang's call)."""
        state.check_open()
        body = await read_admin_request(state, request, load_parser)
        try:
            await _load(state, body)
        except (AdapterError, InvalidRequest) as error:
            return _sglang_answer(state, error)
        return _sglang_answer(state, None)

    @app.post(
        "/unload_lora_adapter",
        **documented(UnloadLoraAdapterRequest, SGLangAnswer, (400, 401, 403, 408, 413, 415, 503), failure=SGLangAnswer),
    )
    async def sglang_unload(request: Request) -> Response:
        """Forget an adapter (SGLang's call)."""
        state.check_open()
        body = await read_admin_request(state, request, unload_parser)
        try:
            await _unload(state, body.lora_name, purge=body.purge_cache)
        except (AdapterError, InvalidRequest) as error:
            return _sglang_answer(state, error)
        return _sglang_answer(state, None)

    @app.post("/adapters", **documented(CreateAdapterRequest, "text/plain", _REFUSALS))
    async def sagemaker_load(request: Request) -> Response:
        """Register an adapter (SageMaker's call)."""
        state.check_open()
        body = await read_admin_request(state, request, create_parser)
        name = await _load(state, LoadLoraAdapterRequest(lora_name=body.name, lora_path=body.src))
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    @app.delete("/adapters/{name:path}", **documented(None, "text/plain", _REFUSALS))
    async def sagemaker_unload(request: Request, name: str) -> Response:
        """Forget an adapter (SageMaker's call)."""
        state.check_open()
        require_admin(state, request)
        await _unload(state, name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    @app.get("/v1/adapters", **documented(None, AdapterList, (401, 403, 503)))
    async def list_adapters(request: Request) -> Response:
        """Every registered adapter, and those that still drain."""
        state.check_open()
        require_admin(state, request)
        await state.names.available()
        passed_over = [PassedOver(name, reason) for name, reason in sorted(state.names.passed_over.items())]
        return json_reply(AdapterList([_card(state, info) for info in await state.names.refresh()], passed_over))

    @app.post("/v1/adapters/{name:path}/pin", **documented(None, AdapterCard, _REFUSALS))
    async def pin(request: Request, name: str) -> Response:
        """Keep an adapter in the arena."""
        return await set_pinned(request, name, True)

    @app.post("/v1/adapters/{name:path}/unpin", **documented(None, AdapterCard, _REFUSALS))
    async def unpin(request: Request, name: str) -> Response:
        """Let an adapter be evicted again."""
        return await set_pinned(request, name, False)

    @app.delete("/v1/adapters/{name:path}", **documented(None, AdapterList, _REFUSALS))
    async def delete_adapter(request: Request, name: str) -> Response:
        """Forget an adapter; answers what is left. With ``?purge=true`` its converted rows are deleted too."""
        state.check_open()
        require_admin(state, request)
        await _unload(state, name, purge=_flag(request, "purge"))
        return json_reply(AdapterList([_card(state, info) for info in await state.names.refresh()]))

    async def pin_by_body(request: Request, is_pinned: bool) -> Response:
        state.check_open()
        body = await read_admin_request(state, request, unload_parser)
        if not body.lora_name:
            raise InvalidRequest("'lora_name' needs to be provided.", "lora_name")
        await state.names.pin(body.lora_name, is_pinned)
        return PlainTextResponse(
            f"Success: LoRA adapter '{body.lora_name}' {'pinned' if is_pinned else 'unpinned'} successfully."
        )

    async def set_pinned(request: Request, name: str, is_pinned: bool) -> Response:
        state.check_open()
        require_admin(state, request)
        return json_reply(_card(state, await state.names.pin(name, is_pinned)))


async def _load(state: ServerState, body: LoadLoraAdapterRequest) -> str:
    """Register, with vLLM's error texts."""
    name, path = body.lora_name, body.lora_path
    if not name or not path:
        raise InvalidRequest("Both 'lora_name' and 'lora_path' must be provided.", "lora_name" if not name else "lora_path")
    if "\0" in path:
        raise InvalidRequest("lora_path holds a null character", "lora_path")
    state.names.check_name(name)
    if name in state.names and not body.load_inplace:
        raise _already_loaded(name)
    if not state.names.is_address(path) and not _is_folder(path):
        raise AdapterNotFound(f"Loading lora {name} failed: No adapter found for {path}")
    try:
        await state.names.load(name, path, replace=bool(body.load_inplace), must_read=True)
    except AdapterNotFound:
        raise AdapterNotFound(f"Loading lora {name} failed: No adapter found for {path}") from None
    except AdapterExists:
        raise _already_loaded(name) from None
    if body.pinned:
        await state.names.pin(name, True)
    return name


async def _unload(state: ServerState, name: str | None, *, purge: bool = False) -> str:
    """Forget, with vLLM's error texts."""
    if not name:
        raise InvalidRequest("'lora_name' needs to be provided to unload a LoRA adapter.", "lora_name")
    try:
        await state.names.unload(name, purge=purge)
    except AdapterNotFound:
        raise AdapterNotFound(f"The lora adapter '{name}' cannot be found.") from None
    return name


def _flag(request: Request, name: str) -> bool:
    text = request.query_params.get(name, "false")
    if text not in ("true", "false"):
        raise InvalidRequest(f"{name} is {text[:80]!r}; allowed: true, false", name)
    return text == "true"


def _already_loaded(name: str) -> AdapterExists:
    return AdapterExists(
        f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, "
        "set 'load_inplace' to True."
    )


def _is_folder(path: str) -> bool:
    try:
        return Path(path).is_dir()
    except OSError:  # for example a name that is too long
        return False


def _sglang_answer(state: ServerState, error: EvenFlowError | None) -> Response:
    loaded = {name: adapter.info.digest for name, adapter in state.names.adapters.items()}
    answer = SGLangAnswer(error is None, str(error) if error is not None else "", loaded)
    return json_reply(answer, 200 if error is None else 400)


def _card(state: ServerState, info: AdapterInfo) -> AdapterCard:
    return AdapterCard(
        name=info.name,
        digest=info.digest,
        rank=info.lora_rank,
        bytes=info.size_bytes,
        num_pages=info.num_pages,
        state=info.state,
        pinned=info.is_pinned,
        in_flight=info.in_flight,
        num_loads=info.num_loads,
        target_modules=info.target_modules,
        base_model=info.base_model or None,
        warning=state.names.warning(info),
    )

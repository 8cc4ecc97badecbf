"""What the server needs of an engine and of a model's text side: the seams its tests stand in for.

``evenflow.serving.client.engine_client.EngineClient`` is the engine, ``evenflow.serving.text`` the text side.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol

from evenflow.base.errors import EvenFlowError
from evenflow.serving.client.messages import AdapterInfo, EngineStats, Ready, RequestOutput, Submit, SubmitAll, Usage


class Engine(Protocol):
    """The other end of an engine process, used inside one event loop. Raises evenflow.base.errors."""

    @property
    def is_alive(self) -> bool:
        """True until the engine has ended."""
        ...

    @property
    def trouble(self) -> str | None:
        """Why it cannot serve, or probably soon cannot, in words for a probe; None: all is well."""
        ...

    @property
    def is_ready(self) -> bool:
        """True once the engine is warm, until it has ended."""
        ...

    @property
    def info(self) -> Ready:
        """What the engine said when it was warm; only when ``is_ready``."""
        ...

    @property
    def stats(self) -> EngineStats:
        """The latest snapshot."""
        ...

    async def wait_until_ready(self) -> Ready:
        """Wait until the engine is warm. Raises what it died of."""
        ...

    async def wait_until_dead(self) -> EvenFlowError | None:
        """Wait until the engine has ended; the reason, or None after ``close``."""
        ...

    def submit(self, submit: Submit) -> AsyncIterator[RequestOutput]:
        """Run one request, up to the output with ``finish_reason`` or ``error_type``.

        Closing or cancelling the iterator before that aborts the request.
        """
        ...

    def submit_all(self, group: SubmitAll) -> list[AsyncIterator[RequestOutput]]:
        """Run several completions of one prompt; one iterator each, as ``submit`` gives."""
        ...

    def hear_aborted(self, listener: Callable[[str, Usage], object]) -> None:
        """From now on, tell ``listener`` (request id, what it took) of requests whose iterator was closed before its end.

        Some may never be told of: an engine may die, or may not have begun.
        """
        ...

    async def load_adapter(
        self,
        name: str,
        path: str,
        replace: bool = False,
        *,
        must_read: bool = False,
        boundary: str = "",
        client_id: str = "",
    ) -> list[AdapterInfo]:
        """Register the PEFT adapter in folder ``path``; returns what is known of that name.

        ``must_read``: look at what its files hold, even if their sizes and times say that it is known. ``boundary``: a
        folder inside which its links may lead, beside its own. ``client_id``: who asks for it; clients take turns.
        """
        ...

    async def combine_adapters(self, name: str, parts: Sequence[tuple[str, float]]) -> list[AdapterInfo]:
        """Register the weighted sum of registered adapters, (name, weight); returns what is known of ``name``."""
        ...

    async def unload_adapter(self, name: str, purge: bool = False) -> list[AdapterInfo]:
        """Forget ``name``, with ``purge`` its file in the adapter cache too; returns what still drains under it."""
        ...

    async def pin_adapter(self, name: str, is_pinned: bool) -> list[AdapterInfo]:
        """Keep the adapter in the arena, or let it be evicted again."""
        ...

    async def list_adapters(self) -> list[AdapterInfo]:
        """Every registered adapter, and those that still drain."""
        ...

    async def set_weights(
        self, weight_by_client: Mapping[str, float], tier_by_client: Mapping[str, str], weight_by_tier: Mapping[str, float]
    ) -> None:
        """Replace the own weights of clients that differ from 1, and the tiers."""
        ...

    async def close(self) -> None:
        """End the engine. Idempotent."""
        ...


class Tokenizer(Protocol):
    """Text to token ids and back. Called from several threads."""

    @property
    def config(self) -> Mapping[str, Any]:
        """What the model's tokenizer_config.json says."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of ``token_ids``."""
        ...

    def special_token_id(self, text: str) -> int | None:
        """Id of the special token written ``text``; None if there is none."""
        ...


class ChatTemplate(Protocol):
    """Messages to the text the model was trained to continue."""

    @property
    def source(self) -> str:
        """The template itself."""
        ...

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The prompt, special tokens included; ``variables`` are handed to the template.

        A message's content is a text, or a list of parts ``{"type": "text", "text": ...}``. With
        ``continue_final_message`` the last message's text is the end of the prompt.
        Raises InvalidRequest for messages the template refuses.
        """
        ...

    def knows_role(self, role: str) -> bool:
        """True if the template has something to write for messages of ``role``."""
        ...

    def reads(self, variable: str) -> bool:
        """True if the template reads the variable ``variable``."""
        ...

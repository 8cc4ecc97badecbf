"""From a body's prompt or messages to token ids. Long texts are tokenised on a thread, so that nobody waits."""

from __future__ import annotations

import asyncio
import keyword
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from evenflow.base.errors import InvalidRequest, PromptTooLong
from evenflow.serving.core.context_length import check_context_length
from evenflow.serving.server.api.schema import ROLES, ChatMessage, check_token_ids
from evenflow.serving.server.interfaces import ChatTemplate, Tokenizer
from evenflow.serving.text.tools.offered import check_calls, template_calls

INLINE_CHARACTERS = 4096
"""Up to here tokenising takes less than a few milliseconds and a thread would cost more than it saves."""
INLINE_TOKENS = 1024
"""The same for turning tokens into text."""
MOST_CHARACTERS_PER_TOKEN = 256
"""No vocabulary in use has longer tokens, so a text longer than this per token of context cannot fit."""

MOST_VARIABLE_BYTES = 65_536
"""Of chat_template_kwargs, as JSON."""

OWN_VARIABLES = frozenset({"messages", "add_generation_prompt", "tools", "documents", "self"})
"""Template variables that chat_template_kwargs may not set."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one completion continues."""

    token_ids: list[int]
    text: str | None = None
    """What the caller wrote, if it was a text."""


class PromptReader:
    """Turns bodies into prompts for one model. ``max_model_len`` in tokens."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None, max_model_len: int, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._max_model_len = max_model_len
        self._vocab_size = vocab_size

    async def from_text(self, text: str, param: str, *, add_special_tokens: bool = True) -> Prompt:
        """Tokenise one text. Raises InvalidRequest if it is empty, PromptTooLong if it cannot fit."""
        token_ids = await self.encode(text, param, add_special_tokens=add_special_tokens)
        return Prompt(self._checked(token_ids, param), text)

    def from_token_ids(self, token_ids: list[int], param: str) -> Prompt:
        """Take token ids as they are, once they have been checked."""
        self._checked(token_ids, param)
        check_token_ids(token_ids, self._vocab_size, param)
        return Prompt(token_ids)

    def check_size(self, prompt: str | list[str | int | list[int]], max_prompts: int) -> None:
        """Refuse what is far too long or too much by its length alone, before anybody looks into it."""
        if isinstance(prompt, str) or len(prompt) <= max_prompts:
            return
        if isinstance(prompt[0], int):
            self.check_fits(len(prompt), None, "prompt")
        else:
            raise InvalidRequest(f"prompt holds {len(prompt)} prompts; allowed in one request: {max_prompts}", "prompt")

    async def from_completion(self, entries: Sequence[str | list[int]], *, add_special_tokens: bool) -> list[Prompt]:
        """All prompts of a completion body, in order, once ``split_prompt`` has divided it."""
        prompts = []
        for entry in entries:
            if isinstance(entry, str):
                prompts.append(await self.from_text(entry, "prompt", add_special_tokens=add_special_tokens))
            else:
                prompts.append(self.from_token_ids(entry, "prompt"))
        return prompts

    async def from_messages(
        self,
        messages: Sequence[ChatMessage],
        *,
        add_generation_prompt: bool,
        variables: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Prompt:
        """Render a conversation with the model's template and tokenise it."""
        text = await self.render(messages, add_generation_prompt=add_generation_prompt, variables=variables, tools=tools)
        token_ids = await self.encode(text, "messages", add_special_tokens=False)
        return Prompt(self._checked(token_ids, "messages"), text)

    async def render(
        self,
        messages: Sequence[ChatMessage],
        *,
        add_generation_prompt: bool,
        variables: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """The conversation as the text that the model was trained to continue.

        ``variables``: for the template. ``tools``: in OpenAI's form, for the template too.
        """
        self._check_variables(variables or {})
        if self._template is None:
            raise InvalidRequest("this model has no chat template; use /v1/completions", "messages")
        plain = [_plain_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
        check_calls(plain)
        given = {**(variables or {}), **({"tools": list(tools)} if tools else {})}
        num_characters = sum(_num_characters(message["content"]) for message in plain)
        self._check_characters(num_characters, "messages")
        render = partial(self._template.render, plain, add_generation_prompt=add_generation_prompt, **given)
        return render() if num_characters <= INLINE_CHARACTERS else await asyncio.to_thread(render)

    async def encode(self, text: str, param: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of ``text``, however many. Raises PromptTooLong if it can be no prompt at all."""
        self._check_characters(len(text), param)
        if len(text) <= INLINE_CHARACTERS:
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return await asyncio.to_thread(self._tokenizer.encode, text, add_special_tokens=add_special_tokens)

    async def decode(self, token_ids: list[int], param: str) -> str:
        """Text of ``token_ids``, special tokens written out, however many. Raises InvalidRequest for one that is no token."""
        check_token_ids(token_ids, self._vocab_size, param)
        if len(token_ids) <= INLINE_TOKENS:
            return self._decode(token_ids)
        return await asyncio.to_thread(self._decode, token_ids)

    async def texts_of_tokens(self, token_ids: list[int]) -> list[str]:
        """Each token's own text."""
        return await asyncio.to_thread(lambda: [self._decode([token]) for token in token_ids])

    def first_token(self, prompt: Prompt) -> str:
        """Text of the prompt's first token."""
        return self._decode(prompt.token_ids[:1])

    def text_of(self, prompt: Prompt) -> str:
        """The prompt as text, for echo."""
        return prompt.text if prompt.text is not None else self._decode(prompt.token_ids)

    def check_fits(self, num_prompt_tokens: int, max_tokens: int | None, param: str) -> None:
        """Raise PromptTooLong unless the prompt and the output asked for (at least one token) fit the context."""
        check_context_length(num_prompt_tokens, max_tokens, self._max_model_len, param)

    @staticmethod
    def _check_variables(variables: Mapping[str, Any]) -> None:
        for name in variables:
            if not name.isidentifier() or keyword.iskeyword(name):
                raise InvalidRequest(
                    f"chat_template_kwargs sets {name[:40]!r}, which cannot name a variable", "chat_template_kwargs"
                )
            if name in OWN_VARIABLES:
                raise InvalidRequest(
                    f"chat_template_kwargs sets {name}, which has a field of its own or is not served", "chat_template_kwargs"
                )
        if variables and len(msgspec.json.encode(variables)) > MOST_VARIABLE_BYTES:
            raise InvalidRequest(
                f"chat_template_kwargs is too large; allowed: {MOST_VARIABLE_BYTES} bytes", "chat_template_kwargs"
            )

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)

    @staticmethod
    def _checked(token_ids: list[int], param: str) -> list[int]:
        if not token_ids:
            raise InvalidRequest(f"{param} is empty; allowed: one token or more", param)
        return token_ids

    def _check_characters(self, num_characters: int, param: str) -> None:
        most = MOST_CHARACTERS_PER_TOKEN * self._max_model_len
        if num_characters > most:
            raise PromptTooLong(
                f"This model's maximum context length is {self._max_model_len} tokens. However, {param} has "
                f"{num_characters} characters, more than {most}, which that many tokens can never hold: the prompt is too "
                f"long. Please reduce the length of {param}.",
                param,
            )


def split_prompt(prompt: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """One entry per prompt. Raises InvalidRequest for an empty list or a mix of token ids with anything else."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequest("prompt is an empty list; allowed: a text, token ids, or a list of either", "prompt")
    if all(isinstance(entry, int) for entry in prompt):
        return [prompt]  # type: ignore[list-item]
    if any(isinstance(entry, int) for entry in prompt):
        raise InvalidRequest(
            "prompt mixes token ids with other entries; allowed: a text, token ids, or a list of either", "prompt"
        )
    return list(prompt)  # type: ignore[arg-type]


def _num_characters(content: str | list[dict[str, str]]) -> int:
    return len(content) if isinstance(content, str) else sum(len(part["text"]) for part in content)


def _plain_message(message: ChatMessage, where: str) -> dict[str, Any]:
    if message.role not in ROLES:
        raise InvalidRequest(f"{where}.role is {message.role[:40]!r}; allowed: {', '.join(ROLES)}", f"{where}.role")
    if message.tool_calls and message.role != "assistant":
        raise InvalidRequest(f"{where}.tool_calls is given; allowed on messages of the assistant", f"{where}.tool_calls")
    content: Any = message.content
    if isinstance(content, list):
        for number, part in enumerate(content):
            place = f"{where}.content[{number}]"
            if part.type != "text":
                raise InvalidRequest(f"{place}.type is {part.type[:40]!r}; allowed: text", f"{place}.type")
            if part.text is None:
                raise InvalidRequest(f"{place}.text is missing; it is required", f"{place}.text")
        content = [{"type": "text", "text": part.text or ""} for part in content]
    if content is None:
        if message.role != "assistant":
            raise InvalidRequest(f"{where}.content is missing; it is required", f"{where}.content")
        content = ""
    role = "system" if message.role == "developer" else message.role
    plain: dict[str, Any] = {"role": role, "content": content}
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_calls:
        check_calls([{"role": "assistant", "tool_calls": message.tool_calls}])
        plain["tool_calls"] = template_calls(message.tool_calls)
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    if message.reasoning_content is not None and message.role == "assistant":
        plain["reasoning_content"] = message.reasoning_content
    return plain

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
from evenflow.serving.server.api.conversation import num_characters, plain_message
from evenflow.serving.server.api.sampling_fields import check_token_ids
from evenflow.serving.server.api.schema import TRUNCATION_SIDES, ChatMessage
from evenflow.serving.server.interfaces import ChatTemplate, Tokenizer
from evenflow.serving.text.tools.offered import check_calls

INLINE_CHARACTERS = 4096
"""Up to here tokenising takes less than a few milliseconds and a thread would cost more than it saves."""
INLINE_TOKENS = 1024
"""The same for turning tokens into text."""
MOST_CHARACTERS_PER_TOKEN = 256
"""No vocabulary in use has longer tokens, so a text longer than this per token of context cannot fit."""

MOST_VARIABLE_BYTES = 65_536
"""Of chat_template_kwargs, as JSON."""

OWN_VARIABLES = frozenset({"messages", "add_generation_prompt", "continue_final_message", "tools", "documents", "self"})
"""Template variables that chat_template_kwargs may not set."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one completion continues."""

    token_ids: list[int]
    text: str | None = None
    """What the caller wrote, if it was a text."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a chat template is given. Raises InvalidRequest for a last message that is both open and followed by another."""

    messages: Sequence[ChatMessage]
    add_generation_prompt: bool | None = None
    """None: yes, unless the last message is continued."""
    is_continued: bool = False
    """The last message stays open, for the model to continue."""
    variables: Mapping[str, Any] | None = None
    """For the template."""
    hints: Mapping[str, Any] | None = None
    """Variables too, for templates that read them; others never see them."""
    tools: Sequence[Mapping[str, Any]] = ()
    """In OpenAI's form, for the template too."""
    documents: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        if self.is_continued and self.add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message and add_generation_prompt are both true; allowed: one of them", "continue_final_message"
            )

    @property
    def adds_generation_prompt(self) -> bool:
        """True: the answer is a new message of the assistant's."""
        return not self.is_continued if self.add_generation_prompt is None else self.add_generation_prompt


@dataclass(frozen=True, slots=True)
class Truncation:
    """What stays of a prompt that is longer than it may be. Raises InvalidRequest, naming the field."""

    num_tokens: int | None = None
    """At most so many; -1: as many as fit; None: all, and a prompt that does not fit is refused."""
    side: str = "left"
    """What is cut away: ``left`` keeps the last tokens."""
    max_output_tokens: int | None = None
    """That must fit beside the prompt; None: one."""

    def __post_init__(self) -> None:
        if self.side not in TRUNCATION_SIDES:
            raise InvalidRequest(f"truncation_side is {self.side[:40]!r}; allowed: left, right", "truncation_side")
        if self.num_tokens == 0:
            raise InvalidRequest("truncate_prompt_tokens is 0; allowed: -1, or 1 and more", "truncate_prompt_tokens")

    def cut(self, token_ids: list[int], max_model_len: int) -> list[int]:
        """Return what stays. Raises InvalidRequest if that many tokens could never fit."""
        if self.num_tokens is None:
            return token_ids
        room = max_model_len - (self.max_output_tokens or 1)
        if self.num_tokens > room:
            raise InvalidRequest(
                f"truncate_prompt_tokens is {self.num_tokens}; allowed: at most {room}, so that the answer fits into the "
                f"{max_model_len} tokens of the context",
                "truncate_prompt_tokens",
            )
        num_kept = max(1, room) if self.num_tokens < 0 else self.num_tokens
        if len(token_ids) <= num_kept:
            return token_ids
        return token_ids[-num_kept:] if self.side == "left" else token_ids[:num_kept]


WHOLE = Truncation()
"""A prompt is taken as it is."""


class PromptReader:
    """Turns bodies into prompts for one model. ``max_model_len`` in tokens."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None, max_model_len: int, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._max_model_len = max_model_len
        self._vocab_size = vocab_size

    async def from_text(
        self, text: str, param: str, *, add_special_tokens: bool = True, truncation: Truncation = WHOLE
    ) -> Prompt:
        """Tokenise one text. Raises InvalidRequest if it is empty, PromptTooLong if it cannot fit."""
        token_ids = await self.encode(text, param, add_special_tokens=add_special_tokens)
        kept = truncation.cut(token_ids, self._max_model_len)
        return Prompt(self._checked(kept, param), text if kept is token_ids else None)

    def from_token_ids(self, token_ids: list[int], param: str, truncation: Truncation = WHOLE) -> Prompt:
        """Take token ids as they are, once they have been checked."""
        self._checked(token_ids, param)
        check_token_ids(token_ids, self._vocab_size, param)
        return Prompt(truncation.cut(token_ids, self._max_model_len))

    def check_size(self, prompt: str | list[str | int | list[int]], max_prompts: int) -> None:
        """Refuse what is far too long or too much by its length alone, before anybody looks into it."""
        if isinstance(prompt, str) or len(prompt) <= max_prompts:
            return
        if isinstance(prompt[0], int):
            self.check_fits(len(prompt), None, "prompt")
        else:
            raise InvalidRequest(f"prompt holds {len(prompt)} prompts; allowed in one request: {max_prompts}", "prompt")

    async def from_completion(
        self, entries: Sequence[str | list[int]], *, add_special_tokens: bool, truncation: Truncation = WHOLE
    ) -> list[Prompt]:
        """All prompts of a completion body, in order, once ``split_prompt`` has divided it."""
        prompts = []
        for entry in entries:
            if isinstance(entry, str):
                prompt = await self.from_text(entry, "prompt", add_special_tokens=add_special_tokens, truncation=truncation)
                prompts.append(prompt)
            else:
                prompts.append(self.from_token_ids(entry, "prompt", truncation))
        return prompts

    async def from_messages(
        self, turns: Conversation, *, add_special_tokens: bool = False, truncation: Truncation = WHOLE
    ) -> Prompt:
        """Render a conversation with the model's template and tokenise it."""
        text = await self.render(turns)
        token_ids = await self.encode(text, "messages", add_special_tokens=add_special_tokens)
        kept = truncation.cut(token_ids, self._max_model_len)
        return Prompt(self._checked(kept, "messages"), text if kept is token_ids else None)

    async def render(self, turns: Conversation) -> str:
        """The conversation as the text that the model was trained to continue. Raises InvalidRequest."""
        variables = turns.variables or {}
        self._check_variables(variables)
        template = self._template
        if template is None:
            raise InvalidRequest("this model has no chat template; use /v1/completions", "messages")
        if turns.documents and not template.reads("documents"):
            raise InvalidRequest("documents are given, and this model's chat template has no place for them", "documents")
        plain = [plain_message(message, f"messages[{i}]", template.knows_role) for i, message in enumerate(turns.messages)]
        check_calls(plain)
        given: dict[str, Any] = {**variables}
        given |= {name: value for name, value in (turns.hints or {}).items() if template.reads(name)}
        if turns.tools:
            given["tools"] = list(turns.tools)
        if turns.documents:
            given["documents"] = list(turns.documents)
        size = sum(num_characters(message["content"]) for message in plain)
        self._check_characters(size, "messages")
        render = partial(
            template.render,
            plain,
            add_generation_prompt=turns.adds_generation_prompt,
            continue_final_message=turns.is_continued,
            **given,
        )
        return render() if size <= INLINE_CHARACTERS else await asyncio.to_thread(render)

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

    def first_token(self, prompt: Prompt) -> tuple[int, str]:
        """The prompt's first token, and its text."""
        return prompt.token_ids[0], self._decode(prompt.token_ids[:1])

    def text_of(self, prompt: Prompt) -> str:
        """The prompt as text, for echo."""
        return prompt.text if prompt.text is not None else self._decode(prompt.token_ids)

    def check_fits(self, num_prompt_tokens: int, max_tokens: int | None, param: str) -> None:
        """Raise PromptTooLong unless the prompt and the output asked for (at least one token) fit the context."""
        check_context_length(num_prompt_tokens, max_tokens, self._max_model_len, param)

    def room_behind(self, prompt: Prompt) -> int:
        """Tokens that fit behind ``prompt``."""
        return self._max_model_len - len(prompt.token_ids)

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

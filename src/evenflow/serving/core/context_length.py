"""Does a prompt fit the model's context, with the output that is asked for? The one sentence that says it does not.

Clients recognise the sentence: its beginning is OpenAI's and vLLM's, "prompt is too long" is what others look for.
"""

from __future__ import annotations

from evenflow.base.errors import PromptTooLong


def check_context_length(num_prompt_tokens: int, num_output_tokens: int | None, max_model_len: int, param: str) -> None:
    """Raise PromptTooLong, naming ``param``, unless the prompt and its output fit ``max_model_len`` tokens.

    ``num_output_tokens`` None: as many as fit, which must be one at least.
    """
    wanted = num_prompt_tokens + (1 if num_output_tokens is None else num_output_tokens)
    if wanted <= max_model_len:
        return
    output = "one token of output at least" if num_output_tokens is None else f"{num_output_tokens} output tokens"
    raise PromptTooLong(
        f"This model's maximum context length is {max_model_len} tokens. However, you requested {output} and your prompt "
        f"contains {num_prompt_tokens} input tokens, {wanted} in all: the prompt is too long. Please reduce the length of "
        f"{param}{'' if num_output_tokens is None else ' or the number of output tokens'}.",
        param,
    )

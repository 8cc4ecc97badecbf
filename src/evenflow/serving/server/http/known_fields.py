"""Fields of bodies that are not served: those that change nothing, and those that would, with the values that do not.

What is in neither table and not served either is unknown, and refused unless the server was told to ignore it: it may be
another server's way to ask for another answer.
"""

from __future__ import annotations

from typing import Any

UNKNOWN_FIELDS = ("refuse", "ignore")
"""What a server may do with fields that nobody here knows."""

HARMLESS = frozenset(
    {
        # OpenAI's, for its own books and caches
        "metadata",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        # ids and tracing
        "request_id",
        "rid",
        "session_id",
        "trace_id",
        "x-request-id",
        # other servers' ways to say how, not what
        "cache_prompt",
        "data_parallel_rank",
        "id_slot",
        "include_reasoning",
        "keep_alive",
        "return_progress",
        "separate_reasoning",
        "slot_id",
        "stream_reasoning",
        "timings_per_token",
    }
)
"""Known fields that change no answer here."""

NOT_IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "functions": (None, []),
    "function_call": (None, "none"),
    "suffix": (None, ""),
    "best_of": (None, 1),
    "priority": (None, 0),
    "service_tier": (None, "auto", "default"),
    "reasoning_effort": (None, "none"),
    "verbosity": (None, "medium"),
    "store": (None, False),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
    "chat_template": (None,),
    "continue_final_message": (None, False),
    "documents": (None, []),
    "use_beam_search": (None, False),
    "length_penalty": (None, 1),
    "early_stopping": (None, False),
    "bad_words": (None, []),
    "allowed_token_ids": (None,),
    "truncate_prompt_tokens": (None,),
    "prompt_embeds": (None,),
    "logits_processors": (None, []),
    "spaces_between_special_tokens": (None, True),
    "return_tokens_as_token_ids": (None, False),
    "kv_transfer_params": (None,),
    "vllm_xargs": (None, {}),
    "mm_processor_kwargs": (None, {}),
    "echo": (None, False),
    "detokenize": (None, True),
    # SGLang's
    "stop_regex": (None, "", []),
    "no_stop_trim": (None, False),
    "custom_logit_processor": (None, ""),
    "return_hidden_states": (None, False),
    # llama.cpp's
    "lora": (None, []),
    "typical_p": (None, 1),
    "mirostat": (None, 0),
    "dry_multiplier": (None, 0),
    "xtc_probability": (None, 0),
    "n_probs": (None, 0),
    "repeat_penalty": (None, 1),
    "n_predict": (None,),
    # Ollama's
    "options": (None, {}),
    "format": (None, ""),
    "think": (None, False),
}
"""Field to the values it may hold all the same, because they ask for nothing."""

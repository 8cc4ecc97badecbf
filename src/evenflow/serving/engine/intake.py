"""What comes in becomes a request, or a refusal: the engine's checks of one message, without any state of its own."""

from __future__ import annotations

from evenflow.base.errors import EvenFlowError, InvalidRequest
from evenflow.serving.client.messages import RequestOutput, Submit
from evenflow.serving.core.request import AdapterDigest, ClientId, Request, RequestId


def make_request(
    message: Submit, digest: AdapterDigest | None, max_model_len: int, vocab_size: int, arrival_s: float
) -> Request:
    """The request that ``message`` asks for, served with the adapter ``digest``, if any.

    ``max_model_len`` bounds prompt and output together; whether they fit is the scheduler's check. Raises InvalidRequest
    for a token id outside the vocabulary.
    """
    prompt = message.prompt_token_ids
    if prompt and not (min(prompt) >= 0 and max(prompt) < vocab_size):
        raise InvalidRequest(f"the prompt has a token id {max(prompt, key=abs)}; allowed: 0 to {vocab_size - 1}", "prompt")
    room = max(1, max_model_len - len(prompt))  # a prompt that leaves no room is refused by the scheduler
    wanted = message.sampling.max_tokens
    sampling = message.sampling
    for name, token_ids in (
        ("logit_bias", [token_id for token_id, _ in sampling.logit_bias]),
        ("allowed_token_ids", sampling.allowed_token_ids or ()),
    ):
        if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
            raise InvalidRequest(f"{name} names token {max(token_ids, key=abs)}; allowed: 0 to {vocab_size - 1}", name)
    return Request(
        request_id=RequestId(message.request_id),
        client_id=ClientId(message.client_id),
        prompt_token_ids=prompt,
        sampling=message.sampling,
        arrival_s=arrival_s,
        adapter=digest,
        max_output_tokens=room if wanted is None else min(wanted, room),
        cache_salt=message.cache_salt,
        slo_ttft_s=message.slo_ttft_s,
    )


def refusal(request_id: str, error: EvenFlowError, *, param: str | None = None, retry_after_s: float = 0.0) -> RequestOutput:
    """The one output of a request that is refused; ``param`` names the field that is wrong, where one is."""
    return RequestOutput(
        request_id, error_type=type(error).__name__, error=str(error), param=param, retry_after_s=retry_after_s
    )


__all__ = ["make_request", "refusal"]

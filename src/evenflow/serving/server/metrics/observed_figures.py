"""Figures that the server observes while it answers: durations and sizes of requests, and how they ended."""

from __future__ import annotations

from evenflow.serving.server.metrics.figure import Figure, Kind

_SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
_CHOICES = (1, 2, 5, 10, 20, 50, 100)
_PREEMPTIONS = (0, 1, 2, 5, 10, 20, 50)
_TTFT_OF_ONE = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
"""Fewer buckets: there is one set per client and per adapter."""


def _histogram(name: str, help: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Figure:
    return Figure(name=name, kind=Kind.HISTOGRAM, help=help, labels=labels, buckets=buckets)


def _counter(name: str, help: str, labels: tuple[str, ...] = ()) -> Figure:
    return Figure(name=name, kind=Kind.COUNTER, help=help, labels=labels)


TIME_TO_FIRST_TOKEN = _histogram("vllm:time_to_first_token_seconds", "Arrival to first token.", _SECONDS)
TOKEN_GAP = _histogram("vllm:inter_token_latency_seconds", "Between two tokens of a request.", _GAPS)
TIME_PER_OUTPUT_TOKEN = _histogram(
    "vllm:request_time_per_output_token_seconds", "Decode time over output tokens after the first.", _GAPS
)
E2E = _histogram("vllm:e2e_request_latency_seconds", "Arrival to last token.", _SECONDS)
QUEUE_TIME = _histogram("vllm:request_queue_time_seconds", "Arrival to first admission.", _SECONDS)
INFERENCE_TIME = _histogram("vllm:request_inference_time_seconds", "Admission to last token.", _SECONDS)
PREFILL_TIME = _histogram("vllm:request_prefill_time_seconds", "Admission to first token.", _SECONDS)
DECODE_TIME = _histogram("vllm:request_decode_time_seconds", "First token to last token.", _SECONDS)
PROMPT_TOKENS = _histogram("vllm:request_prompt_tokens", "Prompt tokens of a request.", _TOKENS)
GENERATION_TOKENS = _histogram("vllm:request_generation_tokens", "Output tokens of a request.", _TOKENS)
MOST_GENERATION_TOKENS = _histogram(
    "vllm:request_max_num_generation_tokens", "Output tokens of a request, the most of its completions.", _TOKENS
)
PARAMS_N = _histogram("vllm:request_params_n", "n of a request.", _CHOICES)
PARAMS_MAX_TOKENS = _histogram("vllm:request_params_max_tokens", "max_tokens of a request.", _TOKENS)
NUM_PREEMPTIONS = _histogram("vllm:request_num_preemptions", "How often a request was preempted.", _PREEMPTIONS)
FINISHED = _counter("vllm:request_success", "Requests that ended, by reason.", ("finished_reason",))
REJECTIONS = _counter("vllm:admission_rejections", "Requests that were turned away, by reason.", ("reason",))
CLIENT_REJECTIONS = _counter("evenflow_client_rejections", "Requests turned away.", ("client", "reason"))
CLIENT_TTFT = _histogram("evenflow_client_time_to_first_token_seconds", "Arrival to first token.", _TTFT_OF_ONE, ("client",))
ADAPTER_TTFT = _histogram("evenflow_adapter_time_to_first_token_seconds", "Arrival to first token.", _TTFT_OF_ONE, ("adapter",))

OBSERVED_FIGURES = (
    TIME_TO_FIRST_TOKEN,
    TOKEN_GAP,
    TIME_PER_OUTPUT_TOKEN,
    E2E,
    QUEUE_TIME,
    INFERENCE_TIME,
    PREFILL_TIME,
    DECODE_TIME,
    PROMPT_TOKENS,
    GENERATION_TOKENS,
    MOST_GENERATION_TOKENS,
    PARAMS_N,
    PARAMS_MAX_TOKENS,
    NUM_PREEMPTIONS,
    FINISHED,
    REJECTIONS,
    CLIENT_REJECTIONS,
    CLIENT_TTFT,
    ADAPTER_TTFT,
)

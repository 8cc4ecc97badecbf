"""vLLM's own scheduler with ours mixed in, driven without a model: outputs are made up, everything else is real."""

from __future__ import annotations

import functools
from typing import Any

import torch
from environment import Environment
from vllm.config import CacheConfig, LoRAConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from evenflow.integrations.vllm import CLIENT_FIELD, FairScheduler

BLOCK_TOKENS = 4
LONGEST_TOKENS = 512


@functools.lru_cache
def a_config(max_num_seqs: int, budget: int, max_loras: int | None) -> VllmConfig:
    """A configuration that needs no device."""
    model = ModelConfig(model=str(Environment().model), dtype="bfloat16", seed=1, max_model_len=LONGEST_TOKENS)
    lora = None if max_loras is None else LoRAConfig(max_loras=max_loras, max_lora_rank=8, max_cpu_loras=64)
    return VllmConfig(
        model_config=model,
        lora_config=lora,
        scheduler_config=SchedulerConfig(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            max_model_len=LONGEST_TOKENS,
            enable_chunked_prefill=True,
            is_encoder_decoder=False,
        ),
        cache_config=CacheConfig(block_size=BLOCK_TOKENS, enable_prefix_caching=True),
    )


class RealDriver:
    """A scheduler at work. With ``is_async`` a step is planned before the last one's tokens are there, as in vLLM's engine."""

    def __init__(
        self,
        policy: str | None = "vtc",
        *,
        is_async: bool = True,
        num_blocks: int = 200,
        max_num_seqs: int = 8,
        budget: int = 64,
        max_loras: int | None = None,
        settings: dict[str, Any] | None = None,
        is_checked: bool = True,
    ) -> None:
        """``policy`` None: vLLM's own scheduler, to compare with."""
        config = a_config(max_num_seqs, budget, max_loras)
        config.scheduler_config.async_scheduling = is_async  # a CPU's configuration has it off
        config.cache_config.num_gpu_blocks = num_blocks
        config.additional_config = {"evenflow": {"policy": policy, **(settings or {})}} if policy else {}
        spec = FullAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=1, head_size=1, dtype=torch.float32)
        cache = KVCacheConfig(num_blocks=num_blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)])
        theirs = AsyncScheduler if is_async else Scheduler
        self.scheduler = (FairScheduler if policy else theirs)(
            vllm_config=config,
            kv_cache_config=cache,
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK_TOKENS,
            log_stats=True,
        )
        init_none_hash(sha256)
        self._hasher = get_request_block_hasher(BLOCK_TOKENS, sha256)
        self._in_flight: list[tuple[Any, ModelRunnerOutput]] = []
        self._depth = 2 if is_async else 1
        self._next = 0
        self._is_ours = policy is not None
        self._is_checked = is_checked and self._is_ours
        self.order: list[str] = []
        self.num_output_tokens: dict[str, int] = {}

    def add(
        self,
        client: str,
        prompt: int | list[int] = 10,
        output: int = 5,
        lora: int = 0,
        *,
        request_id: str | None = None,
        resumable: bool = False,
    ) -> Request:
        """A request; a second one with the id of a session that streams its input is that session's next turn."""
        if request_id is None:
            request_id = f"r{self._next}"
            self._next += 1
        tokens = [1000 + self._next] * prompt if isinstance(prompt, int) else list(prompt)
        request = Request(
            request_id=request_id,
            prompt_token_ids=tokens,
            sampling_params=SamplingParams(max_tokens=output, ignore_eos=True, extra_args={CLIENT_FIELD: client}),
            pooling_params=None,
            lora_request=LoRARequest(f"lora{lora}", lora, "/nowhere") if lora else None,
            block_hasher=self._hasher,
            resumable=resumable,
        )
        self.scheduler.add_request(request)
        return self.scheduler.requests.get(request_id, request)

    def step(self) -> None:
        """Plan a step; take the tokens of the one before, or of this one without overlap."""
        before = {request.request_id for request in self.scheduler.running}
        output = self.scheduler.schedule()
        self.order += [r.request_id for r in self.scheduler.running if r.request_id not in before]
        self._in_flight.append((output, self._made_up(output)))
        if len(self._in_flight) >= self._depth or not output.total_num_scheduled_tokens:
            self.take_output()
        self.check()

    def take_output(self) -> None:
        """The oldest step in flight comes back."""
        for outputs in self.scheduler.update_from_output(*self._in_flight.pop(0)).values():
            for output in outputs.outputs:
                self.num_output_tokens[output.request_id] = self.num_output_tokens.get(output.request_id, 0) + len(
                    output.new_token_ids
                )

    def abort(self, request_id: str) -> None:
        """The caller has gone."""
        self.scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)

    def check(self) -> None:
        """Every book against every other."""
        if self._is_checked:
            assert self.scheduler.waiting.num_faults == 0
            self.scheduler.check_integrity()

    def run(self, steps: int = 3000) -> None:
        """Until nothing is left."""
        for _ in range(steps):
            self.step()
            if not self.scheduler.get_num_unfinished_requests():
                while self._in_flight:
                    self.take_output()
                return
        raise AssertionError(f"{len(self.scheduler.requests)} requests were never served")

    def waiting_clients(self) -> set[str]:
        """Who has something waiting."""
        return {request.sampling_params.extra_args[CLIENT_FIELD] for request in self.scheduler.waiting}

    def _made_up(self, output: Any) -> ModelRunnerOutput:
        """One token for each request whose scheduled tokens reach its end."""
        ids = list(output.num_scheduled_tokens)
        sampled = []
        for request_id in ids:
            request = self.scheduler.requests[request_id]
            sampled.append([7] if not request.is_prefill_chunk else [])
        return ModelRunnerOutput(
            req_ids=ids, req_id_to_index={name: i for i, name in enumerate(ids)}, sampled_token_ids=sampled
        )

"""The flags of ``vllm serve`` that are no options here: which are taken without effect, which are refused, and why.

What a flag means here is judged by one question: would leaving it out change an answer, open a door, or lose
what its user counts on? If so it is refused, unless its value says what is done here anyway. All others are
taken, and the log names them once. Flags of vLLM that are options here stand nowhere in this file: their
options have vLLM's name, or an alias of that name. Read from vLLM 0.32; older ones that are still found in
scripts are here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

_NONE: Mapping[str, tuple[str, ...]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagGroup:
    """Flags that are judged for one reason. Names have underscores."""

    why: str
    """The reason: what is done here instead, or what is missing."""
    is_refused: bool
    switches: tuple[str, ...] = ()
    """Flags without a value, negated with ``--no-``. A refused one is refused only when it is switched on."""
    values: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: _NONE)
    """Flags with one value. Of a refused one, the values that say what is done here anyway, in lower case."""
    lists: tuple[str, ...] = ()
    """Flags with one value or more."""


def _ignored(why: str, *, switches: str = "", values: str = "", lists: str = "") -> FlagGroup:
    """Return a group of flags without effect; names are separated by spaces."""
    return FlagGroup(
        why=why,
        is_refused=False,
        switches=tuple(switches.split()),
        values=dict.fromkeys(values.split(), ()),
        lists=tuple(lists.split()),
    )


def _refused(why: str, *, switches: str = "", lists: str = "", **values: str) -> FlagGroup:
    """Return a group of refused flags; a keyword is a flag with the values that it may have, separated by spaces."""
    return FlagGroup(
        why=why,
        is_refused=True,
        switches=tuple(switches.split()),
        values={name: tuple(allowed.split()) for name, allowed in values.items()},
        lists=tuple(lists.split()),
    )


VLLM_FLAGS: tuple[FlagGroup, ...] = (
    _ignored("adapters are always served; name them with --adapters, --adapter-dir or over HTTP", switches="enable_lora"),
    _ignored(
        "adapters share the pages of one arena: any number of them runs in one batch, and idle ones wait on the disk",
        values="max_loras max_cpu_loras lora_extra_vocab_size long_lora_scaling_factors",
        switches="specialize_active_lora enable_lora_bias",
    ),
    _ignored("adapters are kept in the type that the model computes with", values="lora_dtype"),
    _ignored(
        "tools are always served, left out of the prompt where none may be called, and held to their schemas",
        switches="enable_auto_tool_choice exclude_tools_when_tool_choice_none",
        values="tool_parser_plugin tool_strict_level",
    ),
    _ignored(
        "thoughts are told apart wherever --reasoning-parser names their marks",
        switches="enable_reasoning",
        values="reasoning_parser_plugin reasoning_config",
    ),
    _ignored(
        "--log-requests writes a line for each request, --record-texts what was asked and answered",
        switches="enable_log_requests disable_log_requests enable_log_outputs enable_log_deltas log_error_stack",
        values="max_log_len",
    ),
    _ignored(
        "--no-log-requests says it, and probes are told at the level debug",
        switches="disable_uvicorn_access_log",
        values="disable_access_log_for_endpoints",
    ),
    _ignored(
        "figures are always measured, and given at /metrics",
        switches="disable_log_stats aggregate_engine_logging kv_cache_metrics cudagraph_metrics enable_mfu_metrics "
        "enable_layerwise_nvtx_tracing enable_logging_iteration_details enable_server_load_tracking "
        "enable_per_request_metrics jit_monitor_verbose",
        values="kv_cache_metrics_sample show_hidden_metrics_for_version custom_histogram_buckets jit_monitor_mode "
        "per_request_spec_decode_metrics",
    ),
    _ignored("every answer says it already", switches="enable_prompt_tokens_details enable_request_id_headers"),
    _ignored("log lines have two forms, by --log-format; --log-level says how many", values="logging_config log_config_file"),
    _ignored(
        "one process answers HTTP, and that is enough",
        switches="disable_frontend_multiprocessing",
        values="api_server_count",
    ),
    _ignored(
        "no cookies are used, and the server allows the methods and headers that it understands",
        switches="allow_credentials",
        values="allowed_methods allowed_headers",
    ),
    _ignored("the API page shows nothing that the manual does not", switches="disable_fastapi_docs enable_offline_docs"),
    _ignored("prompts are always computed in chunks beside running requests", switches="enable_chunked_prefill"),
    _ignored(
        "who is served next, and how much of a prompt at once, is the policy's and --max-batch-tokens' to say",
        switches="async_scheduling disable_async_output_proc multi_step_stream_outputs use_v2_block_manager "
        "scheduler_reserve_full_isl long_prefill_token_threshold_adaptive",
        values="long_prefill_token_threshold max_num_partial_prefills max_long_partial_prefills max_num_scheduled_tokens "
        "max_num_active_seqs num_scheduler_steps num_lookahead_slots scheduler_delay_factor stream_interval watermark "
        "prefill_schedule_interval preemption_mode max_paddings",
    ),
    _ignored(
        "one paged arena holds the KV cache, and preempted requests are computed again",
        switches="disable_hybrid_kv_cache_manager kv_sharing_fast_prefill swa_bounded_replay",
        values="swap_space prefix_caching_hash_algo prefix_cache_retention_interval prefix_match_unit num_gpu_blocks_override",
    ),
    _ignored(
        "windows of layers are honoured; --max-model-len keeps sequences inside one", switches="disable_sliding_window"
    ),
    _ignored(
        "kernels are chosen by --kernels, and products by the device",
        switches="disable_cascade_attn use_fp64_gumbel enable_flashinfer_autotune disable_custom_all_reduce numa_bind "
        "enable_cumem_allocator enable_shm_tensor_arena",
        values="attention_backend attention_config linear_backend moe_backend kernel_config ir_op_priority "
        "sparse_indexer_topk_backend gdn_prefill_backend kda_prefill_backend kda_decode_backend mamba_backend "
        "mamba_ssu_algorithm",
        lists="numa_bind_nodes numa_bind_cpus",
    ),
    _ignored(
        "decode steps are recorded as CUDA graphs where that helps; --enforce-eager says never",
        values="compilation_config optimization_level performance_mode max_cudagraph_capture_size cuda_graph_sizes "
        "max_seq_len_to_capture max_context_len_to_capture",
        lists="cudagraph_capture_sizes",
    ),
    _ignored("it would make answers faster, not other ones", values="speculative_config spec_method spec_model spec_tokens"),
    _ignored(
        "a model is a folder of this machine: nothing is downloaded",
        values="download_dir revision code_revision tokenizer_revision hf_token",
    ),
    _ignored(
        "safetensors are read page by page as the system sees fit",
        switches="use_tqdm_on_load",
        values="safetensors_load_strategy safetensors_prefetch_num_threads safetensors_prefetch_block_size "
        "max_parallel_loading_workers pt_load_map_location model_loader_extra_config",
        lists="ignore_patterns",
    ),
    _ignored(
        "no images, sound or video are served: a request that brings them gets 400",
        switches="trust_request_mm_kwargs language_model_only enable_mm_embeds mm_encoder_only interleave_mm_strings "
        "skip_mm_profiling disable_chunked_mm_input disable_mm_preprocessor_cache enable_multimodal_encoder_data_parallel "
        "mm_device_do_normalize enable_tower_connector_lora",
        values="limit_mm_per_prompt media_io_kwargs mm_processor_kwargs mm_processor_cache_gb mm_processor_cache_type "
        "mm_hasher_algorithm mm_shm_cache_max_object_size_mb mm_encoder_tp_mode mm_encoder_attn_backend "
        "mm_encoder_attn_dtype mm_encoder_fp8_scale_path mm_encoder_fp8_scale_save_path mm_encoder_fp8_scale_save_margin "
        "video_pruning_rate video_pruning_method mm_tensor_ipc mm_processor_device mm_ipc_gpu_memory_gb "
        "allowed_local_media_path default_mm_loras",
        lists="allowed_media_domains",
    ),
    _ignored(
        "experts are divided like other MLPs here, each over all ranks, and there are no state spaces and no diffusion",
        switches="enable_expert_parallel enable_eplb enable_ep_weight_filter enable_elastic_ep enable_dbo "
        "enable_mixed_moe_lora_format enable_moe_shared_loras enable_mamba_cache_stochastic_rounding "
        "enable_mamba_shared_prefix_checkpoint use_replayssm",
        values="eplb_config expert_placement_strategy all2all_backend ubatch_size dbo_decode_token_threshold "
        "dbo_prefill_token_threshold elastic_ep_max_dp_size mamba_cache_dtype mamba_ssm_cache_dtype mamba_block_size "
        "mamba_cache_mode mamba_cache_philox_rounds replayssm_buffer_len diffusion_config engram_config",
    ),
    _ignored(
        "it belongs to one of vLLM's own devices or parts",
        switches="cohere_is_reasoning_model enable_flash_late_interaction ray_workers_use_nsight fail_on_environ_validation "
        "enable_hc_sp enable_batch_sharded_sampling disable_nccl_for_dp_synchronization enable_nccl_comm_suspend "
        "allow_deprecated_quantization sleep_mode_offload_cudagraph engine_use_ray",
        values="cohere_format anthropic_disabled_thinking_effort fingerprint_mode fingerprint_value "
        "structured_outputs_config guided_decoding_backend profiler_config renderer_num_workers additional_config "
        "distributed_timeout_seconds cpu_distributed_timeout_seconds master_addr master_port data_parallel_address "
        "data_parallel_rpc_port data_parallel_backend data_parallel_supervisor_port dp_supervisor_probe_interval_s "
        "dp_supervisor_probe_timeout_s dp_supervisor_probe_failure_threshold dp_sync_interval dcp_comm_backend "
        "dcp_kv_cache_interleave_size cp_kv_cache_interleave_size offload_backend offload_group_size offload_num_in_group "
        "offload_prefetch_step kv_offloading_backend h11_max_incomplete_event_size h11_max_header_count "
        "max_lora_cls_labels aux_output_config ec_manager_config fault_tolerance_config watermark_config grpc_port",
        lists="offload_params cpu_offload_params sleep_preserve_parameter_names",
    ),
    _refused("no code that comes with a model is ever run", switches="trust_remote_code"),
    _refused(
        "no code of others is loaded into the server; put a proxy in front of it, or write a policy, a model or a kernel "
        "(see the Extend part of the manual)",
        lists="logits_processors",
        middleware="",
        worker_cls="auto",
        worker_extension_cls="",
        scheduler_cls="",
        io_processor_plugin="",
        tool_server="",
        distributed_executor_backend="mp uni",
    ),
    _refused("a request's own chat template is not run", switches="trust_request_chat_template"),
    _refused("answers have the role assistant", response_role="assistant"),
    _refused("the folder of the model says what it is", quantization_config="", hf_overrides="{}",
             model_class_overrides="{}", rope_scaling="", rope_theta="", hf_config_path="", config_format="auto hf",
             model_impl="auto vllm", load_format="auto safetensors", pooler_config=""),
    _refused("only text is generated", runner="auto generate", convert="auto none", task="auto generate"),
    _refused(
        "tokenizers are read from tokenizer.json as the folder has them",
        switches="skip_tokenizer_init tokens_only",
        tokenizer_mode="auto hf slow",
    ),
    _refused("keys and values are kept in the type that the model computes with", switches="calculate_kv_scales",
             lists="kv_cache_dtype_skip_layers", kv_cache_dtype="auto bfloat16"),
    _refused("weights and KV cache stay where the model is computed", cpu_offload_gb="0 0.0", kv_offloading_size=""),
    _refused(
        "one server is one engine; ranks of one machine share it with --tensor-parallel. Start several servers behind a "
        "balancer; their fairness can be shared through Redis",
        switches="headless worker_use_ray data_parallel_hybrid_lb data_parallel_external_lb "
        "data_parallel_multi_port_external_lb enable_fault_tolerance dcp_q_replicate",
        pipeline_parallel_size="1",
        data_parallel_size="1",
        data_parallel_size_local="1",
        data_parallel_rank="0",
        data_parallel_start_rank="0",
        decode_context_parallel_size="1",
        prefill_context_parallel_size="1",
        nnodes="1",
        node_rank="0",
        device_ids="",
    ),
    _refused(
        "nothing is exchanged with other engines",
        switches="enable_scale_out grpc",
        kv_transfer_config="",
        kv_events_config="",
        ec_transfer_config="",
        weight_transfer_config="",
    ),
    _refused("a trace has the spans of its request, not of the engine's steps", lists="collect_detailed_traces"),
    _refused(
        "it would change answers in a way that is not served",
        switches="enable_force_include_usage enable_return_routed_experts return_sampling_mask "
        "enable_trace_replay enable_prompt_embeds enable_sleep_mode enable_prompt_adapter",
        lists="lora_target_modules prompt_adapters",
        logprobs_mode="raw_logprobs",
        max_prompt_adapters="1",
        max_prompt_adapter_token="0",
    ),
    _refused("the queue is bounded by requests: --max-queue", max_num_queued_tokens=""),
    _refused("a certificate is read when the server starts", switches="enable_ssl_refresh"),
)  # fmt: skip

SHORT_FLAGS: Mapping[str, str] = MappingProxyType(
    {
        "api_server_count": "-asc",
        "pipeline_parallel_size": "-pp",
        "nnodes": "-n",
        "node_rank": "-r",
        "decode_context_parallel_size": "-dcp",
        "prefill_context_parallel_size": "-pcp",
        "data_parallel_size": "-dp",
        "data_parallel_rank": "-dpn",
        "data_parallel_start_rank": "-dpr",
        "data_parallel_size_local": "-dpl",
        "data_parallel_address": "-dpa",
        "data_parallel_rpc_port": "-dpp",
        "data_parallel_backend": "-dpb",
        "data_parallel_hybrid_lb": "-dph",
        "data_parallel_external_lb": "-dpe",
        "data_parallel_multi_port_external_lb": "-dpm",
        "enable_expert_parallel": "-ep",
        "speculative_config": "-sc",
        "diffusion_config": "-dc",
        "compilation_config": "-cc",
        "attention_config": "-ac",
        "optimization_level": "-O",
    }
)
"""vLLM's short spellings of these flags."""

__all__ = ["SHORT_FLAGS", "VLLM_FLAGS", "FlagGroup"]

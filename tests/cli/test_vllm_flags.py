"""Command lines that were written for ``vllm serve`` start this server, or are refused with the reason."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from evenflow.base.errors import ConfigError
from evenflow.cli.flexible_parser import plain_words
from evenflow.cli.main import build_parser
from evenflow.cli.serve import ServeCommand, read_command
from evenflow.cli.serve_options import ServeOptions
from evenflow.cli.vllm_flag_table import VLLM_FLAGS
from evenflow.cli.vllm_flags import FOREIGN_FLAGS, ignored_flags
from evenflow.serving.config.engine_config import EngineConfig
from evenflow.serving.config.option import options_by_name
from evenflow.serving.server.server_config import ServerConfig
from reference.vllm_flags import vllm_flags

FLAGS = list(vllm_flags().items())
OURS = options_by_name(ServeOptions, ServerConfig, EngineConfig)
WITH_AN_ARGUMENT_OF_ITS_OWN = {"config"}
PARSER = build_parser()


def command(line: str, environment: dict[str, str] | None = None) -> ServeCommand:
    args = PARSER.parse_args(shlex.split(line.replace("vllm serve", "serve")))
    args.log_level = args.log_level or "info"
    return read_command(args, environment or {})


@pytest.mark.parametrize(("name", "form"), FLAGS)
def test_every_flag_of_vllm_is_an_option_or_judged(name, form):
    if name in WITH_AN_ARGUMENT_OF_ITS_OWN:
        return
    assert (name in OURS) != (name in FOREIGN_FLAGS), f"{name} is an option here, or stands in the table: one of both"
    kind = OURS[name][1].kind if name in OURS else FOREIGN_FLAGS[name].kind
    assert kind.form == ("list" if name == "allowed_origins" else form), "a JSON list is one word of a list, too"


def test_the_table_names_every_flag_once_and_gives_reasons():
    names = [name for group in VLLM_FLAGS for names in (group.switches, group.values, group.lists) for name in names]
    assert len(names) == len(set(names))
    assert not set(names) & set(OURS)
    assert all(len(group.why) > 20 for group in VLLM_FLAGS)


@pytest.mark.parametrize("name", sorted(FOREIGN_FLAGS))
def test_flags_of_the_table_parse_and_are_judged(name):
    flag = FOREIGN_FLAGS[name]
    word = f"--{name.replace('_', '-')}"
    line = f"serve m {word}" + {"switch": "", "value": " 77", "list": " 77 78"}[flag.kind.form]
    if flag.group.is_refused:
        with pytest.raises(ConfigError) as refused:
            command(line)
        assert f"{word}" in str(refused.value)
        assert flag.group.why in str(refused.value)
    else:
        assert command(line).ignored == (f"{word} ({flag.group.why})",)


def test_a_refused_flag_may_say_what_is_done_anyway():
    for line in (
        "serve m --no-trust-remote-code --pipeline-parallel-size 1 -pp 1 -dp 1 --tokenizer-mode auto --kv-cache-dtype auto",
        "serve m --load-format safetensors --quantization None --distributed-executor-backend mp --max-logprobs 5",
    ):
        assert command(line).ignored == ()
    with pytest.raises(ConfigError) as refused:
        command("serve m --trust-remote-code --hf-overrides x -pp 2")
    for part in ("--trust-remote-code is refused", "--hf-overrides x is refused", "--pipeline-parallel-size 2 is refused"):
        assert part in str(refused.value), "all reasons are told at once"


def test_ignored_flags_are_told_apart():
    assert ignored_flags({}) == []
    lines = command("serve m --enable-lora --max-loras 4 --swap-space 16 -O3 --compilation-config.mode 3").ignored
    assert [line.split(" ")[0] for line in lines] == [
        "--enable-lora", "--max-loras", "--swap-space", "--compilation-config", "--optimization-level",
    ]  # fmt: skip


def test_lora_serving():
    """The LoRA page of vLLM's manual."""
    meant = command(
        "vllm serve meta-llama/Llama-2-7b-hf --enable-lora --lora-modules sql-lora=/loras/sql "
        '\'{"name": "b", "path": "~/b", "base_model_name": "meta-llama/Llama-2-7b"}\' --max-loras 4 --max-lora-rank 64 '
        "--max-cpu-loras 8 --fully-sharded-loras"
    )
    assert meant.engine.model == Path("meta-llama/Llama-2-7b-hf")
    assert meant.adapters == {"sql-lora": Path("/loras/sql"), "b": Path.home() / "b"}
    assert (meant.engine.max_lora_rank, meant.engine.lora_sharding) == (64, "sharded")
    listed = command('serve m --lora-modules \'[{"name": "a", "path": "/a"}, {"name": "b", "path": "/b"}]\'')
    assert listed.adapters == {"a": Path("/a"), "b": Path("/b")}
    for wrong in ("a", "=x", '{"name": "a"}', '{"name": "a", "path": "/a", "rank": 3}', '{"name": "a", "path": 3}', "[3]", "{"):
        with pytest.raises(ConfigError):
            command(f"serve m --lora-modules {shlex.quote(wrong)}")
    with pytest.raises(ConfigError, match="given twice"):
        command("serve m --lora-modules a=/a a=/b")


def test_engine_flags():
    meant = command(
        "vllm serve m --dtype half --gpu-memory-utilization 0.95 --max-model-len 32K --max-num-seqs 1024 --block-size 32 "
        "--tensor-parallel-size 4 --enforce-eager --no-enable-prefix-caching --enable-chunked-prefill --seed 42 --device cpu "
        "--tokenizer ~/tok --scheduling-policy fcfs"
    )
    assert meant.engine == EngineConfig(
        model="m", dtype="auto", gpu_memory_utilization=0.95, max_model_len=32768, max_num_seqs=1024, page_tokens=32,
        tensor_parallel=4, enforce_eager=True, enable_prefix_caching=False, seed=42, device="cpu",
        tokenizer=Path.home() / "tok", policy="fcfs", log_level="info",
    )  # fmt: skip
    assert meant.engine.max_batch_tokens == 1024, "a step holds every request that may run"
    assert command("serve m --max_num_batched_tokens 8192 --max_model_len 1k").engine.max_model_len == 1000
    assert command("serve m --max-model-len auto").engine.max_model_len is None
    assert command("serve m --max-model-len=-1").engine.max_model_len is None
    for text, read in (("bfloat16", "bfloat16"), ("float16", "auto"), ("float", "float32"), ("float32", "float32")):
        assert command(f"serve m --dtype {text}").engine.dtype == read
    with pytest.raises(ConfigError, match=r"gpu_memory_utilization is 0\.5; allowed: only without memory"):
        command("serve m --gpu-memory-utilization 0.5 --kv-cache-memory-bytes 2GiB")
    with pytest.raises(ConfigError, match="scheduling_policy is 'priority'; allowed: fcfs"):
        command("serve m --scheduling-policy priority")
    with pytest.raises(ConfigError, match="policy is 'vtc', and a flag of vLLM says 'fcfs'"):
        command("serve m --scheduling-policy fcfs --policy vtc")


def test_server_flags(tmp_path):
    for name in ("key.pem", "cert.pem", "ca.pem"):
        (tmp_path / name).touch()
    meant = command(
        f"vllm serve m --host 0.0.0.0 --port 8001 --served-model-name a b --root-path /v --uds {tmp_path}/s "
        f"--ssl-keyfile {tmp_path}/key.pem --ssl-certfile {tmp_path}/cert.pem --ssl-ca-certs {tmp_path}/ca.pem "
        "--ssl-cert-reqs 2 --uvicorn-log-level trace --max-num-queued-reqs 7 --shutdown-timeout 3 --disable-log-requests "
        "--sse-keep-alive-interval 5"
    )
    assert meant.server == ServerConfig(
        served_model_names=("a", "b"), model_names=("m", str(Path("m").resolve())), host="0.0.0.0", port=8001, max_queue=7,
        drain_timeout_s=3, keepalive_s=5, uds=tmp_path / "s", root_path="/v", ssl_keyfile=tmp_path / "key.pem",
        ssl_certfile=tmp_path / "cert.pem", ssl_ca_certs=tmp_path / "ca.pem", ssl_cert_reqs=2,
    )  # fmt: skip
    assert meant.engine.log_level == "debug"
    with pytest.raises(ConfigError, match="ssl_certfile is None; allowed: a file"):
        command(f"serve m --ssl-keyfile {tmp_path}/key.pem")
    with pytest.raises(ConfigError, match=r"ssl_keyfile is .*; allowed: a file that exists"):
        command("serve m --ssl-keyfile none.pem")


def test_keys_and_origins():
    assert command("serve m").server.api_keys == ()
    assert command("vllm serve m --api-key a").server.api_keys == ("a",)
    assert command("serve m --api-key a b --api-key c").server.api_keys == ("a", "b", "c")
    assert command("serve m", {"VLLM_API_KEY": "e"}).server.api_keys == ("e",)
    assert command("serve m --api-key a", {"VLLM_API_KEY": "e"}).server.api_keys == ("a",), "the command line wins"
    assert command("serve m", {"VLLM_API_KEY": ""}).server.api_keys == ()
    assert command("serve m --allowed-origins '[\"https://a.example\"]'").server.allowed_origins == ("https://a.example",)


def test_the_model(tmp_path):
    assert command("vllm serve --model ~/m").engine.model == Path.home() / "m"
    (tmp_path / "a.yaml").write_text("model: from-file\nenable-lora: true\nmax_loras: 4\ntrust-remote-code: false\n")
    assert command(f"serve --config {tmp_path}/a.yaml").engine.model == Path("from-file")
    assert command(f"serve given --config {tmp_path}/a.yaml").engine.model == Path("given")
    with pytest.raises(ConfigError, match="the model is given twice"):
        command("serve a --model b")
    (tmp_path / "a.yaml").write_text("model: m\ntrust-remote-code: true\n")
    with pytest.raises(ConfigError, match="--trust-remote-code is refused"):
        command(f"serve --config {tmp_path}/a.yaml")


def test_generation_config(tmp_path):
    (tmp_path / "generation_config.json").write_text(
        '{"temperature": 0.6, "top_p": 0.9, "max_new_tokens": 40, "top_k": 50, "presence_penalty": 0.5, "do_sample": false}'
    )
    of_file = {"temperature": 0.6, "top_p": 0.9, "max_tokens": 40, "top_k": 50, "presence_penalty": 0.5}
    assert command(f"serve {tmp_path}").server.sampling_defaults == of_file
    assert command(f"serve m --generation-config {tmp_path}").server.sampling_defaults == of_file
    assert command(f"serve {tmp_path} --generation-config vllm").server.sampling_defaults == {}
    line = f"serve {tmp_path} --override-generation-config"
    assert command(line + " '{\"temperature\": 0.1}'").server.sampling_defaults == of_file | {"temperature": 0.1}
    assert command(line + ".temperature 0.1").server.sampling_defaults == of_file | {"temperature": 0.1}
    assert command(
        f"serve {tmp_path} --generation-config vllm --override-generation-config.top_k 5"
    ).server.sampling_defaults == {"top_k": 5}
    with pytest.raises(ConfigError, match="override_generation_config sets do_sample; allowed: temperature"):
        command(f"serve {tmp_path} --override-generation-config.do_sample true")
    with pytest.raises(ConfigError, match="allowed: auto, none, vllm or a folder with that file"):
        command("serve m --generation-config nowhere")


def test_templates():
    meant = command(
        "serve m --chat-template ./t.jinja --chat-template-content-format openai "
        "--default-chat-template-kwargs '{\"enable_thinking\": false}'"
    )
    assert meant.options.chat_template == "./t.jinja"
    assert meant.options.chat_template_content_format == "openai"
    assert meant.options.default_chat_template_kwargs == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("words", "plain"),
    [
        (["--max_num_seqs", "3", "a_b"], ["--max-num-seqs", "3", "a_b"]),
        (["--max_num_seqs=3_0"], ["--max-num-seqs=3_0"]),
        (["--x.a", "1", "--y", "--x.b.c=t"], ["--x", '{"a": 1, "b": {"c": "t"}}', "--y"]),
        (["--x.k+", "v", "--x.k+=w,2"], ["--x", '{"k": ["v", "w", 2]}']),
        (["-tp", "2", "--", "--a_b"], ["-tp", "2", "--", "--a_b"]),
        (["--port=1.5"], ["--port=1.5"]),
    ],
)
def test_spellings(words, plain):
    assert plain_words(words) == plain
    assert plain_words(plain) == plain

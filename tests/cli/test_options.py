"""Command line, configuration file and ``LLM`` give the same settings; the command line wins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evenflow.base.errors import ConfigError
from evenflow.cli import generate, serve
from evenflow.cli.main import build_parser
from evenflow.cli.option_flags import options_given
from evenflow.cli.serve_options import ServeOptions
from evenflow.serving.config.engine_config import EngineConfig
from evenflow.serving.config.option import fields_given, options_of
from evenflow.serving.server.server_config import ServerConfig

GIVEN = {
    "dtype": ("float32", "float32"),
    "device": ("cpu", "cpu"),
    "memory": ("2GiB", 2 << 30),
    "page_tokens": ("32", 32),
    "max_num_seqs": ("8", 8),
    "max_batch_tokens": ("1k", 1000),
    "max_model_len": ("4K", 4096),
    "policy": ("fcfs", "fcfs"),
    "shed": ("paper", "paper"),
    "slo_ttft": ("2.5", 2.5),
    "max_lora_rank": ("64", 64),
    "max_adapters": ("9", 9),
    "adapter_cache": ("~/cache", Path.home() / "cache"),
    "adapter_cache_size": ("1GiB", 1 << 30),
    "adapter_eviction": ("cost-aware", "cost-aware"),
    "adapter_prefetch": ("0", 0),
    "kernels": ("torch", "torch"),
    "threads": ("2", 2),
    "tensor_parallel": ("2", 2),
    "lora_sharding": ("sharded", "sharded"),
    "compress": ("int8", "int8-g32"),
    "cache_dir": ("kernels", Path("kernels")),
    "seed": ("-7", -7),
    "stats_interval": ("0.5", 0.5),
    "watchdog": ("5", 5.0),
    "adapter_load_timeout": ("4", 4.0),
    "model": ("m", Path("m")),
    "tokenizer": ("t", Path("t")),
    "quantization": ("int8", "int8"),
    "log_level": ("critical", "error"),
    "log_format": ("json", "json"),
}
"""Options of the engine but switches: what is written, and what it means."""
SWITCHES = {"enable_prefix_caching": False, "enforce_eager": True}
INSTEAD = {"gpu_memory_utilization"}
"""Options that exclude one of those."""


def parsed(*words: str):
    return build_parser().parse_args(list(words))


def engine_of(*words: str) -> dict:
    return options_given(parsed(*words), *([ServeOptions, ServerConfig] if words[0] == "serve" else []), EngineConfig)[
        EngineConfig
    ]


def test_all_options_are_tried_here():
    declared = {one.name for one in options_of(EngineConfig).values() if one.has_flag and one.kind.form == "value"}
    assert declared == set(GIVEN) | INSTEAD


@pytest.mark.parametrize("command", ["serve", "generate"])
def test_command_line_file_and_keywords_mean_the_same(tmp_path, command):
    words = [word for name, (text, _) in GIVEN.items() for word in (f"--{name.replace('_', '-')}", text)]
    words += ["--no-enable-prefix-caching", "--enforce-eager"]
    by_flags = EngineConfig(**engine_of(command, *words))
    file = tmp_path / "options.json"
    written = {name: text for name, (text, _) in GIVEN.items()} | SWITCHES
    file.write_text(json.dumps({name.replace("_", "-"): value for name, value in written.items()}))
    by_file = EngineConfig(**engine_of(command, "--config", str(file)))
    by_keywords = EngineConfig(**fields_given(EngineConfig, written, "LLM"))
    assert by_flags == by_file == by_keywords
    for name, (_, value) in GIVEN.items():
        field = next(one.field for one in options_of(EngineConfig).values() if one.name == name)
        assert getattr(by_flags, field) == value, name
    assert (by_flags.enable_prefix_caching, by_flags.enforce_eager) == (False, True)


@pytest.mark.parametrize("command", ["serve", "generate"])
def test_what_is_not_said_is_the_default(command):
    assert engine_of(command) == {}
    assert engine_of(command, "m", "--seed", "3") == {"seed": 3}


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "a.yaml",
            "model: m\nport: 9000\nmax-num-seqs: 8\nmemory: 2GiB\nserved_model_name: [x, y]\nenable_prefix_caching: false\n",
        ),
        (
            "a.yml",
            '--port: 9000\nmodel: "m"\nmax_num_seqs: "8"\nmemory: 2147483648\nserved-model-name: [x, y]\n'
            "enable-prefix-caching: no\n",
        ),
        (
            "a.toml",
            'model = "m"\nport = 9000\nmax-num-seqs = 8\nmemory = "2GiB"\nserved-model-name = ["x", "y"]\n'
            "enable-prefix-caching = false\n",
        ),
    ],
)
def test_files(tmp_path, name, text):
    given = options_given(parsed("serve", "--config", write(tmp_path, name, text)), ServeOptions, ServerConfig, EngineConfig)
    assert ServerConfig(**given[ServerConfig]) == ServerConfig(port=9000, served_model_names=("x", "y"))
    assert EngineConfig(**given[EngineConfig]) == EngineConfig(
        model="m", max_num_seqs=8, memory_bytes=2 << 30, enable_prefix_caching=False
    )


def test_the_command_line_wins(tmp_path):
    file = write(tmp_path, "a.yaml", "port: 9000\nadapters: [a=b]\nhost: 0.0.0.0\nenable-prefix-caching: false\n")
    words = ("serve", "--config", file, "--port", "1", "--adapters", "c=d", "--enable-prefix-caching")
    given = options_given(parsed(*words), ServeOptions, ServerConfig, EngineConfig)
    assert given[ServerConfig] == {"port": 1, "host": "0.0.0.0"}
    assert given[ServeOptions] == {"adapters": ("c=d",)}
    assert given[EngineConfig] == {"enable_prefix_caching": True}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.yaml", "max-num-seq: 8\n", "a.yaml: evenflow serve has no option max_num_seq; did you mean max_num_seqs"),
        ("a.yaml", "weights: {a: 2}\n", "has no option weights"),
        ("a.yaml", "port: http\n", "a.yaml: port is 'http'; allowed: 0 to 65535"),
        ("a.yaml", "port: 1\nport: [\n", "a.yaml cannot be read: "),
        ("a.yaml", "- port\n", "holds no table"),
        ("a.yaml", "max-num-seqs: 1\nmax_num_seqs: 2\n", "gives max_num_seqs twice"),
        ("a.yaml", "max-batch-tokens: 1\nmax-num-batched-tokens: 2\n", "gives max_batch_tokens twice"),
        ("a.toml", "port = \n", "a.toml cannot be read: "),
        ("a.json", "{", "a.json cannot be read: "),
        ("a.ini", "port=1", "allowed: a file ending in .yaml, .yml, .toml, .json"),
    ],
)
def test_wrong_files(tmp_path, name, text, said):
    with pytest.raises(ConfigError) as failed:
        options_given(parsed("serve", "--config", write(tmp_path, name, text)), ServeOptions, ServerConfig, EngineConfig)
    assert said in str(failed.value)


def test_a_file_that_is_not_there_or_empty(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: "):
        engine_of("serve", "--config", str(tmp_path / "none.yaml"))
    assert engine_of("serve", "--config", write(tmp_path, "empty.yaml", "# nothing\n")) == {}


def test_a_wrong_value_is_told_with_the_usage(capsys):
    with pytest.raises(SystemExit) as ended:
        parsed("serve", "m", "--max-num-seqs", "0")
    assert ended.value.code == 2
    assert "argument --max-num-seqs: max_num_seqs is '0'; allowed: 1 to 4096" in capsys.readouterr().err


def test_generate_hands_every_option_to_the_engine(monkeypatch, tmp_path):
    class Seen(Exception):
        pass

    def make(model, adapters, **options):
        raise Seen(EngineConfig(**fields_given(EngineConfig, {"model": model, **options}, "LLM")))

    monkeypatch.setattr("evenflow.serving.client.llm.LLM", make)
    args = parsed("generate", "m", "--prompt", "x", "--shed", "paper", "--slo-ttft", "3", "--max-adapters", "5")
    args.log_level = "info"
    with pytest.raises(Seen) as seen:
        generate.run(args)
    assert seen.value.args[0] == EngineConfig(model="m", shed="paper", slo_ttft_s=3, max_adapters=5, log_level="info")


def test_without_a_model():
    args = parsed("serve", "--port", "0")
    args.log_level = "info"
    with pytest.raises(ConfigError, match="no model; give MODEL_DIR"):
        serve.run(args)

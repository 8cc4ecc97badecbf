"""The reference of the environment: the variables that are read, and those that the engine's process is given."""

from __future__ import annotations

import ast
from pathlib import Path

from evenflow.serving.client.environment import engine_environment
from evenflow.serving.config.engine_config import EngineConfig
from reference.markdown import cell, code, page, table

SOURCES = Path(__file__).parents[2] / "src" / "evenflow"

READ = {
    "XDG_CACHE_HOME": "Where compiled kernels, converted adapters and models of the benchmark are cached. Without it: "
    "`~/.cache`, below `HOME`.",
    "HOME": "See `XDG_CACHE_HOME`.",
    "VLLM_API_KEY": "A key of the operator's own, as `--api-key` takes it, which the list of processes does not show.",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "The collector that traces are sent to, its whole address; `--otlp-endpoint` goes "
    "before it. Of OpenTelemetry's other variables the SDK reads its own.",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "The same without the path `/v1/traces`.",
    "OTEL_TRACES_EXPORTER": "Another value than `otlp`: the two before have no meaning.",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "Another value than `http/protobuf`: they have none either.",
    "OTEL_EXPORTER_OTLP_PROTOCOL": "The same.",
    "OPENAI_API_KEY": "The key that `evenflow bench serve` shows to a server; `--api-key` goes before it.",
    "NUMBA_CACHE_DIR": "Where compiled kernels are kept; `--cache-dir` goes before it.",
    "TORCHELASTIC_RUN_ID": "Set by torchrun: `evenflow mcbench run` then is one of its ranks.",
    "TOKENIZERS_PARALLELISM": "Set to false for ranks of the benchmark, so that their tokenisers start no threads.",
    "GLOO_SOCKET_IFNAME": "The network interface of gloo's ranks. Without it: the loopback interface.",
}
"""Variables that EvenFlow reads itself, and what for."""

GIVEN = {
    "OMP_NUM_THREADS": "compute threads of one rank; `--threads` goes before it",
    "NUMBA_NUM_THREADS": "the same, for our kernels",
    "NUMBA_THREADING_LAYER": "one OpenMP runtime for torch and for our kernels",
    "OMP_WAIT_POLICY": "waiting threads sleep",
    "GOMP_SPINCOUNT": "how often a thread looks for work before it sleeps, some 20 us",
    "KMP_BLOCKTIME": "the same for Intel's runtime, in milliseconds",
    "MALLOC_ARENA_MAX": "few heaps, because threads of one process share little",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "matrix products that oneDNN keeps compiled, 0.7 MB each",
    "LRU_CACHE_CAPACITY": "the same, in torch's cache before it",
    "TOKENIZERS_PARALLELISM": "texts are tokenised on one thread",
    "NUMBA_CACHE_DIR": "where compiled kernels are kept",
}
"""Variables of the engine's process, and why they are set."""

INTRO = """\
EvenFlow takes its settings from flags, a configuration file and clients.toml. Environment variables
serve the libraries below it. A variable that is set where the server is started is left alone."""


def environment_page() -> str:
    """The page: what is read, then what the engine's process is given."""
    inherited = {"HOME": "~"}
    values = engine_environment(EngineConfig(model=Path("MODEL_DIR"), num_threads=2), inherited)
    values["NUMBA_CACHE_DIR"] = "~/.cache/evenflow/numba-pyVERSION"
    given = [[code(name), code(values[name]), cell(GIVEN[name])] for name in sorted(set(values) - set(inherited))]
    read = [[code(name), text] for name, text in READ.items()]
    return page(
        "Environment",
        INTRO,
        "## Variables that are read\n\n" + table(["variable", "what for"], read),
        "## Variables that the engine's process gets\n\nFor two compute threads; why there is such a process is told in "
        "[decision 0001](../design/0001-engine-process.md).\n\n" + table(["variable", "value", "why"], given),
    )


def variables_read() -> set[str]:
    """Names of the variables that the sources look up in an environment or set in one."""
    found = set()
    for file in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            found |= set(_looked_up(node))
    return found


def _looked_up(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Subscript):
        owner, key = node.value, node.slice
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
        owner, key = node.func.value, node.args[0]
    elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In):
        owner, key = node.comparators[0], node.left
    else:
        return []
    is_environment = ast.unparse(owner) in ("os.environ", "environ", "environment", "inherited")
    is_name = isinstance(key, ast.Constant) and isinstance(key.value, str) and key.value.isupper()
    return [key.value] if is_environment and is_name else []  # type: ignore[attr-defined]

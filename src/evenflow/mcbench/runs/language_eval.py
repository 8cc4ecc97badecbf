"""What compressed sums do to the loss of a trained language model: evaluated only, token by token, nothing is trained.

The model's own tokenizer makes the tokens. Virtual ranks in one process give the bits of real ones. Every compressor sees the
same windows of text, so differences to the dense model are paired window by window.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from evenflow.base.errors import ConfigError, ModelError, NonFiniteInput
from evenflow.comm import get_compressor
from evenflow.mcbench.names import DEFAULT_LAYERS, MODELS
from evenflow.mcbench.runs.benchmark_models import load_model
from evenflow.mcbench.runs.compute_threads import compute_threads
from evenflow.mcbench.runs.precision import Precision, precision
from evenflow.mcbench.runs.run_versions import versions
from evenflow.mcbench.split.attach import compression_of, emulate_model
from evenflow.mcbench.tasks.model_folder import load_tokenizer
from evenflow.mcbench.tasks.scores import mean_and_interval
from evenflow.mcbench.tasks.token_text import read_text, token_windows

DEFAULT_EVALUATED = (
    "bf16",
    "int8-g32",
    "int6-g32",
    "int4-g32",
    "hadamard-int4",
    "outlier-int4",
    "fp8-g128",
    "mxfp8",
    "mxfp4",
    "q8",
    "q4",
    "topk:0.1",
    "spike-int3",
    "spike-int2",
)
"""What is evaluated where nothing is named."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageEval:
    """One evaluation as a value. Raises ConfigError or RegistryError for what cannot work."""

    model: str
    """A local folder with a causal language model and its tokenizer."""
    text: str
    """A UTF-8 text file."""
    tp: int = 2
    compress: tuple[str, ...] = DEFAULT_EVALUATED
    """SPECs, ``site=compressor[/transport]; ...``, or compressors alone, which then stand at ``tp.forward``."""
    layers: str = DEFAULT_LAYERS
    modules: str = ".*"
    dtype: str = "bf16"
    length: int = 256
    """Tokens of a window: the context that a prediction sees at most."""
    tokens: int = 8192
    """Tokens evaluated, whole windows."""
    batch: int = 4
    """Windows of one forward call. A compressor sees them as one tensor, as in training or prefill."""
    threads: int = 1

    def __post_init__(self) -> None:
        if self.model in MODELS:
            raise ConfigError(f"{self.model} is a built-in model without training; allowed: a local folder of a trained model")
        for name, least in (("tp", 2), ("length", 2), ("tokens", self.length), ("batch", 1), ("threads", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed: {least} or more")
        precision(self.dtype)
        for spec in self.compress:
            rule = _rule(spec)
            sites = {part.partition("=")[0].strip().split(".")[0] for part in rule.split(";") if part.strip()}
            if sites - {"tp"}:
                raise ConfigError(
                    f"{spec}: rules for {', '.join(sorted(sites - {'tp'}))}; allowed in an evaluation: tp.forward"
                )
            for part in rule.split(";"):
                if get_compressor(part.partition("=")[2].rpartition("/")[0] or part.partition("=")[2]).is_learned:
                    raise ConfigError(f"{spec} is trained with the model, and an evaluation trains nothing; allowed: others")


def _rule(spec: str) -> str:
    """Return a SPEC for what may be a compressor's name alone."""
    return spec if "=" in spec else f"tp.forward={spec}"


def evaluate_language(config: LanguageEval, progress: Progress = lambda text: None) -> dict[str, Any]:
    """Return losses in nats per token: of the model in one process, split without compression, and with each compressor.

    Raises ModelError if the uncompressed split model does not agree with the single process within its dtype's tolerance,
    ConfigError for a text that is too short. A compressor that refuses a tensor (NaN, or beyond its range) has a row with
    ``error`` and no loss.
    """
    text = read_text(config.text)
    windows = token_windows(load_tokenizer(config.model), text, config.length, config.tokens // config.length)
    chosen = precision(config.dtype)
    digest = hashlib.sha256(text.encode()).hexdigest()

    def load() -> nn.Module:
        model = load_model(config.model, "language", 0).to(chosen.weights).eval()
        most = getattr(model.config, "max_position_embeddings", None)
        if isinstance(most, int) and config.length > most:
            raise ConfigError(f"windows of {config.length} tokens; the model's context holds {most}")
        return model

    with compute_threads(config.threads), torch.no_grad():
        single = load()
        first = windows[: config.batch]
        expected = chosen.logits(single, {"input_ids": first})
        alone = window_losses(single, windows, config.batch, chosen)
        del single
        progress(f"single process: {alone.mean():.4f} nats per token over {windows.numel()} tokens")
        dense = emulate_model(load(), config.tp, "none", config.layers, config.modules).eval()
        error = float((chosen.logits(dense, {"input_ids": first}) - expected).abs().max() / expected.abs().max())
        if not error <= chosen.tolerance:
            raise ModelError(
                f"parity: the uncompressed split model differs from the single one by {error:.1e} in {config.dtype}; allowed: "
                f"{chosen.tolerance:.0e}"
            )
        base, dense_bytes = _measured(dense, windows, config.batch, chosen)
        del dense
        rows = [_row("none", base, base, dense_bytes, dense_bytes, windows)]
        progress(_line(rows[-1]))
        for spec in config.compress:
            if spec == "none":
                continue
            model = emulate_model(load(), config.tp, _rule(spec), config.layers, config.modules).eval()
            try:
                losses, sent = _measured(model, windows, config.batch, chosen)
            except NonFiniteInput as refused:
                rows.append({"spec": spec, "error": str(refused)})
            else:
                rows.append(_row(spec, losses, base, sent, dense_bytes, windows))
            progress(_line(rows[-1]))
            del model
    return {
        "evaluation": "language",
        "parameters": {**asdict(config), "model": Path(config.model).name, "text": Path(config.text).name},
        "text_sha256": digest,
        "tokens": windows.numel(),
        "single_loss": float(alone.mean()),
        "parity": error,
        "rows": rows,
        "versions": versions(),
    }


def window_losses(model: nn.Module, windows: Tensor, batch: int, chosen: Precision) -> Tensor:
    """Return the mean next-token loss in nats of each window, fp64 [windows]. ``windows`` is [windows, length] int64."""
    losses = []
    for part in windows.split(batch):
        logits = chosen.logits(model, {"input_ids": part})[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="none")
        losses.append(loss.view(len(part), -1).double().mean(dim=1))
    return torch.cat(losses)


def _measured(model: nn.Module, windows: Tensor, batch: int, chosen: Precision) -> tuple[Tensor, float]:
    """Return the windows' losses, and the bytes that one rank sends for them."""
    ledger = compression_of(model).ledger
    ledger.clear()
    losses = window_losses(model, windows, batch, chosen)
    ledger.check_integrity()
    return losses, sum(entry.counted for entry in ledger.by_site.values())


def _row(spec: str, losses: Tensor, base: Tensor, sent: float, dense: float, windows: Tensor) -> dict[str, Any]:
    difference, half = mean_and_interval((losses - base).tolist())
    loss = float(losses.mean())
    return {
        "spec": spec,
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "difference": difference,
        "interval": half,
        "bytes_per_token": sent / windows.numel(),
        "bytes_share": sent / dense,
    }


def _line(row: Mapping[str, Any]) -> str:
    if "error" in row:
        return f"{row['spec']:<16} refused: {row['error']}"
    spread = f" ± {row['interval']:.4f}" if row["interval"] is not None else ""
    return (
        f"{row['spec']:<16} {row['loss']:.4f}  {row['difference']:+.4f}{spread}  {100 * row['bytes_share']:.0f} % of the bytes"
    )


def table_of(result: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Return (headings, rows) of an evaluation's table, from the smallest change of the loss to the largest."""
    good = sorted((row for row in result["rows"] if "error" not in row), key=lambda row: abs(row["difference"]))
    rows: list[list[Any]] = [
        [r["spec"], f"{r['loss']:.4f}", f"{r['difference']:+.4f}", _spread(r), f"{100 * r['bytes_share']:.1f} %"] for r in good
    ]
    rows += [[row["spec"], None, None, None, row["error"]] for row in result["rows"] if "error" in row]
    return ["compressor", "nats per token", "against dense", "± 95 %", "bytes / dense"], rows


def _spread(row: Mapping[str, Any]) -> str | None:
    return None if row["interval"] is None else f"{row['interval']:.4f}"

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


def evaluate_language(
    config: LanguageEval,
    progress: Progress = lambda text: None,
    before: Mapping[str, Any] | None = None,
    keep: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Return losses in nats per token: of the model in one process, split without compression, and with each compressor.

    ``keep`` is told the result so far after every compressor, and ``before`` is such a result of the same evaluation: what has
    a row there is not evaluated again. Raises ModelError if the uncompressed split model does not agree with the single process
    within its dtype's tolerance, ConfigError for a text that is too short or a ``before`` of another evaluation. A compressor
    that refuses a tensor (NaN, or beyond its range) has a row with ``error`` and no loss.
    """
    text = read_text(config.text)
    windows = token_windows(load_tokenizer(config.model), text, config.length, config.tokens // config.length)
    chosen = precision(config.dtype)
    result: dict[str, Any] = {
        "evaluation": "language",
        "parameters": {**asdict(config), "model": Path(config.model).name, "text": Path(config.text).name},
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "tokens": windows.numel(),
    }
    if before is not None:
        _check_same(result, before)

    def load() -> nn.Module:
        model = load_model(config.model, "language", 0).to(chosen.weights).eval()
        most = getattr(model.config, "max_position_embeddings", None)
        if isinstance(most, int) and config.length > most:
            raise ConfigError(f"windows of {config.length} tokens; the model's context holds {most}")
        return model

    def split(rule: str) -> nn.Module:
        return emulate_model(load(), config.tp, rule, config.layers, config.modules).eval()

    with compute_threads(config.threads), torch.no_grad():
        if before is None:
            result |= _baseline(load, split, windows, config, progress)
        else:
            result |= {name: before[name] for name in ("single_loss", "parity", "rows")}
        result["versions"] = versions()
        keep(result)
        dense = result["rows"][0]
        base = torch.tensor(dense["window_losses"], dtype=torch.float64)
        for spec in config.compress:
            if spec in {row["spec"] for row in result["rows"]}:
                continue
            try:
                losses, sent = _measured(split(_rule(spec)), windows, config.batch, chosen)
            except NonFiniteInput as refused:
                row: dict[str, Any] = {"spec": spec, "error": str(refused)}
            else:
                row = _row(spec, losses, base, sent, dense["bytes_per_token"], windows)
            result["rows"] = [*result["rows"], row]
            progress(_line(row))
            keep(result)
    return result


def _check_same(result: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Raise ConfigError unless ``before`` is an evaluation of the same model on the same text in the same way."""
    for name in ("evaluation", "text_sha256", "tokens"):
        if before.get(name) != result[name]:
            raise ConfigError(f"the file is of another evaluation: its {name} is {before.get(name)}, here {result[name]}")
    for name, value in result["parameters"].items():
        if name != "compress" and before["parameters"].get(name) != value:
            found = before["parameters"].get(name)
            raise ConfigError(f"the file is of another evaluation: its {name} is {found}, here {value}")


def _baseline(
    load: Callable[[], nn.Module],
    split: Callable[[str], nn.Module],
    windows: Tensor,
    config: LanguageEval,
    progress: Progress,
) -> dict[str, Any]:
    """Evaluate the model in one process and split without compression, and compare both. See ``evaluate_language``."""
    chosen, first = precision(config.dtype), {"input_ids": windows[: config.batch]}
    model = load()
    expected = chosen.logits(model, first)
    alone = window_losses(model, windows, config.batch, chosen)
    progress(f"single process: {alone.mean():.4f} nats per token over {windows.numel()} tokens")
    model = split("none")
    error = float((chosen.logits(model, first) - expected).abs().max() / expected.abs().max())
    if not error <= chosen.tolerance:
        raise ModelError(
            f"parity: the uncompressed split model differs from the single one by {error:.1e} in {config.dtype}; allowed: "
            f"{chosen.tolerance:.0e}"
        )
    losses, sent = _measured(model, windows, config.batch, chosen)
    row = _row("none", losses, losses, sent, sent / windows.numel(), windows)
    progress(_line(row))
    return {"single_loss": float(alone.mean()), "parity": error, "rows": [row]}


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
    """Return what a compressor did. ``dense``: bytes that a rank sends for a token without it."""
    difference, half = mean_and_interval((losses - base).tolist())
    loss = float(losses.mean())
    return {
        "spec": spec,
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "difference": difference,
        "interval": half,
        "bytes_per_token": sent / windows.numel(),
        "bytes_share": sent / windows.numel() / dense,
        "window_losses": losses.tolist(),
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

"""Scores of predictions, with the definitions of the GLUE benchmark; numpy only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from evenflow.mcbench.tasks.task import IGNORED, Task


def loss_of(task: Task, logits: Tensor, labels: Tensor) -> Tensor:
    """Return the training loss: next token, hidden words, regression, or classification."""
    if task.kind == "language":
        return cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1))
    if task.kind == "masked":
        return cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    if task.is_regression:
        return mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
    return cross_entropy(logits, labels)


def scores(task: Task, logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return every metric of the task, and the loss, over all test examples."""
    result = {"loss": float(loss_of(task, logits, labels))}
    if task.kind in ("language", "masked"):
        return result
    if task.is_regression:
        predictions = logits.squeeze(-1).double().numpy()
    else:
        predictions = logits.argmax(-1).numpy()
    truth = labels.numpy()
    for name in task.metrics:
        result[name] = METRICS[name](predictions, truth)
    return result


def accuracy(predictions: np.ndarray, truth: np.ndarray) -> float:
    """Return the share of equal labels."""
    return float((predictions == truth).mean())


def f1(predictions: np.ndarray, truth: np.ndarray) -> float:
    """Return F1 of label 1; 0 if it is never predicted nor true."""
    hits = float(((predictions == 1) & (truth == 1)).sum())
    total = float((predictions == 1).sum() + (truth == 1).sum())
    return 2 * hits / total if total else 0.0


def matthews(predictions: np.ndarray, truth: np.ndarray) -> float:
    """Return Matthews' correlation of two binary labellings; 0 if one of them is constant."""
    return pearson(predictions.astype(float), truth.astype(float))


def pearson(predictions: np.ndarray, truth: np.ndarray) -> float:
    """Return Pearson's correlation; 0 if one side is constant."""
    p, t = predictions - predictions.mean(), truth - truth.mean()
    norm = float(np.sqrt((p * p).sum() * (t * t).sum()))
    return float((p * t).sum()) / norm if norm else 0.0


def spearman(predictions: np.ndarray, truth: np.ndarray) -> float:
    """Return Spearman's rank correlation, ties at their mean rank."""
    return pearson(_ranks(predictions), _ranks(truth))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + 1 + ends) / 2)[inverse]


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}


def headline(task: Task, result: dict[str, float]) -> float:
    """Return the metric a run is judged by."""
    return result[task.metrics[0]]


def mean_and_interval(values: list[float]) -> tuple[float, float | None]:
    """Return the mean and the half width of its 95 % interval (Student's t); None for fewer than two values."""
    data = torch.tensor(values, dtype=torch.float64)
    if len(values) < 2:
        return float(data.mean()), None
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * float(data.std()) / len(values) ** 0.5
    return float(data.mean()), half


_SAME = (
    *("task", "model", "tp", "pp", "dp", "hidden", "num_layers", "heads"),
    *("steps", "batch", "rate", "link", "emulate", "pretrain"),
)


_ABSENT = {"dp": 1}
"""What results from before a field existed had."""


def baseline_key(result: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what a result must have in common with a dense one to be compared with it."""
    return tuple(result["parameters"].get(name, _ABSENT.get(name)) for name in _SAME)

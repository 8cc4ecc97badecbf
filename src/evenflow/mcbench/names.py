"""The names a user may give: models, tasks, sites, suites. Without torch, so that a list of them is instant."""

from __future__ import annotations

MODELS = ("vit-tiny", "bert-tiny", "opt-tiny", "llama-tiny", "qwen-tiny", "t5-tiny")
"""Built-in models, initialised from a seed."""

DTYPES = ("fp32", "bf16", "fp16", "autocast")
"""What a model computes in; ``autocast`` keeps fp32 weights and computes products in bf16."""

TASKS = ("digits", "digits-low", "digits-high", "chars", "words", "topics", "pairs", "tokens")
"""Tasks that need nothing but this environment; ``tokens`` needs a model folder with a tokenizer."""

GLUE_TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
FILE_TASKS = (*(f"glue/{name}" for name in GLUE_TASKS), "cifar10", "cifar100", "wikipedia", "text")
"""Tasks read from a data root."""

GRADIENT_RULES = ("straight-through", "same", "masked", "autograd")
SCHEDULES = ("gpipe", "1f1b")
LAYER_NAMES = ("all", "none", "first-half", "last-half")

WIRE_SITES = ("tp.forward", "tp.backward", "sp.forward", "sp.backward", "pp.forward", "pp.backward", "dp.gradients")

DEFAULT_LAYERS = "all"
"""The layers that are compressed where none are named: everywhere the same. The paper's suites name theirs (``last-half``)."""

SUITES = ("paper", "modern")
"""Sets of training runs."""

STUDIES = ("break-even", "activation-rank", "serving")
"""Suites that are not training runs."""

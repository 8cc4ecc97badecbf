"""The page of models that are served: one line for each family of the registry."""

from __future__ import annotations

import sys

from evenflow.serving.models.registry import FAMILIES
from reference.markdown import cell, code, page, table

_INTRO = """A model is an ordinary Hugging Face folder: `config.json`, safetensors, `tokenizer.json`. What its
config asks for is computed as transformers computes it, or the folder is refused before memory is
touched, with every reason by field and value."""

_REST = """The weights may be [in few bits](quantised.md), and Llama, Mistral, Qwen2 and Qwen3 may come as
GGUF. Adapters of [every kind](adapters.md) work on every family, for the linears that its PEFT
adapters name: on a model with `qkv_proj` an adapter targets `qkv_proj`. Tensor parallelism works
for all of them.

**Mixtures of experts.** A router sends every token to a few of many MLPs. A step sorts its rows by
expert, and an expert that has rows multiplies them in one product: decoding reads the matrices of
the chosen experts and no others. All experts must fit into memory. The router is computed as
transformers computes it, its softmax in fp32. Experts may be stored each by itself or all in one
array, and [in few bits](quantised.md). On several ranks each expert is divided, and the router
repeated. On a GPU such models run without CUDA graphs. LoRA works on attention, routers, shared
experts and experts; see [Adapters](adapters.md#what-an-adapter-may-contain).

Ropes: default, linear, dynamic (inside the original context), llama3, yarn, longrope, each as
published. A longrope has one set of factors for all sequences: the short ones, unless
`--max-model-len` goes beyond the original context.

Sliding windows are honoured layer by layer, and sequences may be longer than they are: they save
time wherever a layer has one, and memory where all layers do ([how](../explain/windows.md)).

A family that is not here is refused by its name. [Add a model](../extend/model.md) says what it
takes."""


def models_page() -> str:
    """``operate/models.md``."""
    rows = []
    for family in FAMILIES.values():
        about = _about(family.architecture)
        rows.append((cell(family.published), code(family.architecture), cell(about)))
    return page("Models", _INTRO, table(("models", "`architectures`", "the family"), rows), _REST)


def _about(architecture: str) -> str:
    """The first line of the file that holds a family."""
    for name, module in list(sys.modules.items()):
        if name.startswith("evenflow.serving.models.families.") and module.FAMILY.architecture == architecture:
            return (module.__doc__ or "").split("\n", maxsplit=1)[0]
    raise AssertionError(f"{architecture} has no file")

"""Our own way to store a model in few bits: an ordinary folder whose config says so.

A matrix is stored under its module's name as ``codes8`` (uint8 [O, I]) or ``codes4`` ([O, I / 2], two a byte, the first in
the low half), ``scales`` and perhaps ``minima`` (float16 [O, G]): a ``GroupedMatrix``, which says what they mean.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from evenflow.base.errors import ConfigError, ModelError
from evenflow.base.progress import Tell, tell_nobody
from evenflow.serving.models.model_config import load_config
from evenflow.serving.models.stored.gguf_folder import POINTER
from evenflow.serving.models.stored.stored_weights import open_weights
from evenflow.serving.quant.grouped_matrix import GroupedMatrix, quantise
from evenflow.serving.quant.schemes import find_quantization

_LINEAR = re.compile(r"model\.layers\.\d+\..*_proj\.weight")
_NOT_COPIED = ("config.json", POINTER, "model.safetensors.index.json")


def stored_tensors(module: str, matrix: GroupedMatrix) -> dict[str, torch.Tensor]:
    """What is written of one matrix."""
    if matrix.bits == 4:
        codes = {f"{module}.codes4": matrix.codes_OI[:, ::2] | (matrix.codes_OI[:, 1::2] << 4)}
    else:
        codes = {f"{module}.codes8": matrix.codes_OI}
    found = {**codes, f"{module}.scales": matrix.scales_OG}
    return found if matrix.minima_OG is None else {**found, f"{module}.minima": matrix.minima_OG}


def write_quantised(folder: Path, out: Path, scheme: str, tell: Tell = tell_nobody) -> tuple[int, int]:
    """Write the model in ``folder`` to ``out``, all of it or nothing; returns bytes of weights before and after.

    Raises ConfigError for a scheme that there is not, an ``out`` that is there, and weights that are quantised already.
    """
    chosen = find_quantization(scheme)
    if chosen is None:
        raise ConfigError("scheme is 'none'; allowed: int8, int4, int4-g32, int4-g32-min")
    if out.exists():
        raise ConfigError(f"{out} is there already; name a new folder")
    config = load_config(folder)
    written: dict[str, torch.Tensor] = {}
    before = 0
    with open_weights(folder) as stored:
        if stored.is_quantised:
            raise ConfigError(f"{folder} is quantised already ({stored.description})")
        for number, name in enumerate(stored.shapes):
            tell("quantising", number, len(stored.shapes))
            is_head = name == ("model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight")
            value = stored.tensor(name)
            before += value.numel() * 2
            if not is_head and not _LINEAR.fullmatch(name):
                written[name] = value.clone() if value.dtype != torch.float32 else value.bfloat16()
                continue
            of = chosen.vocabulary if is_head else chosen.linears
            if of.bits == 4 and value.shape[1] % 2:
                raise ModelError(f"{name} has {value.shape[1]} inputs; allowed with 4 bits: an even number")
            written |= stored_tensors(name.removesuffix(".weight"), quantise(value, of))
    tell("quantising", 1, 1)
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    raw["quantization_config"] = {"quant_method": "evenflow", "format": 1, "scheme": chosen.name}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
        try:
            for file in folder.iterdir():
                if file.is_file() and file.name not in _NOT_COPIED and file.suffix not in (".safetensors", ".bin", ".gguf"):
                    shutil.copy(file, scratch / file.name)
            (scratch / "config.json").write_text(json.dumps(raw, indent=2), encoding="utf-8")
            contiguous = {name: value.contiguous() for name, value in written.items()}
            save_file(contiguous, scratch / "model.safetensors", metadata={"format": "pt"})
            scratch.chmod(0o755)
            scratch.rename(out)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}") from None
    return before, sum(value.numel() * value.element_size() for value in written.values())


__all__ = ["stored_tensors", "write_quantised"]

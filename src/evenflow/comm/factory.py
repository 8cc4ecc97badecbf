"""Compressors from their names: ``int4``, ``topk:0.1``, ``ef(int8)``, ``paper:A1``."""

from __future__ import annotations

import re
from functools import partial

from evenflow.comm.catalogue import COMPRESSORS
from evenflow.comm.compressor import Compressor
from evenflow.comm.compressors.feedback import ErrorFeedback
from evenflow.comm.presets import paper_preset
from evenflow.comm.spec_arguments import arguments_of

_WRAPPED = re.compile(r"ef\((.*)\)", re.DOTALL)


def get_compressor(spec: str) -> Compressor:
    """Make a compressor from ``name``, ``name:argument``, ``ef(spec)`` or ``paper:SETTING``.

    Raises RegistryError for an unknown name (listing the known ones) and ConfigError for arguments that cannot work.
    """
    text = spec.strip()
    if wrapped := _WRAPPED.fullmatch(text):
        compressor: Compressor = ErrorFeedback(get_compressor(wrapped.group(1)))
    elif text.startswith("paper:"):
        compressor = paper_preset(text.removeprefix("paper:"))
    else:
        name, *arguments = text.split(":")
        compressor = COMPRESSORS.load(name)(*arguments_of(name, arguments))
    compressor.spec = text
    compressor.fresh = partial(get_compressor, text)
    return compressor

"""Compressors from their names: ``int4-g32``, ``topk:0.1``, ``ef(int8-g32)``, ``paper:A1``, ``my_module:Halves``."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from functools import partial

from evenflow.base.errors import ConfigError, RegistryError
from evenflow.comm.catalogue import COMPRESSORS, ENTRY_POINTS, installed_compressors
from evenflow.comm.compressor import Compressor
from evenflow.comm.compressors.feedback import ErrorFeedback
from evenflow.comm.presets import paper_preset
from evenflow.comm.spec_arguments import arguments_of

_WRAPPED = re.compile(r"ef\((.*)\)", re.DOTALL)
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def get_compressor(spec: str) -> Compressor:
    """Make a compressor from ``name``, ``name:argument``, ``ef(spec)``, ``paper:SETTING`` or ``MODULE:CLASS[:argument]``.

    A name is one of the catalogue, or one that an installed package offers as an entry point of the group
    ``evenflow.compressors``. ``MODULE:CLASS`` names a class or function of a module that can be imported in every process that
    takes part; it is called with the arguments, as strings.

    Raises RegistryError for an unknown name (listing the known ones) and ConfigError for arguments that cannot work, and for
    what is no compressor.
    """
    text = spec.strip()
    if wrapped := _WRAPPED.fullmatch(text):
        compressor: Compressor = ErrorFeedback(get_compressor(wrapped.group(1)))
    elif text.startswith("paper:"):
        compressor = paper_preset(text.removeprefix("paper:"))
    else:
        name, *rest = text.split(":")
        make, arguments = _factory(name, rest)
        compressor = _called(text, make, arguments_of(name, arguments))
    compressor.spec = text
    compressor.fresh = partial(get_compressor, text)
    return compressor


def _factory(name: str, rest: Sequence[str]) -> tuple[Callable[..., object], Sequence[str]]:
    """Return what makes the compressor, and its arguments."""
    if name in COMPRESSORS:
        return COMPRESSORS.load(name), rest
    if target := installed_compressors().get(name):
        module, _, attribute = target.partition(":")
        return _imported(name, module, attribute), rest
    if rest and _MODULE.fullmatch(name) and rest[0].isidentifier():
        return _imported(f"{name}:{rest[0]}", name, rest[0]), rest[1:]
    raise RegistryError(
        f"unknown compressor {name!r}; known: {', '.join([*COMPRESSORS, *installed_compressors()])}, ef(SPEC), paper:SETTING, "
        f"MODULE:CLASS of your own, and entry points of the group {ENTRY_POINTS}"
    )


def _imported(asked: str, module: str, attribute: str) -> Callable[..., object]:
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise RegistryError(f"compressor {asked}: the module {module} cannot be imported ({error})") from error
    except AttributeError:
        raise RegistryError(f"compressor {asked}: the module {module} has no {attribute}") from None
    if not callable(found):
        raise ConfigError(f"compressor {asked} is a {type(found).__name__}; allowed: a class or a function")
    return found


def _called(text: str, make: Callable[..., object], arguments: Sequence[str]) -> Compressor:
    """Make the compressor. Raises ConfigError if the arguments do not fit, or if what comes out is no Compressor."""
    try:
        made = make(*arguments)
    except TypeError as error:
        raise ConfigError(f"compressor {text}: {error}") from error
    if not isinstance(made, Compressor):
        raise ConfigError(f"compressor {text} makes a {type(made).__name__}; allowed: a subclass of evenflow.comm.Compressor")
    return made

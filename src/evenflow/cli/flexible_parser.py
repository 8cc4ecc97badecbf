"""An argument parser that takes the spellings of vLLM's: underscores in flags, and keys of a JSON value one by one."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any


class FlexibleParser(argparse.ArgumentParser):
    """``--max_num_seqs`` is ``--max-num-seqs``; ``--x.a.b 1 --x.c+ d`` is ``--x '{"a": {"b": 1}, "c": ["d"]}'``."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """See ``ArgumentParser.parse_known_args``."""
        return super().parse_known_args(None if args is None else plain_words(args), namespace)


def plain_words(words: Sequence[str]) -> list[str]:
    """Return a command line with every flag in its plain spelling. What follows ``--`` is left as it is."""
    plain: list[str | dict[str, Any]] = []
    table_by_flag: dict[str, dict[str, Any]] = {}
    rest = iter(words)
    for word in rest:
        if word == "--":
            plain += [word, *rest]
            break
        if not word.startswith("--"):
            plain.append(word)
            continue
        flag, equals, value = word.partition("=")
        flag, *path = flag.split(".")
        flag = flag.replace("_", "-")
        if not path or not all(path):
            plain.append(word if "." in word.partition("=")[0] else flag + equals + value)
            continue
        if flag not in table_by_flag:
            table_by_flag[flag] = {}
            plain += [flag, table_by_flag[flag]]
        _put(table_by_flag[flag], path, value if equals else next(rest, ""))
    return [json.dumps(word) if isinstance(word, dict) else word for word in plain]


def _put(table: dict[str, Any], path: Sequence[str], text: str) -> None:
    """Set one key of a nested table; a key that ends in + gains one entry of a list, or several behind commas."""
    *folders, key = path
    for folder in folders:
        table = table.setdefault(folder, {})
        if not isinstance(table, dict):
            return
    if key.endswith("+"):
        entries = table.setdefault(key[:-1], [])
        if isinstance(entries, list):
            entries.extend(_value(entry) for entry in text.split(","))
    else:
        table[key] = _value(text)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


__all__ = ["FlexibleParser", "plain_words"]

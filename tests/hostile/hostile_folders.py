"""Adapter folders as attackers, broken tools and full disks make them: hypothesis draws what is wrong, ``build`` writes it."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from evenflow.serving.adapters.peft_format import CONFIG_FILE, WEIGHTS_FILE

PREFIX = "base_model.model.model.layers."

REGULAR_EXPRESSIONS = [
    "a{99999999999}",
    "(?i)q_proj",
    "(((((q|q)+)+)+)+)+x",
    "(.*.*.*.*.*.*.*)*x",
    r"model\.(layers|layers)+.*(.*)*(.*)*q_projx",
    "(" * 2000,
    "(?P<a>x)(?P<a>y)",
    "[z-a]",
    "\\",
    "(?<=a+)b",
    "(?(1)a|b)",
    "x" * 1999,
    ".*",
    "\x00\x1b[2J\n",
    "q_proj|v_proj",
]
NUMBERS = [0, -1, 1, 7, 2**31, 2**63, 10**400, 1e308, -1e308, float("nan"), float("inf"), 0.5, True, "8", None, [], {}]
VALUES: list[Any] = [
    *NUMBERS,
    "",
    "x" * 100_000,
    ["x"] * 50_000,
    {"a": {"b": [1, {"c": 2}]}},
    "q_proj\nERROR forged \x1b[31m",
    "\ud800",
]
FIELDS = [
    *("r", "lora_alpha", "target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "layers_to_transform"),
    *("layers_pattern", "use_rslora", "fan_in_fan_out", "init_lora_weights", "bias", "peft_type", "task_type", "use_dora"),
    *("modules_to_save", "megatron_config", "base_model_name_or_path", "new_knob", "\x1b[2Jfield", "__class__"),
]

RAW_CONFIGS = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"[" * 200_000,
    b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    b'{"r": ' + b"9" * 100_000 + b"}",
    b"\xff\xfe{}",
    b'\xef\xbb\xbf{"peft_type": "LORA"}',
    b'{"peft_type": "LORA", "peft_type": "IA3"}',
    b" " * (2 << 20),
    b"\x00" * 1000,
    b'{"r": 1e999999999}',
    b'{"r": NaN, "lora_alpha": -Infinity}',
]
HEADERS = [
    *("huge length", "zero length", "no json", "deep", "twins", "overlap", "gap", "negative", "huge shape", "many", "floats"),
    *(
        "missing field",
        "bad dtype",
        "long name",
        "control name",
        "beyond the end",
        "too short",
        "metadata",
        "list",
        "layer digits",
    ),
]
WEIGHTS = [*("nan", "inf", "huge", "int", "f64", "wrong shape", "extra", "missing", "zero-dim", "empty", "lora_A alone")]
SPECIALS = [
    "fifo",
    "socket",
    "folder",
    "broken link",
    "loop",
    "etc",
    "neighbour",
    "device",
    "sparse",
    "cut",
    "gone",
    "unreadable",
]


@dataclass(frozen=True)
class Hostile:
    """What is wrong with a folder; several things may be."""

    config: Mapping[str, Any] = field(default_factory=dict)
    raw_config: bytes | None = None
    header: str | None = None
    weights: str | None = None
    special: tuple[str, str] | None = None
    """(which file, what it is instead)."""


_patterns = st.sampled_from(REGULAR_EXPRESSIONS)
_values = st.one_of(
    st.sampled_from(VALUES),
    _patterns,
    st.lists(_patterns, max_size=3),
    st.dictionaries(_patterns, st.sampled_from(NUMBERS), max_size=3),
    st.text(max_size=20),
)
folders = st.builds(
    Hostile,
    config=st.dictionaries(st.sampled_from(FIELDS), _values, max_size=3),
    raw_config=st.one_of(st.none(), st.none(), st.none(), st.sampled_from(RAW_CONFIGS)),
    header=st.one_of(st.none(), st.none(), st.sampled_from(HEADERS)),
    weights=st.one_of(st.none(), st.sampled_from(WEIGHTS)),
    special=st.one_of(st.none(), st.none(), st.tuples(st.sampled_from([CONFIG_FILE, WEIGHTS_FILE]), st.sampled_from(SPECIALS))),
)


def build(hostile: Hostile, folder: Path, good: Path) -> Path:
    """Write it as a variation of the good adapter in folder ``good``."""
    folder.mkdir(parents=True)
    config = json.loads((good / CONFIG_FILE).read_text()) | dict(hostile.config)
    raw = hostile.raw_config if hostile.raw_config is not None else json.dumps(config).encode("utf-8", "surrogatepass")
    (folder / CONFIG_FILE).write_bytes(raw)
    (folder / WEIGHTS_FILE).write_bytes(_weights_file(hostile, (good / WEIGHTS_FILE).read_bytes()))
    if hostile.special is not None:
        _replace(folder / hostile.special[0], hostile.special[1], good)
    return folder


def _weights_file(hostile: Hostile, good: bytes) -> bytes:
    length = struct.unpack("<Q", good[:8])[0]
    header: Any = json.loads(good[8 : 8 + length])
    header.pop("__metadata__", None)
    body = bytearray(good[8 + length :])
    if hostile.weights is not None:
        header, body = _other_weights(header, body, hostile.weights)
    text = _other_header(header, hostile.header)
    claimed = {"huge length": 2**62, "zero length": 0, "too short": 3}.get(hostile.header or "", len(text))
    return struct.pack("<Q", claimed) + text + bytes(body)


def _other_weights(header: dict[str, Any], body: bytearray, what: str) -> tuple[dict[str, Any], bytearray]:
    name = sorted(header)[0]
    begin, end = header[name]["data_offsets"]
    if what in ("nan", "inf", "huge"):
        value = {"nan": np.nan, "inf": np.inf, "huge": 3e38}[what]
        body[begin:end] = np.full((end - begin) // 4, value, np.float32).tobytes()
    elif what in ("int", "f64"):
        header[name] = {**header[name], "dtype": "I32" if what == "int" else "F64"}
    elif what == "wrong shape":
        header[name] = {**header[name], "shape": header[name]["shape"][::-1]}
    elif what == "zero-dim":
        header["base_model.model.lm_head.lora_A.weight"] = {
            "dtype": "F32",
            "shape": [],
            "data_offsets": [len(body), len(body) + 4],
        }
        body += b"\0" * 4
    elif what == "extra":
        header["some.other"] = {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [len(body), len(body) + 4]}
        body += b"\0" * 4
    elif what == "empty":
        header, body = {}, bytearray()
    else:
        last = max(header, key=lambda key: header[key]["data_offsets"])
        begin, end = header.pop(last)["data_offsets"]
        del body[begin:end]
    return header, body


def _other_header(header: dict[str, Any], what: str | None) -> bytes:
    name = sorted(header)[0] if header else "x"
    entry = header.get(name, {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]})
    if what == "no json":
        return b"\x80\x04pickle"
    if what == "deep":
        return b'{"a":' + b"[" * 100_000
    if what == "twins":
        text = json.dumps(header)
        return (text[:-1] + ", " + json.dumps({name: entry})[1:]).encode()
    if what == "list":
        return json.dumps(list(header)).encode()
    if what == "many":
        nothing = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        return json.dumps({**header, **{f"t{i}": nothing for i in range(60_000)}}).encode()
    changed: dict[str, Any] = {
        "overlap": {name: {**entry, "data_offsets": [entry["data_offsets"][0] + 4, entry["data_offsets"][1]]}},
        "gap": {name: {**entry, "data_offsets": [value + 8 for value in entry["data_offsets"]]}},
        "negative": {name: {**entry, "data_offsets": [-8, entry["data_offsets"][1]]}},
        "huge shape": {name: {**entry, "shape": [2**62, 2**62, 2**62]}},
        "floats": {name: {**entry, "shape": [1.5, True], "data_offsets": [0.0, 4.0]}},
        "missing field": {name: {"dtype": "F32"}},
        "bad dtype": {name: {**entry, "dtype": ["F32"]}},
        "long name": {"x" * 1_000_000: entry},
        "control name": {f"{PREFIX}0\nERROR forged\x1b[2J\u202e": entry},
        "beyond the end": {name: {**entry, "data_offsets": [0, 2**50]}},
        "metadata": {"__metadata__": {"a" * 100: "b" * 100_000}},
        "layer digits": {f"{PREFIX}{'9' * 5000}.self_attn.q_proj.lora_A.weight": entry},
    }.get(what or "", {})
    return json.dumps({**header, **changed}).encode("utf-8", "surrogatepass")


def _replace(path: Path, what: str, good: Path) -> None:
    path.unlink()
    if what == "fifo":
        os.mkfifo(path)
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as opened:
            here = os.open(path.parent, os.O_RDONLY)
            opened.bind(f"/proc/self/fd/{here}/{path.name}")
            os.close(here)
    elif what == "folder":
        path.mkdir()
    elif what in ("broken link", "loop", "etc", "neighbour", "device"):
        targets = {"broken link": "nowhere", "loop": path.name, "etc": "/etc/passwd", "device": "/dev/zero"}
        path.symlink_to(targets.get(what) or good / path.name)
    elif what in ("sparse", "cut"):
        size = 1 << 40 if what == "sparse" else (good / path.name).stat().st_size // 2
        path.write_bytes((good / path.name).read_bytes())
        os.truncate(path, size)
    elif what == "unreadable":
        path.write_bytes(b"")
        path.chmod(0)
